"""Leases: a worker's right to write to a job, and what it may write while it lasts.

Every write names worker and attempt. ``attempt`` grows with each claim, so a worker
that lost its lease, however late it wakes, matches no row and writes nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

import pydantic
import sqlalchemy as sa

from acclimate_service.domain.errors import AttemptsExhausted, LeaseLost
from acclimate_service.domain.job import (
    EventKind,
    Failure,
    Job,
    JobEvent,
    JobSpec,
    JobState,
    Lease,
    Phase,
)
from acclimate_service.domain.names import JobName
from acclimate_service.domain.stored import known
from acclimate_service.store import batches, events, queue, schema
from acclimate_service.store.engine import Transaction, line


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a finished step of a job left for whoever resumes it. ``blobs``: role to digest."""

    key: str
    record: dict[str, pydantic.JsonValue]
    blobs: dict[str, str]
    at: dt.datetime


def claim(
    tx: Transaction, worker: str, lease_seconds: float, max_attempts: int
) -> tuple[Job, Lease] | None:
    """The oldest job that nobody works on, leased to *worker*; None if there is none.

    On the way, abandoned jobs that need no worker find their end: those whose
    cancellation was asked for, and those whose workers died *max_attempts* times. A job
    that asks for what this worker does not know is left to a newer one, and says so.
    The first attempt settles which uploads count for the job, whoever resumes it.
    """
    table = schema.jobs
    passed = 0  # the number of the last job that was left
    while True:
        row = tx.row(
            sa.select(table)
            .where(queue.claimable(tx.pulse), table.c.number > passed)
            .order_by(table.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if row is None:
            return None
        if row.cancel_requested:
            queue.conclude(tx, row.id, JobState.CANCELLED, "cancelled; its worker was gone")
            continue
        died = row.attempt - row.released
        if died >= max_attempts:
            error = AttemptsExhausted(
                f"the worker died or stalled {died} times; last heard: {events.last(tx, row.id)}"
            )
            queue.conclude(
                tx,
                row.id,
                JobState.FAILED,
                str(error),
                failure=Failure(reason=error.reason, message=str(error)),
            )
            continue
        if unknown := known(JobSpec, row.spec).unknown:
            _leave_to_a_newer_one(tx, row.id, unknown)
            passed = row.number
            continue
        # `claimable` is asked twice so that of two racing workers the later one
        # updates no row, whatever the database's locks are worth.
        taken = tx.run(
            sa.update(table)
            .where(table.c.id == row.id, queue.claimable(tx.pulse))
            .values(
                state=JobState.RUNNING.value,
                phase=None,
                worker=worker,
                attempt=table.c.attempt + 1,
                lease_from=tx.pulse,
                lease_until=tx.pulse + dt.timedelta(seconds=lease_seconds),
                reads_up_to=sa.func.coalesce(table.c.reads_up_to, batches.last_commit(tx)),
                started_at=sa.func.coalesce(table.c.started_at, sa.literal(tx.now, schema.Instant)),
            )
        )
        if taken:
            name = JobName(row.id)
            lease = Lease(job=name, worker=worker, attempt=row.attempt + 1)
            message = "started" if row.attempt == 0 else f"resumed, attempt {lease.attempt}"
            events.append_state(
                tx, row.id, JobState.RUNNING, message, {"attempt": lease.attempt, "worker": worker}
            )
            return queue.get(tx, name), lease


def _leave_to_a_newer_one(tx: Transaction, job: str, unknown: tuple[str, ...]) -> None:
    """Tell, once, why the job waits."""
    message = f"waits for a newer worker: it asks for {', '.join(unknown)}"
    if events.last(tx, job) != line(message):
        events.append(
            tx,
            schema.jobs.c.id == job,
            kind=EventKind.WARNING,
            phase=None,
            message=message,
            facts={"unknown": list(unknown)},
        )


def held(lease: Lease) -> sa.ColumnElement[bool]:
    """The fence: the condition that *lease* still holds its job."""
    table = schema.jobs
    return sa.and_(
        table.c.id == lease.job.job,
        table.c.state == JobState.RUNNING.value,
        table.c.worker == lease.worker,
        table.c.attempt == lease.attempt,
    )


def lost(lease: Lease) -> LeaseLost:
    """What a worker is told whose lease the fence refuses."""
    return LeaseLost(
        f"{lease.job} is no longer held by {lease.worker}, attempt {lease.attempt}",
        job=lease.job,
        worker=lease.worker,
        attempt=lease.attempt,
    )


def heartbeat(tx: Transaction, lease: Lease, lease_seconds: float) -> Job:
    """Renew the lease; the job as it stands, a wish to cancel it included.

    Raises:
        LeaseLost: another worker holds the job, or it ended.
    """
    row = tx.row(
        sa.update(schema.jobs)
        .where(held(lease))
        .values(lease_from=tx.pulse, lease_until=tx.pulse + dt.timedelta(seconds=lease_seconds))
        .returning(*schema.jobs.c)
    )
    if row is None:
        raise lost(lease)
    return queue.job_of(row)


def release(tx: Transaction, lease: Lease, *, spent: bool = False, why: str = "") -> None:
    """Give the job back, for any worker to resume; or end it, if it is cancelled.

    *spent* counts the attempt as one that died, *why* says of what.

    Raises:
        LeaseLost: another worker holds the job, or it ended.
    """
    table = schema.jobs
    row = tx.row(
        sa.update(table)
        .where(held(lease))
        .values(
            state=JobState.QUEUED.value,
            phase=None,
            released=table.c.released + (0 if spent else 1),
            lease_from=None,
            lease_until=None,
        )
        .returning(*table.c)
    )
    if row is None:
        raise lost(lease)
    if row.cancel_requested:
        queue.conclude(tx, row.id, JobState.CANCELLED, "cancelled")
    else:
        message = f"given back by its worker: {line(why)}" if why else "given back by its worker"
        events.append_state(tx, row.id, JobState.QUEUED, message, {"spent": spent})


def record_event(
    tx: Transaction,
    lease: Lease,
    *,
    kind: EventKind,
    phase: Phase | None,
    message: str,
    facts: events.Facts,
) -> JobEvent:
    """Add to the job's story.

    Raises:
        LeaseLost: another worker holds the job, or it ended.
    """
    event = events.append(tx, held(lease), kind=kind, phase=phase, message=message, facts=facts)
    if event is None:
        raise lost(lease)
    return event


def enter(tx: Transaction, lease: Lease, phase: Phase) -> None:
    """Say what the job is doing now.

    Raises:
        LeaseLost: another worker holds the job, or it ended.
    """
    record_event(
        tx,
        lease,
        kind=EventKind.PHASE,
        phase=phase,
        message=phase.value.lower(),
        facts={},
    )
    tx.run(sa.update(schema.jobs).where(held(lease)).values(phase=phase.value))


def checkpoint(
    tx: Transaction,
    lease: Lease,
    key: str,
    record: Mapping[str, pydantic.JsonValue],
    blobs: Mapping[str, str],
) -> None:
    """Keep what a finished step made, in place of what was kept under *key* before.

    Raises:
        LeaseLost: another worker holds the job, or it ended.
    """
    # The row is locked, not only looked at: a claim that comes now waits for this.
    if tx.row(sa.select(schema.jobs.c.id).where(held(lease)).with_for_update()) is None:
        raise lost(lease)
    table = schema.checkpoints
    tx.run(sa.delete(table).where(table.c.job == lease.job.job, table.c.key == key))
    tx.run(
        sa.insert(table).values(
            job=lease.job.job, key=key, record=dict(record), blobs=dict(blobs), at=tx.now
        )
    )


def checkpoints(tx: Transaction, name: JobName) -> dict[str, Checkpoint]:
    """What is kept for a resumed job, by key; empty once the job has ended."""
    table = schema.checkpoints
    return {
        row.key: Checkpoint(key=row.key, record=row.record, blobs=row.blobs, at=row.at)
        for row in tx.rows(sa.select(table).where(table.c.job == name.job).order_by(table.c.at))
    }
