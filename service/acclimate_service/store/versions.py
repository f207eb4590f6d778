"""Model versions: allotted once, immutable, with a lineage that is kept while it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.access import Scope
from acclimate_service.domain.errors import (
    NotFound,
    VersionInUse,
    VersionNotFound,
    VersionUnloadable,
)
from acclimate_service.domain.job import JobState
from acclimate_service.domain.model import (
    MANIFEST_FORMAT,
    Manifest,
    ModelVersion,
    Origin,
    Preprocessing,
)
from acclimate_service.domain.names import DomainName, JobName, ModelName, VersionName
from acclimate_service.domain.rollout import RolloutState
from acclimate_service.domain.stored import known
from acclimate_service.store import audit, schema
from acclimate_service.store.engine import Transaction, line
from acclimate_service.store.pages import Page, in_scope, page_limit, page_number


@dataclass(frozen=True, kw_only=True)
class NewVersion:
    """A version to be. Its number is allotted as it is written, so the manifest follows.

    ``manifest`` is called inside the transaction, perhaps more than once, and must do
    nothing but build: the name it is given is the version's.
    """

    parent: VersionName | None
    origin: Origin
    manifest: Callable[[VersionName], Manifest]


def create(
    tx: Transaction,
    model: ModelName,
    job: JobName,
    new: NewVersion,
    *,
    forced_by: str = "",
    forced_reason: str = "",
) -> ModelVersion:
    """Write the next version of *model*; a bare backbone takes on its labels.

    Raises:
        NotFound: there is no such model.
    """
    models = schema.models
    row = tx.row(
        sa.update(models)
        .where(models.c.id == model.model)
        .values(versions=models.c.versions + 1)
        .returning(
            models.c.versions, models.c.labels, models.c.preprocessing, models.c.source_domain
        )
    )
    if row is None:
        raise NotFound(str(model), see="ListModels")
    name = VersionName(model.model, str(row.versions))
    manifest = new.manifest(name)
    if (manifest.version, manifest.job, manifest.origin) != (str(name), str(job), new.origin):
        raise ValueError(f"the manifest of {name} tells of another version, job or origin")
    written = tx.row(
        sa.insert(schema.versions)
        .values(
            model=model.model,
            id=name.version,
            number=row.versions,
            parent=None if new.parent is None else new.parent.version,
            job=job.job,
            origin=new.origin.value,
            manifest=manifest.model_dump(mode="json"),
            onnx=manifest.artifacts.onnx,
            weights=manifest.artifacts.weights,
            forced_by=line(forced_by, 200),
            forced_reason=line(forced_reason),
            created_at=tx.now,
        )
        .returning(*schema.versions.c)
    )
    _complete_model(tx, row, name, manifest, job)
    how = new.origin.value.lower()
    audit.note(tx, "new version", name, detail=f"{how}, of {job}", who=str(job), why=forced_reason)
    return version_of(written)


def _complete_model(
    tx: Transaction, row: Any, name: VersionName, manifest: Manifest, job: JobName
) -> None:
    """Fill in what the model did not know before its first version."""
    values: dict[str, Any] = {}
    if not row.labels:
        values["labels"] = list(manifest.labels)
    if row.preprocessing is None:
        values["preprocessing"] = stored_preprocessing(manifest.preprocessing)
    if row.source_domain is None:
        jobs = schema.jobs
        source = tx.scalar(sa.select(jobs.c.source).where(jobs.c.id == job.job))
        if source is not None:
            values["source_domain"] = source
    if values:
        models = schema.models
        tx.run(sa.update(models).where(models.c.id == name.model).values(**values))


def stored_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """What a model's row holds of it. The decoding has a column of its own."""
    return preprocessing.model_dump(mode="json", exclude={"decoding"})


def get(tx: Transaction, name: VersionName) -> ModelVersion:
    """The version.

    Raises:
        VersionNotFound: there is none of this name.
    """
    return version_of(_find(tx, name))


def of_job(tx: Transaction, job: JobName) -> ModelVersion | None:
    """The version that *job* made, if it made one that still is there."""
    row = tx.row(sa.select(schema.versions).where(schema.versions.c.job == job.job))
    return None if row is None else version_of(row)


def page(tx: Transaction, model: ModelName, page_size: int, token: str) -> Page[ModelVersion]:
    """The model's versions, newest first; named alone, where only a newer Acclimate reads them."""
    table, limit, before = schema.versions, page_limit(page_size), page_number(token)
    query = sa.select(table).where(table.c.model == model.model)
    if before is not None:
        query = query.where(table.c.number < before)
    rows = tx.rows(query.order_by(table.c.number.desc()).limit(limit + 1))
    items, unreadable = [], []
    for row in rows[:limit]:
        try:
            items.append(version_of(row))
        except VersionUnloadable:
            unreadable.append(str(VersionName(row.model, row.id)))
    return Page(
        items=tuple(items),
        next_token=str(rows[limit - 1].number) if len(rows) > limit else "",
        unreadable=tuple(unreadable),
    )


def names(tx: Transaction, model: ModelName | None, within: Scope, limit: int) -> list[VersionName]:
    """The names of at most *limit* versions of models *within* a scope, or of one of them.

    By model, newest first.
    """
    table = schema.versions
    query = sa.select(table.c.model, table.c.id).where(in_scope(table.c.model, within))
    if model is not None:
        query = query.where(table.c.model == model.model)
    rows = tx.rows(query.order_by(table.c.model, table.c.number.desc()).limit(limit))
    return [VersionName(row.model, row.id) for row in rows]


