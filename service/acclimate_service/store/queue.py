"""The queue: jobs accepted once, listed, cancelled, and brought to their one end."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.access import Scope
from acclimate_service.domain.errors import (
    JobEnded,
    NotFound,
    Overloaded,
    RequestIdReused,
    StoreUnavailable,
    VersionNotFound,
)
from acclimate_service.domain.job import Failure, Job, JobDraft, JobKind, JobSpec, JobState, Phase
from acclimate_service.domain.names import DomainName, JobName, ModelName, VersionName
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.stored import known
from acclimate_service.store import audit, events, schema
from acclimate_service.store.engine import Transaction, line
from acclimate_service.store.ids import new_id
from acclimate_service.store.pages import Page, in_scope, page_limit, page_number


@dataclass(frozen=True, kw_only=True)
class Census:
    """How many jobs there are of each kind in each state; ``waited``: seconds, of the oldest."""

    counts: dict[tuple[JobKind, JobState], int]
    waited: float


RETRY_SECONDS = 30.0  # what a client is told to wait while the queue is full
CLOCK_SLACK = dt.timedelta(seconds=5)


def enqueue(
    tx: Transaction,
    draft: JobDraft,
    request_id: str,
    limit: int | None,
    facts: events.Facts,
) -> Job:
    """Accept a job; the same request repeated gives the same one.

    *facts* go into its first event.

    Raises:
        NotFound: the model or a domain does not exist.
        VersionNotFound: the incumbent does not exist.
        RequestIdReused: this request_id belongs to another draft.
        Overloaded: *limit* jobs wait already.
        StoreUnavailable: the model's guard says what only a newer Acclimate knows.
    """
    table = schema.jobs
    if request_id:
        row = tx.row(sa.select(table).where(table.c.request_id == request_id))
        if row is not None:
            if _draft_of(row) != draft:
                raise RequestIdReused(request_id)
            return job_of(row)
    _check_names(tx, draft)
    if limit is not None:
        tx.serialize("queue")
        waiting = tx.scalar(
            sa.select(sa.func.count()).where(table.c.state == JobState.QUEUED.value)
        )
        if waiting >= limit:
            raise Overloaded("the job queue", retry_after=RETRY_SECONDS)
    job = new_id(tx.now)
    tx.run(
        sa.insert(table).values(
            id=job,
            request_id=request_id or None,
            kind=draft.kind.value,
            model=draft.model.model,
            source=None if draft.source is None else draft.source.domain,
            target=None if draft.target is None else draft.target.domain,
            incumbent=None if draft.incumbent is None else draft.incumbent.version,
            spec=draft.spec.model_dump(mode="json"),
            state=JobState.QUEUED.value,
            cancel_requested=False,
            worker="",
            attempt=0,
            released=0,
            events=0,
            summary={},
            report_html="",
            report_json="",
            created_at=tx.now,
        )
    )
    events.append_state(tx, job, JobState.QUEUED, "accepted", facts)
    audit.note(tx, "CreateAdaptationJob", JobName(job), detail=_told(draft))
    return get(tx, JobName(job))


def _told(draft: JobDraft) -> str:
    """What a job is for, for the audit log."""
    domain = draft.target or draft.source
    return f"{draft.kind.value} {draft.model}" + (f" on {domain}" if domain else "")


def _check_names(tx: Transaction, draft: JobDraft) -> None:
    """Hold the model against a concurrent deletion, and see that all names exist."""
    model, domains, versions = schema.models, schema.domains, schema.versions
    query = sa.select(model.c.guard).where(model.c.id == draft.model.model)
    row = tx.row(query.with_for_update())
    if row is None:
        raise NotFound(str(draft.model), see="ListModels")
    if row.guard is not None and (unknown := known(GuardPolicy, row.guard).unknown):
        # The job would be judged by less than what somebody asked for.
        raise StoreUnavailable(
            f"the guard of {draft.model} was set by a newer Acclimate ({', '.join(unknown)}); "
            "ask again where it has been upgraded"
        )
    for domain in (draft.source, draft.target):
        if domain is not None and not tx.rows(
            sa.select(domains.c.id).where(domains.c.id == domain.domain).with_for_update(read=True)
        ):
            raise NotFound(str(domain), see="ListDomains")
    if draft.incumbent is not None and not tx.rows(
        sa.select(versions.c.id).where(
            versions.c.model == draft.incumbent.model,
            versions.c.id == draft.incumbent.version,
            versions.c.model == draft.model.model,
        )
    ):
        raise VersionNotFound(str(draft.incumbent))


def get(tx: Transaction, name: JobName) -> Job:
    """The job.

    Raises:
        NotFound: there is none of this name.
    """
    return job_of(find(tx, name))


def by_request(tx: Transaction, request_id: str) -> Job | None:
    """The job that this request made, if it did."""
    row = tx.row(sa.select(schema.jobs).where(schema.jobs.c.request_id == request_id))
    return None if row is None else job_of(row)


def page(
    tx: Transaction,
    model: ModelName | None,
    domain: DomainName | None,
    within: Scope,
    states: Collection[JobState],
    *,
    page_size: int,
    token: str,
) -> Page[Job]:
    """Jobs of models *within* a scope, newest first; of *model*, that learn *domain*, in *states*.

    None, and no state, leave nothing out.
    """
    table, limit, before = schema.jobs, page_limit(page_size), page_number(token)
    query = sa.select(table).where(in_scope(table.c.model, within))
    if model is not None:
        query = query.where(table.c.model == model.model)
    if domain is not None:  # a first version's job has a source alone
        learnt = sa.func.coalesce(table.c.target, table.c.source)
        query = query.where(learnt == domain.domain)
    if states:
        query = query.where(table.c.state.in_([state.value for state in states]))
    if before is not None:
        query = query.where(table.c.number < before)
    rows = tx.rows(query.order_by(table.c.number.desc()).limit(limit + 1))
    return Page(
        items=tuple(job_of(row) for row in rows[:limit]),
        next_token=str(rows[limit - 1].number) if len(rows) > limit else "",
    )


def depth(tx: Transaction) -> dict[JobState, int]:
    """How many jobs are in each state; zeros included."""
    table = schema.jobs
    counts = dict.fromkeys(JobState, 0)
    for state, count in tx.rows(sa.select(table.c.state, sa.func.count()).group_by(table.c.state)):
        counts[JobState(state)] = count
    return counts


def census(tx: Transaction) -> Census:
    """The jobs there are, counted by kind and state, and how long the oldest has waited."""
    table = schema.jobs
    counted = tx.rows(
        sa.select(table.c.kind, table.c.state, sa.func.count()).group_by(
            table.c.kind, table.c.state
        )
    )
    oldest = tx.scalar(
        sa.select(sa.func.min(table.c.created_at)).where(table.c.state == JobState.QUEUED.value)
    )
    waited = 0.0 if oldest is None else (tx.now - oldest).total_seconds()
    return Census(
        counts={(JobKind(kind), JobState(state)): count for kind, state, count in counted},
        waited=max(0.0, waited),
    )


def request_cancel(tx: Transaction, name: JobName) -> Job:
    """Cancel: at once if nobody works on the job, else as soon as its worker hears of it.

    Cancelling what is cancelled changes nothing.

    Raises:
        NotFound: there is no such job.
        JobEnded: the job reached another end first.
    """
    row = find(tx, name, lock=True)
    state = JobState(row.state)
    if state is JobState.CANCELLED:
        return job_of(row)
    if state.ended:
        raise JobEnded(str(name), state.value)
    table = schema.jobs
    if not row.cancel_requested:
        audit.note(tx, "CancelAdaptationJob", name)
    idle = tx.row(sa.select(table.c.id).where(table.c.id == name.job, claimable(tx.pulse)))
    if idle is not None:
        return conclude(tx, name.job, JobState.CANCELLED, "cancelled before it was finished")
    if not row.cancel_requested:
        tx.run(sa.update(table).where(table.c.id == name.job).values(cancel_requested=True))
        events.append_state(tx, name.job, state, "cancelling", {"cancel_requested": True})
    return get(tx, name)


def claimable(pulse: dt.datetime) -> sa.ColumnElement[bool]:
    """The condition that nobody works on a job that has not ended.

    A lease that begins in the future was written before the database's clock was set back,
    or the machine was restarted; it would otherwise hold its job for as long as that.
    """
    table = schema.jobs
    live = sa.and_(table.c.lease_until > pulse, table.c.lease_from <= pulse + CLOCK_SLACK)
    return sa.or_(
        table.c.state == JobState.QUEUED.value,
        sa.and_(table.c.state == JobState.RUNNING.value, ~live),
    )


def conclude(
    tx: Transaction,
    job: str,
    state: JobState,
    message: str,
    *,
    failure: Failure | None = None,
    **values: Any,
) -> Job:
    """Bring a job, whose row the transaction has locked, to its end.

    What only a resumed job would have read goes with it.
    """
    tx.run(
        sa.update(schema.jobs)
        .where(schema.jobs.c.id == job)
        .values(
            state=state.value,
            ended_at=tx.now,
            lease_from=None,
            lease_until=None,
            failure_reason=None if failure is None else failure.reason,
            failure_message=None if failure is None else line(failure.message),
            **values,
        )
    )
    tx.run(sa.delete(schema.checkpoints).where(schema.checkpoints.c.job == job))
    facts = {} if failure is None else {"reason": failure.reason}
    events.append_state(tx, job, state, message, facts)
    return get(tx, JobName(job))


def find(tx: Transaction, name: JobName, *, lock: bool = False) -> sa.Row[Any]:
    """The job's row; with *lock*, nobody else writes it until the transaction ends.

    Raises:
        NotFound: there is no such job.
    """
    query = sa.select(schema.jobs).where(schema.jobs.c.id == name.job)
    row = tx.row(query.with_for_update() if lock else query)
    if row is None:
        raise NotFound(str(name), see="ListAdaptationJobs")
    return row


def job_of(row: Any) -> Job:
    """A row of ``jobs`` as what it stands for."""
    failure = None
    if row.failure_reason is not None:
        failure = Failure(reason=row.failure_reason, message=row.failure_message)
    return Job(
        name=JobName(row.id),
        draft=_draft_of(row),
        request_id=row.request_id or "",
        state=JobState(row.state),
        phase=Phase.known(row.phase),
        attempt=row.attempt,
        cancel_requested=row.cancel_requested,
        version=None if row.version is None else VersionName(row.model, row.version),
        failure=failure,
        summary=row.summary,
        report_html=row.report_html,
        report_json=row.report_json,
        reads_up_to=row.reads_up_to,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )


def _draft_of(row: Any) -> JobDraft:
    return JobDraft(
        kind=JobKind(row.kind),
        model=ModelName(row.model),
        source=None if row.source is None else DomainName(row.source),
        target=None if row.target is None else DomainName(row.target),
        incumbent=None if row.incumbent is None else VersionName(row.model, row.incumbent),
        spec=known(JobSpec, row.spec).value,
    )
