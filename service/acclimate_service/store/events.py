"""A job's story: events numbered from 1 without gaps, written by whoever holds the job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic
import sqlalchemy as sa

from acclimate_service.domain.errors import NotFound
from acclimate_service.domain.job import EventKind, JobEvent, JobState, Phase
from acclimate_service.domain.names import JobName
from acclimate_service.store import schema
from acclimate_service.store.engine import Transaction, line

Facts = Mapping[str, pydantic.JsonValue]


def append(
    tx: Transaction,
    condition: sa.ColumnElement[bool],
    *,
    kind: EventKind,
    phase: Phase | None,
    message: str,
    facts: Facts,
) -> JobEvent | None:
    """Add an event to the one job for which *condition* holds; None if there is none.

    The number is taken from the job's own row, whose lock orders two writers.
    """
    row = tx.row(
        sa.update(schema.jobs)
        .where(condition)
        .values(events=schema.jobs.c.events + 1)
        .returning(schema.jobs.c.id, schema.jobs.c.events)
    )
    if row is None:
        return None
    event = tx.row(
        sa.insert(schema.events)
        .values(
            job=row.id,
            sequence=row.events,
            at=tx.now,
            kind=kind.value,
            phase=None if phase is None else phase.value,
            message=line(message),
            facts=dict(facts),
        )
        .returning(*schema.events.c)
    )
    return _event_of(event)


def append_state(tx: Transaction, job: str, state: JobState, message: str, facts: Facts) -> None:
    """Tell that the job with the id *job* is now in *state*."""
    append(
        tx,
        schema.jobs.c.id == job,
        kind=EventKind.STATE,
        phase=None,
        message=message,
        facts={"state": state.value, **facts},
    )


def last(tx: Transaction, job: str) -> str:
    """The message of the latest event of the job with the id *job*."""
    table = schema.events
    query = sa.select(table.c.message).where(table.c.job == job)
    message: str = tx.scalar(query.order_by(table.c.sequence.desc()).limit(1))
    return message


def after(tx: Transaction, name: JobName, sequence: int, limit: int) -> list[JobEvent]:
    """The events beyond *sequence*, in order.

    Raises:
        NotFound: there is no such job.
    """
    table = schema.events
    rows = tx.rows(
        sa.select(table)
        .where(table.c.job == name.job, table.c.sequence > sequence)
        .order_by(table.c.sequence)
        .limit(limit)
    )
    if not rows and tx.row(sa.select(schema.jobs.c.id).where(schema.jobs.c.id == name.job)) is None:
        raise NotFound(str(name), see="ListAdaptationJobs")
    return [_event_of(row) for row in rows]


def _event_of(row: Any) -> JobEvent:
    return JobEvent(
        job=JobName(row.job),
        sequence=row.sequence,
        at=row.at,
        kind=EventKind.known(row.kind),
        phase=Phase.known(row.phase),
        message=row.message,
        facts=row.facts,
    )
