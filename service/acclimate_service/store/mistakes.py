"""Taking back what was made by mistake: a model, a domain or a batch that nothing rests on.

What a version was made of, what judged one, and what a job may be reading stays; so does
an id that ever named a version, since versions never change. Files go when the store is
next reconciled.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.errors import InUse, NotFound
from acclimate_service.domain.job import JobState
from acclimate_service.domain.names import BatchName, DomainName, JobName, ModelName
from acclimate_service.store import audit, batches, readers, schema
from acclimate_service.store.engine import Transaction

_UNENDED = [state.value for state in JobState if not state.ended]


def delete_model(tx: Transaction, name: ModelName) -> None:
    """Delete a model that never had a version, and its jobs with their reports.

    Raises:
        NotFound: there is no such model.
        InUse: it has or had a version, or a job of it has not ended.
    """
    models, jobs = schema.models, schema.jobs
    row = tx.row(sa.select(models).where(models.c.id == name.model).with_for_update())
    if row is None:
        raise NotFound(str(name), see="ListModels")
    if row.versions:
        raise InUse(
            f"{name} has had {row.versions} versions, whose names are never given again, so it "
            "stays; its aliases and versions can be deleted"
        )
    _see_that_none_runs(tx, str(name), jobs.c.model == name.model)
    _drop_jobs(tx, jobs.c.model == name.model)
    tx.run(sa.delete(models).where(models.c.id == name.model))
    audit.note(tx, "DeleteModel", name)


def delete_domain(tx: Transaction, name: DomainName) -> None:
    """Delete a domain that nothing rests on, with its images and the jobs that came to nothing.

    Raises:
        NotFound: there is no such domain.
        InUse: it is a model's source, a job on it has not ended, or one was judged.
    """
    tx.serialize(batches.LOCK)
    domains, models, jobs = schema.domains, schema.models, schema.jobs
    held = sa.select(domains.c.id).where(domains.c.id == name.domain).with_for_update()
    if tx.row(held) is None:
        raise NotFound(str(name), see="ListDomains")
    of_model = tx.scalar(
        sa.select(models.c.id).where(models.c.source_domain == name.domain).limit(1)
    )
    if of_model is not None:
        by = f"models/{of_model}"
        raise InUse(f"{name} is the source of {by}, by which it judges what is forgotten", by=by)
    on_it = _on(name)
    _see_that_none_runs(tx, str(name), on_it)
    of_it = jobs.c.id.in_(sa.select(schema.looks.c.job).where(schema.looks.c.domain == name.domain))
    judged = tx.scalar(sa.select(jobs.c.id).where(sa.or_(on_it, of_it), _judged()).limit(1))
    if judged is not None:
        raise InUse(f"{JobName(judged)} was judged with images of {name}", by=JobName(judged))
    _drop_jobs(tx, on_it)
    table = schema.batches
    for row in tx.rows(sa.select(table.c.id).where(table.c.domain == name.domain)):
        batches.drop(tx, row.id)
    tx.run(sa.delete(domains).where(domains.c.id == name.domain))
    audit.note(tx, "DeleteDomain", name)


def delete_batch(tx: Transaction, name: BatchName) -> None:
    """Take an upload back, as long as no job can have read it.

    Raises:
        NotFound: there is no such batch.
        InUse: a job that reads it has not ended, or was judged.
    """
    tx.serialize(batches.LOCK)
    if batches.find(tx, name).committed:
        unended_or_judged = sa.or_(schema.jobs.c.state.in_(_UNENDED), _judged())
        reader = readers.of_batch(tx, name.batch, unended_or_judged)
        if reader is not None:
            raise InUse(
                f"{reader} learns, or has learnt, from {name}; `acclimate store erase` "
                "takes single images out",
                by=reader,
            )
    batches.drop(tx, name.batch)
    audit.note(tx, "DeleteLabeledBatch", name)


def models_reading(domains: Any) -> Any:
    """The models whose jobs may read any of *domains* (a query of their ids).

    A job reads its own two domains, and all that its model was adapted to before.
    """
    jobs, models = schema.jobs, schema.models
    return sa.union(
        sa.select(jobs.c.model).where(
            sa.or_(jobs.c.source.in_(domains), jobs.c.target.in_(domains))
        ),
        sa.select(models.c.id).where(models.c.source_domain.in_(domains)),
    )


def _on(domain: DomainName) -> Any:
    """Whether a job has *domain* as its source or its target."""
    jobs = schema.jobs
    return sa.or_(jobs.c.source == domain.domain, jobs.c.target == domain.domain)


def _judged() -> Any:
    """Whether a job came to a verdict: it has looked at holdouts, and may have made a version."""
    jobs = schema.jobs
    made, looked = sa.select(schema.versions.c.job), sa.select(schema.looks.c.job)
    return sa.or_(jobs.c.id.in_(made), jobs.c.id.in_(looked))


def _see_that_none_runs(tx: Transaction, name: str, concerned: Any) -> None:
    jobs = schema.jobs
    job = tx.scalar(sa.select(jobs.c.id).where(concerned, jobs.c.state.in_(_UNENDED)).limit(1))
    if job is not None:
        raise InUse(f"{JobName(job)} works on {name}; wait for its end or cancel it", by=job)


def _drop_jobs(tx: Transaction, concerned: Any) -> None:
    """Delete ended jobs, with all that is kept of them but the audit log."""
    jobs = schema.jobs
    ids = sa.select(jobs.c.id).where(concerned)
    for table in (schema.events, schema.checkpoints, schema.looks):
        tx.run(sa.delete(table).where(table.c.job.in_(ids)))
    tx.run(sa.delete(jobs).where(concerned))