def delete(tx: Transaction, name: VersionName) -> None:
    """Delete the version; its files go when the store is next reconciled.

    Raises:
        VersionNotFound: there is none of this name.
        VersionInUse: an alias points at it or would roll back to it, a job that has
            not ended adapts it, or another version was adapted from it.
    """
    model = schema.models
    tx.row(sa.select(model.c.id).where(model.c.id == name.model).with_for_update())
    _find(tx, name)
    aliases, jobs, table = schema.aliases, schema.jobs, schema.versions
    trials = schema.rollouts
    for what, user in (
        (
            f"models/{name.model}/aliases/",
            sa.select(aliases.c.id).where(
                aliases.c.model == name.model,
                sa.or_(aliases.c.version == name.version, aliases.c.previous == name.version),
            ),
        ),
        (
            "jobs/",
            sa.select(jobs.c.id).where(
                jobs.c.model == name.model,
                jobs.c.incumbent == name.version,
                jobs.c.state.in_([state.value for state in JobState if not state.ended]),
            ),
        ),
        (
            f"models/{name.model}/rollouts/",
            sa.select(trials.c.id).where(
                trials.c.model == name.model,
                trials.c.state == RolloutState.RUNNING.value,
                sa.or_(trials.c.candidate == name.version, trials.c.incumbent == name.version),
            ),
        ),
        (
            f"models/{name.model}/versions/",
            sa.select(table.c.id).where(
                table.c.model == name.model, table.c.parent == name.version
            ),
        ),
    ):
        found = tx.scalar(user.limit(1))
        if found is not None:
            raise VersionInUse(
                f"{name} is needed by {what}{found}; move, end or delete that first",
                name=name,
                by=what + found,
            )
    tx.run(sa.delete(table).where(table.c.model == name.model, table.c.id == name.version))
    audit.note(tx, "DeleteModelVersion", name)


def accepted_domains(tx: Transaction, name: VersionName) -> tuple[DomainName, ...]:
    """Every domain that a version of this lineage was made for, the oldest first.

    A forced version counts: somebody with the right to do so accepted its domain.

    In one query and without the manifests, each of which tells of every domain: those of a
    thousand versions took 79 s and 3.7 GiB to read.

    Raises:
        VersionNotFound: there is none of this name.
    """
    return tuple(standards(tx, name))


def standards(tx: Transaction, name: VersionName) -> dict[DomainName, VersionName]:
    """By which version of this lineage it shows how much of each domain was lost since.

    The one that was last made for the domain; for a source, the first that knew it. What a
    forced version lost, somebody accepted: it is the new standard for all that it knows.

    In one query and without the manifests, each of which tells of every domain: those of a
    thousand versions took 79 s and 3.7 GiB to read.

    Raises:
        VersionNotFound: there is none of this name.
    """
    chain = _descent(tx, name)
    found: dict[DomainName, VersionName] = {}
    first = VersionName(name.model, chain[0].id)
    for row in chain:
        version = VersionName(name.model, row.id)
        if row.source is not None:
            found.setdefault(DomainName(row.source), first)
        if row.target is not None:
            found[DomainName(row.target)] = version
        if row.origin == Origin.FORCED.value:
            first, found = version, dict.fromkeys(found, version)
    return found


def _descent(tx: Transaction, name: VersionName) -> Sequence[Any]:
    """The version and all it descends from, the oldest first: id, origin, the job's domains.

    Raises:
        VersionNotFound: there is none of this name.
    """
    table, jobs = schema.versions, schema.jobs
    columns = (table.c.id, table.c.origin, table.c.parent, table.c.job, table.c.number)
    chain = (
        sa.select(*columns)
        .where(table.c.model == name.model, table.c.id == name.version)
        .cte(recursive=True)
    )
    parent = sa.and_(table.c.model == name.model, table.c.id == chain.c.parent)
    chain = chain.union_all(sa.select(*columns).join(chain, parent))
    found = tx.rows(
        sa.select(chain.c.id, chain.c.origin, jobs.c.source, jobs.c.target)
        .join(jobs, jobs.c.id == chain.c.job)
        .order_by(chain.c.number)
    )
    if not found:
        raise VersionNotFound(str(name))
    return found


def _find(tx: Transaction, name: VersionName) -> sa.Row[Any]:
    table = schema.versions
    row = tx.row(sa.select(table).where(table.c.model == name.model, table.c.id == name.version))
    if row is None:
        raise VersionNotFound(str(name))
    return row


def version_of(row: Any) -> ModelVersion:
    """A row of ``versions`` as what it stands for.

    Raises:
        VersionUnloadable: its manifest is of a format that only a newer Acclimate reads.
    """
    name = VersionName(row.model, row.id)
    return ModelVersion(
        name=name,
        parent=None if row.parent is None else VersionName(row.model, row.parent),
        job=JobName(row.job),
        origin=Origin(row.origin),
        manifest=manifest_of(row.manifest, of=name),
        forced_by=row.forced_by,
        forced_reason=row.forced_reason,
        created_at=row.created_at,
    )


def manifest_of(stored: Any, *, of: object) -> Manifest:
    """A manifest as it was stored, without what a newer Acclimate added within its format.

    Raises:
        VersionUnloadable: it is of another format.
        pydantic.ValidationError: it is no manifest.
    """
    written = stored.get("format") if isinstance(stored, dict) else None
    if isinstance(written, int) and written > MANIFEST_FORMAT:
        raise VersionUnloadable(
            f"the manifest of {of} is of format {written}, of a newer Acclimate; this one reads "
            f"up to {MANIFEST_FORMAT}: upgrade it",
            format=written,
        )
    return known(Manifest, stored).value
