"""The client's calls to RegistryService: models, versions, aliases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from acclimate import _calls, _files, _names, _wire
from acclimate._calls import BULK_SECONDS
from acclimate._connection import Connection
from acclimate.job import Job
from acclimate.resources import (
    Alias,
    Architecture,
    Decoding,
    Json,
    Model,
    ModelFiles,
    ModelVersion,
    Preprocessing,
    WeightsSource,
)
from acclimate.v1 import registry_pb2, registry_pb2_grpc


class RegistryCalls:
    """What can be served, and what is."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._registry = registry_pb2_grpc.RegistryServiceStub(connection.channel)

    def register_model(
        self,
        model_id: str,
        architecture: Architecture | str,
        *,
        weights: WeightsSource | Path | None = None,
        labels: Iterable[str] = (),
        preprocessing: Preprocessing | None = None,
        source_domain: str = "",
        promote_to: str = "",
        request_id: str | None = None,
        decoding: Decoding | None = None,
    ) -> tuple[Model, Job | None]:
        """Register a model; with labels, a job then opens, checks and exports it.

        Args:
            model_id: its id, a lower-case slug.
            architecture: such as ``timm/tf_efficientnet_lite0``.
            weights: a file to send (safetensors or a plain state dict), or where
                the service finds them; None means the library's own from its hub.
            labels: what the weights' head answers, in order; none for a backbone
                that waits for its bootstrap job.
            preprocessing: None means the library's own.
            source_domain: the domain whose holdout the guard weighs forgetting on.
            promote_to: the alias to set when the first version exists.
            request_id: what makes a repeated call the same call.
            decoding: ``full`` decodes all pixels of JPEGs that are much larger than the
                input, ``scaled`` as many as it takes. None means ``scaled`` for a
                backbone and ``full`` for weights that come with their labels.

        Returns:
            The model, and its registration job if its weights came with labels.
        """
        if isinstance(architecture, str):
            library, _, name = architecture.partition("/")
            architecture = Architecture(library=library, name=name)
        file = weights if isinstance(weights, Path) else None
        source = WeightsSource(kind="HUB") if weights is None else weights
        draft = _wire.draft_message(
            model_id=model_id,
            architecture=architecture,
            weights=WeightsSource(kind="FILE") if isinstance(source, Path) else source,
            labels=tuple(labels),
            preprocessing=preprocessing,
            source_domain=_names.domain_name(source_domain) if source_domain else "",
            request_id=request_id or _calls.new_request_id(),
            promote_to=promote_to,
            decoding=decoding,
        )
        answer = self._connection.attempt(
            lambda left: self._registry.RegisterModel(
                _files.registration(draft, file), timeout=left, metadata=self._connection.metadata
            ),
            idempotent=True,
            timeout=None if file is None else BULK_SECONDS,
        )
        job = Job.named(self._connection, answer.job) if answer.job else None
        return _wire.model(answer.model), job

    def model(self, name: str) -> Model:
        """One model.

        Raises:
            NotFound: there is none of this name.
        """
        request = registry_pb2.GetModelRequest(name=_names.model_name(name))
        return _wire.model(self._connection.call(self._registry.GetModel, request, idempotent=True))

    def models(self) -> list[Model]:
        """All models."""
        request = registry_pb2.ListModelsRequest()
        pages = self._connection.pages(self._registry.ListModels, request)
        return [_wire.model(message) for page in pages for message in page.models]

    def version(self, name: str) -> ModelVersion:
        """One version (``digits/3``).

        Raises:
            NotFound: there is none of this name.
        """
        request = registry_pb2.GetModelVersionRequest(name=_names.version_name(name))
        return _wire.version(
            self._connection.call(self._registry.GetModelVersion, request, idempotent=True)
        )

    def versions(self, model: str) -> list[ModelVersion]:
        """All versions of a model that the server can read."""
        request = registry_pb2.ListModelVersionsRequest(parent=_names.model_name(model))
        pages = self._connection.pages(self._registry.ListModelVersions, request)
        return [_wire.version(message) for page in pages for message in page.versions]

    def unreadable_versions(self, model: str) -> list[str]:
        """The names of a model's versions whose format is newer than the server."""
        request = registry_pb2.ListModelVersionsRequest(parent=_names.model_name(model))
        pages = self._connection.pages(self._registry.ListModelVersions, request)
        return [name for page in pages for name in page.unreadable]

    def delete_version(self, name: str, *, reason: str = "") -> None:
        """Delete a version.

        Raises:
            Conflict: an alias, a running job or the lineage of a live version needs it.
        """
        request = registry_pb2.DeleteModelVersionRequest(
            name=_names.version_name(name), reason=reason
        )
        self._connection.call(self._registry.DeleteModelVersion, request, idempotent=False)

    def delete_model(self, name: str, *, reason: str = "") -> None:
        """Delete a model that never had a version: a registration made by mistake.

        Raises:
            Conflict: it has or had a version, or a job of it runs.
        """
        request = registry_pb2.DeleteModelRequest(name=_names.model_name(name), reason=reason)
        self._connection.call(self._registry.DeleteModel, request, idempotent=False)

    def set_guard(
        self,
        model: str,
        *,
        preset: str = "balanced",
        overrides: Mapping[str, Json] | None = None,
        reason: str,
    ) -> Model:
        """Give a model the guard policy that its later jobs take over; it is recorded.

        Args:
            preset: ``balanced``, ``strict`` or ``exploratory``.
            overrides: limits that differ from the preset, by field name.
            reason: why; kept in the audit log, and with the limits.
        """
        request = registry_pb2.SetModelGuardRequest(
            name=_names.model_name(model),
            preset=preset,
            overrides=_wire.struct_of(overrides) if overrides else None,
            reason=reason,
        )
        return _wire.model(
            self._connection.call(self._registry.SetModelGuard, request, idempotent=True)
        )

    def force(self, job: str, *, reason: str) -> ModelVersion:
        """Make a version of what the guard did not accept; who and why is recorded.

        Raises:
            Conflict: the job did not end REJECTED or INCONCLUSIVE.
        """
        request = registry_pb2.ForceModelVersionRequest(job=_names.job_name(job), reason=reason)
        return _wire.version(
            self._connection.call(self._registry.ForceModelVersion, request, idempotent=False)
        )

    def export(self, version: str, folder: str | Path) -> ModelFiles:
        """Write a version's model.onnx, weights.safetensors and manifest.json into *folder*.

        Every file is checked against its digest before it gets its name.
        """
        request = registry_pb2.ExportModelVersionRequest(name=_names.version_name(version))

        def whole(left: float) -> ModelFiles:
            messages = self._registry.ExportModelVersion(
                request, timeout=left, metadata=self._connection.metadata
            )
            return _files.receive_version(messages, Path(folder))

        return self._connection.attempt(whole, idempotent=True, timeout=BULK_SECONDS)

    def promote(
        self,
        model: str,
        version: str,
        *,
        alias: str = "production",
        expected: str | None = None,
        reason: str = "",
    ) -> Alias:
        """Load and warm a version, then point an alias at it.

        Args:
            model: the model.
            version: its version (``3``).
            alias: which pointer.
            expected: only move the alias if it points at this version now.
            reason: why; kept in the audit log.

        Raises:
            Conflict: the version cannot be loaded, or the alias points elsewhere
                than *expected*.
        """
        call = _calls.promote(model, version, alias=alias, expected=expected, reason=reason)
        return self._connection.ask(call)

    def rollback(self, model: str, *, alias: str = "production", reason: str = "") -> Alias:
        """Point an alias back at where it pointed before.

        Raises:
            Conflict: it has not pointed anywhere else.
        """
        return self._connection.ask(_calls.rollback(model, alias=alias, reason=reason))

    def aliases(self, model: str) -> list[Alias]:
        """All aliases of a model."""
        return self._connection.ask(_calls.aliases(model))

    def delete_alias(self, model: str, alias: str, *, reason: str = "") -> None:
        """Remove an alias; nothing is served under it any more."""
        request = registry_pb2.DeleteAliasRequest(
            name=_names.alias_name(model, alias), reason=reason
        )
        self._connection.call(self._registry.DeleteAlias, request, idempotent=False)
