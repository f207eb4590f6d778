"""The registry: models, their versions, and the aliases by which versions are served."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.access import EVERYTHING, Scope
from acclimate_service.domain.errors import AlreadyExists, NotFound, RequestIdReused
from acclimate_service.domain.model import (
    Alias,
    Architecture,
    Decoding,
    Model,
    ModelVersion,
    Preprocessing,
    WeightsSource,
)
from acclimate_service.domain.names import AliasName, DomainName, JobName, ModelName, VersionName
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.stored import known
from acclimate_service.store import aliases, audit, endings, mistakes, schema, versions
from acclimate_service.store.aliases import AliasMove
from acclimate_service.store.engine import Database, Transaction
from acclimate_service.store.pages import Page, in_scope, page_limit


class Registry:
    """The models of a store. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ── models ───────────────────────────────────────────────────────────────

    def create_model(self, model: Model, request_id: str = "") -> Model:
        """Write *model* (its ``created_at`` is the store's); the same request, the same model.

        Raises:
            AlreadyExists: the id is taken.
            NotFound: its source domain does not exist.
            RequestIdReused: this request_id made another model.
            StoreUnavailable: the database is out of reach.
        """
        return self._database.write(_create_model, model, request_id)

    def get_model(self, name: ModelName) -> Model:
        """The model.

        Raises:
            NotFound: there is none of this name.
        """
        return self._database.read(_get_model, name)

    def list_models(
        self, page_size: int = 0, page_token: str = "", *, within: Scope = EVERYTHING
    ) -> Page[Model]:
        """The models *within* a scope, by name."""
        return self._database.read(_page_models, page_size, page_token, within)

    def delete_model(self, name: ModelName) -> None:
        """See :func:`~acclimate_service.store.mistakes.delete_model`."""
        self._database.write(mistakes.delete_model, name)

    def set_guard(self, name: ModelName, policy: GuardPolicy, *, who: str, why: str) -> Model:
        """Give the model a policy that later jobs take over; who and why goes to the audit log.

        Raises:
            NotFound: there is no such model.
            StoreUnavailable: the database is out of reach.
        """
        return self._database.write(_set_guard, name, policy, who, why)

    # ── versions ─────────────────────────────────────────────────────────────

    def get_version(self, name: VersionName) -> ModelVersion:
        """See :func:`~acclimate_service.store.versions.get`."""
        return self._database.read(versions.get, name)

    def list_versions(
        self, model: ModelName, page_size: int = 0, page_token: str = ""
    ) -> Page[ModelVersion]:
        """See :func:`~acclimate_service.store.versions.page`."""
        return self._database.read(versions.page, model, page_size, page_token)

    def version_names(
        self, model: ModelName | None = None, *, within: Scope = EVERYTHING, limit: int
    ) -> list[VersionName]:
        """See :func:`~acclimate_service.store.versions.names`."""
        return self._database.read(versions.names, model, within, limit)

    def version_of_job(self, job: JobName) -> ModelVersion | None:
        """See :func:`~acclimate_service.store.versions.of_job`."""
        return self._database.read(versions.of_job, job)

    def force_version(self, job: JobName, *, who: str, why: str) -> ModelVersion:
        """See :func:`~acclimate_service.store.endings.force`."""
        return self._database.write(endings.force, job, who, why)

    def delete_version(self, name: VersionName) -> None:
        """See :func:`~acclimate_service.store.versions.delete`."""
        self._database.write(versions.delete, name)

    def accepted_domains(self, version: VersionName) -> tuple[DomainName, ...]:
        """See :func:`~acclimate_service.store.versions.accepted_domains`."""
        return self._database.read(versions.accepted_domains, version)

    def standards(self, version: VersionName) -> dict[DomainName, VersionName]:
        """See :func:`~acclimate_service.store.versions.standards`."""
        return self._database.read(versions.standards, version)

    # ── aliases ──────────────────────────────────────────────────────────────

    def set_alias(
        self,
        alias: AliasName,
        version: VersionName,
        *,
        expect: VersionName | None = None,
        who: str = "",
        why: str = "",
    ) -> Alias:
        """See :func:`~acclimate_service.store.aliases.set_to`."""
        return self._database.write(aliases.set_to, alias, version, expect=expect, who=who, why=why)

    def rollback(
        self, alias: AliasName, *, expect: VersionName | None = None, who: str = "", why: str = ""
    ) -> Alias:
        """See :func:`~acclimate_service.store.aliases.rollback`."""
        return self._database.write(aliases.rollback, alias, expect=expect, who=who, why=why)

    def delete_alias(self, alias: AliasName, *, who: str = "", why: str = "") -> None:
        """See :func:`~acclimate_service.store.aliases.delete`."""
        self._database.write(aliases.delete, alias, who, why)

    def get_alias(self, alias: AliasName) -> Alias:
        """See :func:`~acclimate_service.store.aliases.get`."""
        return self._database.read(aliases.get, alias)

    def list_aliases(self, model: ModelName | None = None) -> list[Alias]:
        """See :func:`~acclimate_service.store.aliases.of_model`."""
        return self._database.read(aliases.of_model, model)

    def alias_history(self, alias: AliasName, limit: int = 100) -> list[AliasMove]:
        """See :func:`~acclimate_service.store.aliases.history`."""
        return self._database.read(aliases.history, alias, limit)

    def aliases_moved(self, since: int | None) -> tuple[list[AliasName], int]:
        """See :func:`~acclimate_service.store.aliases.moved`.

        A replica begins with None, and goes on from the number that it was given last.
        """
        return self._database.follow(aliases.moved, since)


