"""What each method needs: one row for every method of the server.

A method without a row is refused, whoever calls (and fails a test). Fields are paths
within a request's message; a scope is checked wherever one is filled in, in every
message of a stream.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from acclimate_service.domain.access import AccessRole, Principal
from acclimate_service.domain.errors import InvalidName, PermissionDenied
from acclimate_service.domain.names import SLUG, JobName

_MODEL: Final = re.compile(rf"(?:models/)?({SLUG})(?:/(?:versions|aliases|rollouts)/{SLUG})?")
_DOMAIN: Final = re.compile(rf"(?:domains/)?({SLUG})(?:/batches/{SLUG})?")

PREDICT, UPLOAD, ADAPT, PROMOTE, ADMIN = AccessRole
ANY: Final = frozenset(AccessRole)


@dataclass(frozen=True, kw_only=True)
class Right:
    """Who may call a method, and what of it a scope limits."""

    roles: frozenset[AccessRole]  # any of them will do; ADMIN always does
    models: tuple[str, ...] = ()  # fields that name a model, a version or an alias
    domains: tuple[str, ...] = ()  # fields that name a domain or a batch
    jobs: tuple[str, ...] = ()  # fields that name a job, which is its model's
    promotes: tuple[str, ...] = ()  # fields that, filled in, need the role PROMOTE too
    changes: bool = False  # whether it leaves a line in the audit log
    open: bool = False  # whether it asks for no token at all
    unlimited: bool = False  # whether a principal with a limited scope is refused
    uploads: bool = False  # whether its messages count as uploaded bytes

    def check_role(self, who: Principal, method: str) -> None:
        """See that *who* may call *method* at all.

        Raises:
            PermissionDenied: the role is missing, or the scope is limited and must not be.
        """
        if self.open:
            return
        if not any(map(who.has, self.roles)):
            wanted = " or ".join(sorted(self.roles | {ADMIN}))
            raise PermissionDenied(
                f"{_short(method)} needs the role {wanted}; {who.name} has "
                f"{', '.join(sorted(who.roles))}",
                principal=who.name,
            )
        if self.unlimited and not who.unlimited:
            raise PermissionDenied(
                f"{_short(method)} reaches everything, and {who.name} is limited to some models "
                "or domains",
                principal=who.name,
            )

    def check_message(self, who: Principal, message: object) -> None:
        """See that every name in *message*, those of jobs aside, is within the scope of *who*.

        Raises:
            PermissionDenied: one is not; the answer is the same whether it exists or not.
            InvalidName: a name has no form that could be checked.
        """
        for field in self.promotes:
            if _texts(message, field) and not who.has(PROMOTE):
                raise PermissionDenied(
                    f"{field} moves an alias, which needs the role promote", principal=who.name
                )
        if who.unlimited:
            return
        for form, fields, scope in (
            (_MODEL, self.models, who.models),
            (_DOMAIN, self.domains, who.domains),
        ):
            for field in fields:
                for text in _texts(message, field):
                    if _id(form, text) not in scope:
                        raise PermissionDenied(
                            f"{field}: {text[:120]!r} is outside of what {who.name} may reach",
                            principal=who.name,
                        )

    def subject(self, message: object) -> str:
        """The first name in *message*, for the audit log; empty if there is none."""
        fields = (*self.models, *self.domains, *self.jobs)
        return next((text for field in fields for text in _texts(message, field)), "")

    def jobs_in(self, message: object) -> list[JobName]:
        """The jobs that *message* names.

        Raises:
            InvalidName: a name has the wrong form.
        """
        return [JobName.parse(text) for field in self.jobs for text in _texts(message, field)]


def _texts(message: object, field: str) -> list[str]:
    """The filled-in strings of a field given by its path; one that is repeated has many."""
    value: Any = functools.reduce(getattr, field.split("."), message)
    return [text for text in ([value] if isinstance(value, str) else list(value)) if text]


def _id(form: re.Pattern[str], text: str) -> str:
    match = form.fullmatch(text)
    if match is None:
        raise InvalidName(text, "a resource name or an id")
    return match[1]


def _short(method: str) -> str:
    return method.rpartition("/")[2]


def _right(*roles: AccessRole, **rest: Any) -> Right:
    return Right(roles=frozenset(roles), **rest)


def _service(name: str, rows: Mapping[str, Right]) -> dict[str, Right]:
    return {f"/{name}/{method}": right for method, right in rows.items()}


_ADAPTATION: Final = {
    "CreateDomain": _right(UPLOAD, domains=("domain_id",), changes=True),
    "GetDomain": _right(UPLOAD, ADAPT, domains=("name",)),
    "ListDomains": _right(UPLOAD, ADAPT),
    "DeleteDomain": _right(ADMIN, domains=("name",), changes=True),
    "UploadBatch": _right(UPLOAD, domains=("open.parent",), changes=True, uploads=True),
    "GetLabeledBatch": _right(UPLOAD, ADAPT, domains=("name",)),
    "ListLabeledBatches": _right(UPLOAD, ADAPT, domains=("parent",)),
    "DeleteLabeledBatch": _right(ADMIN, domains=("name",), changes=True),
    "CreateAdaptationJob": _right(
        ADAPT,
        models=("model", "base"),
        domains=("domain",),
        promotes=("spec.promote_to",),
        changes=True,
    ),
    "GetAdaptationJob": _right(ADAPT, PROMOTE, jobs=("name",)),
    "ListAdaptationJobs": _right(ADAPT, PROMOTE, models=("model",), domains=("domain",)),
    "CancelAdaptationJob": _right(ADAPT, jobs=("name",), changes=True),
    "WatchAdaptationJob": _right(ADAPT, PROMOTE, jobs=("name",)),
    # A report shows images, so those who only predict do not see it.
    "GetReport": _right(ADAPT, PROMOTE, jobs=("name",)),
}

_REGISTRY: Final = {
    "RegisterModel": _right(
        ADAPT,
        models=("draft.model_id",),
        domains=("draft.source_domain",),
        promotes=("draft.promote_to",),
        changes=True,
        uploads=True,
    ),
    "GetModel": _right(*ANY, models=("name",)),
    "ListModels": _right(*ANY),
    "DeleteModel": _right(ADMIN, models=("name",), changes=True),
    # What it allows goes live by itself.
    "SetModelGuard": _right(PROMOTE, models=("name",), changes=True),
    "GetModelVersion": _right(*ANY, models=("name",)),
    "ListModelVersions": _right(*ANY, models=("parent",)),
    "DeleteModelVersion": _right(ADMIN, models=("name",), changes=True),
    "ExportModelVersion": _right(ADAPT, PROMOTE, models=("name",)),
    # It overrules the guard.
    "ForceModelVersion": _right(ADMIN, jobs=("job",), changes=True),
    "SetAlias": _right(PROMOTE, models=("name", "version", "expected_version"), changes=True),
    "RollbackAlias": _right(PROMOTE, models=("name",), changes=True),
    "ListAliases": _right(*ANY, models=("parent",)),
    "DeleteAlias": _right(PROMOTE, models=("name",), changes=True),
}

_INFERENCE: Final = {
    "Predict": _right(PREDICT, models=("model",), domains=("domain",)),
    "PredictStream": _right(PREDICT, models=("model",), domains=("domain",)),
    "ListVersionStatistics": _right(*ANY, models=("parent",)),
    "GetDrift": _right(*ANY, models=("model",)),
}

_OIP: Final = {
    "ServerLive": _right(open=True),
    "ServerReady": _right(open=True),
    "ServerMetadata": _right(*ANY),
    "ModelReady": _right(*ANY, models=("name",)),
    "ModelMetadata": _right(*ANY, models=("name",)),
    "ModelConfig": _right(*ANY, models=("name",)),
    "ModelStatistics": _right(*ANY, models=("name",)),
    "ModelInfer": _right(PREDICT, models=("model_name",)),
    "ModelStreamInfer": _right(PREDICT, models=("model_name",)),
    "RepositoryIndex": _right(*ANY),
    "RepositoryModelLoad": _right(PROMOTE, models=("model_name",), changes=True),
    "RepositoryModelUnload": _right(PROMOTE, models=("model_name",), changes=True),
}

_ACCESS: Final = {
    "CreateToken": _right(ADMIN, unlimited=True, changes=True),
    "RotateToken": _right(ADMIN, unlimited=True, changes=True),
    "RevokeToken": _right(ADMIN, unlimited=True, changes=True),
    "ListTokens": _right(ADMIN, unlimited=True),
    "ListAuditEntries": _right(ADMIN, unlimited=True),
}

_ROLLOUT: Final = {
    "StartRollout": _right(PROMOTE, models=("alias", "candidate"), changes=True),
    "GetRollout": _right(*ANY, models=("name",)),
    "ListRollouts": _right(*ANY, models=("parent",)),
    "StopRollout": _right(PROMOTE, models=("name",), changes=True),
}

# Probes and balancers have no token. What it tells of models is whether one answers.
_HEALTH: Final = dict.fromkeys(("Check", "Watch", "List"), _right(open=True))

RIGHTS: Final[Mapping[str, Right]] = {
    **_service("acclimate.v1.AdaptationService", _ADAPTATION),
    **_service("acclimate.v1.RegistryService", _REGISTRY),
    **_service("acclimate.v1.InferenceService", _INFERENCE),
    **_service("acclimate.v1.AccessService", _ACCESS),
    **_service("acclimate.v1.RolloutService", _ROLLOUT),
    **_service("inference.GRPCInferenceService", _OIP),
    **_service("grpc.health.v1.Health", _HEALTH),
    **_service("grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": _right(*ANY)}),
    **_service("grpc.reflection.v1alpha.ServerReflection", {"ServerReflectionInfo": _right(*ANY)}),
}
