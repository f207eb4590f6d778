"""Letting go of what nobody needs any more. Files follow when the store is reconciled."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.errors import VersionInUse
from acclimate_service.domain.job import JobState
from acclimate_service.domain.names import BatchName, JobName, VersionName
from acclimate_service.domain.retention import Removed, RetentionPolicy
from acclimate_service.store import batches, schema, versions
from acclimate_service.store.engine import Database, Transaction

_UNENDED = [state.value for state in JobState if not state.ended]
_REFUSED = [JobState.REJECTED.value, JobState.INCONCLUSIVE.value]


class _Rehearsed(Exception):
    def __init__(self, removed: Removed) -> None:
        self.removed = removed


def tidy(database: Database, policy: RetentionPolicy, *, rehearse: bool = False) -> Removed:
    """Remove what *policy* lets go, in one transaction; with *rehearse*, only say what.

    Raises:
        StoreUnavailable: the database is out of reach; nothing was removed.
    """

    def work(tx: Transaction) -> Removed:
        removed = _tidy(tx, policy)
        if rehearse:
            raise _Rehearsed(removed)
        return removed

    try:
        return database.write(work)
    except _Rehearsed as told:
        return told.removed


def _tidy(tx: Transaction, policy: RetentionPolicy) -> Removed:
    gone = _versions(tx, policy.versions)  # first: what they needed may go with them
    return Removed(
        versions=gone,
        candidates=_candidates(tx, policy.candidate_days),
        reports=_reports(tx, policy.report_days),
        batches=_batches(tx, policy.batch_days),
    )


def _versions(tx: Transaction, kept: int | None) -> tuple[VersionName, ...]:
    """Remove all but the newest *kept* of each model, and but those that are needed."""
    if kept is None:
        return ()
    table = schema.versions
    place = sa.func.row_number().over(partition_by=table.c.model, order_by=table.c.number.desc())
    ranked = sa.select(table.c.model, table.c.id, table.c.number, place.label("place")).subquery()
    older = sa.select(ranked.c.model, ranked.c.id).where(ranked.c.place > kept)
    gone = []
    # The newest first, so that a version is asked about after those that descend from it.
    for row in tx.rows(older.order_by(ranked.c.model, ranked.c.number.desc())):
        name = VersionName(row.model, row.id)
        try:
            versions.delete(tx, name)
        except VersionInUse:
            continue
        gone.append(name)
    return tuple(gone)


def _candidates(tx: Transaction, days: float | None) -> tuple[JobName, ...]:
    """Forget how to make versions of what the guard refused long ago."""
    if days is None:
        return ()
    table = schema.jobs
    made = sa.select(schema.versions.c.job)  # by force: it needs nothing of the job any more
    old = tx.rows(
        sa.select(table.c.id, table.c.summary)
        .where(table.c.state.in_(_REFUSED), table.c.ended_at < _before(tx, days))
        .where(table.c.id.not_in(made))
        .order_by(table.c.number)
    )
    gone = []
    for row in old:
        if "manifest" in row.summary:
            summary = {key: value for key, value in row.summary.items() if key != "manifest"}
            tx.run(sa.update(table).where(table.c.id == row.id).values(summary=summary))
            gone.append(JobName(row.id))
    return tuple(gone)


def _reports(tx: Transaction, days: float | None) -> tuple[JobName, ...]:
    if days is None:
        return ()
    table = schema.jobs
    rows = tx.rows(
        sa.update(table)
        .where(table.c.report_json != "", table.c.ended_at < _before(tx, days))
        .values(report_html="", report_json="")
        .returning(table.c.id)
    )
    return tuple(sorted((JobName(row.id) for row in rows), key=str))


def _batches(tx: Transaction, days: float | None) -> tuple[BatchName, ...]:
    """Remove the old batches of domains that nothing rests on."""
    if days is None:
        return ()
    tx.serialize(batches.LOCK)
    table = schema.batches
    rows = tx.rows(
        sa.select(table.c.domain, table.c.id)
        .where(table.c.committed, table.c.touched_at < _before(tx, days))
        .where(table.c.domain.not_in(_needed_domains()))
        .order_by(table.c.number)
    )
    names = tuple(BatchName(row.domain, row.id) for row in rows)
    for name in names:
        batches.drop(tx, name.batch)
    return names


def _needed_domains() -> Any:
    """The domains that a model came from, that a version was made for, or that a job is on."""
    jobs, models, made = schema.jobs, schema.models, schema.versions
    rested_on = sa.or_(jobs.c.state.in_(_UNENDED), jobs.c.id.in_(sa.select(made.c.job)))
    queries = [sa.select(models.c.source_domain.label("domain"))]
    queries += [sa.select(column).where(rested_on) for column in (jobs.c.source, jobs.c.target)]
    every = sa.union(*queries).subquery()
    # Without the NULLs, beside which NOT IN is never true.
    return sa.select(every.c.domain).where(every.c.domain.is_not(None))


def _before(tx: Transaction, days: float) -> dt.datetime:
    return tx.now - dt.timedelta(days=days)