def _create_model(tx: Transaction, model: Model, request_id: str) -> Model:
    table, domains = schema.models, schema.domains
    if request_id:
        row = tx.row(sa.select(table).where(table.c.request_id == request_id))
        if row is not None:
            return _same_model(row, model, request_id)
    row = tx.row(sa.select(table).where(table.c.id == model.name.model))
    if row is not None:
        found = _model_of(row)
        if found.decoding != model.decoding and found.architecture == model.architecture:
            raise AlreadyExists(str(model.name), then=_to_decode(found, model))
        raise AlreadyExists(str(model.name))
    source = model.source_domain
    if source is not None and not tx.rows(
        sa.select(domains.c.id).where(domains.c.id == source.domain).with_for_update(read=True)
    ):
        raise NotFound(str(source), see="ListDomains")
    row = tx.row(
        sa.insert(table)
        .values(
            id=model.name.model,
            architecture=model.architecture.model_dump(mode="json"),
            weights=model.weights.model_dump(mode="json"),
            labels=list(model.labels),
            preprocessing=None
            if model.preprocessing is None
            else versions.stored_preprocessing(model.preprocessing),
            decoding=model.decoding,
            source_domain=None if source is None else source.domain,
            request_id=request_id or None,
            versions=0,
            created_at=tx.now,
        )
        .returning(*table.c)
    )
    audit.note(tx, "RegisterModel", model.name)
    return _model_of(row)


def _same_model(row: Any, model: Model, request_id: str) -> Model:
    """The model in *row*, if this request may have made it.

    What a first version fills in (labels, preprocessing, the source domain) may have
    changed since, so it counts only where the request said something.
    """
    found = _model_of(row)
    asked = replace(
        model,
        created_at=found.created_at,
        labels=model.labels or found.labels,
        preprocessing=model.preprocessing or found.preprocessing,
        source_domain=model.source_domain or found.source_domain,
        guard=found.guard,
    )
    if asked == found:
        return found
    way, given = {"decoding": found.decoding}, asked.preprocessing
    alike = replace(
        asked,
        decoding=found.decoding,
        preprocessing=None if given is None else given.model_copy(update=way),
    )
    if alike == found:
        raise RequestIdReused(request_id, then=_to_decode(found, model))
    raise RequestIdReused(request_id)


def _to_decode(found: Model, asked: Model) -> str:
    """Why a model's decoding stays what it is, and how to have the other one."""
    return (
        f"{found.name} decodes JPEGs {found.decoding}, as all its versions were trained and "
        f"judged, so that never changes. For {asked.decoding}, register the same weights under a "
        f"new name (`acclimate register --decoding {asked.decoding}`), adapt that model to the "
        "same domains, and set its alias; callers then ask for the new name"
    )


def _get_model(tx: Transaction, name: ModelName) -> Model:
    row = tx.row(sa.select(schema.models).where(schema.models.c.id == name.model))
    if row is None:
        raise NotFound(str(name), see="ListModels")
    return _model_of(row)


def _set_guard(tx: Transaction, name: ModelName, policy: GuardPolicy, who: str, why: str) -> Model:
    table = schema.models
    row = tx.row(
        sa.update(table)
        .where(table.c.id == name.model)
        .values(guard=policy.model_dump(mode="json"))
        .returning(*table.c)
    )
    if row is None:
        raise NotFound(str(name), see="ListModels")
    limits = {field: getattr(policy, field) for field in policy.overrides}
    detail = f"{policy.base} {limits}" if limits else policy.base
    audit.note(tx, "SetModelGuard", name, detail=detail, who=who, why=why)
    return _model_of(row)


def _page_models(tx: Transaction, page_size: int, token: str, within: Scope) -> Page[Model]:
    table, limit = schema.models, page_limit(page_size)
    query = sa.select(table).where(table.c.id > token, in_scope(table.c.id, within))
    rows = tx.rows(query.order_by(table.c.id).limit(limit + 1))
    return Page(
        items=tuple(_model_of(row) for row in rows[:limit]),
        next_token=rows[limit - 1].id if len(rows) > limit else "",
    )


def _model_of(row: Any) -> Model:
    decoding: Decoding = row.decoding or "full"
    return Model(
        name=ModelName(row.id),
        architecture=Architecture.model_validate(row.architecture),
        weights=WeightsSource.model_validate(row.weights),
        labels=tuple(row.labels),
        preprocessing=None
        if row.preprocessing is None
        else known(Preprocessing, row.preprocessing | {"decoding": decoding}).value,
        source_domain=None if row.source_domain is None else DomainName(row.source_domain),
        created_at=row.created_at,
        guard=None if row.guard is None else known(GuardPolicy, row.guard).value,
        decoding=decoding,
    )
