"""Who has read an image or an upload: jobs, versions that were made.

And how an image is withheld from jobs to come, and given back to them.

A job reads what was committed before its first attempt, of its own domains and of all
that its incumbent was made for: what was learnt is shown again, and judged again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.errors import ImageInUse, InvalidSpec, JobEnded, NotFound
from acclimate_service.domain.examples import Split
from acclimate_service.domain.job import EventKind, JobState
from acclimate_service.domain.names import BatchName, JobName, VersionName
from acclimate_service.store import audit, batches, events, queue, schema
from acclimate_service.store.engine import Database, Transaction

POLL_SECONDS = 0.25

_UNENDED = [state.value for state in JobState if not state.ended]
_REFUSED = [JobState.REJECTED.value, JobState.INCONCLUSIVE.value]
_READING = [  # what says which images a job reads
    schema.jobs.c[name]
    for name in ("id", "model", "source", "target", "incumbent", "reads_up_to", "ended_at")
]
_UPLOAD = (  # what says of an upload who reads it
    schema.batches.c.committed.label("batch_committed"),
    schema.batches.c.touched_at.label("committed_at"),
    schema.batches.c.commit_number,
)
_TOLD = 10  # of many jobs, how many a message names


@dataclass(frozen=True, kw_only=True)
class Lineages:
    """All versions with the domains of their jobs, parents before what descends from them."""

    versions: Sequence[Any]

    @classmethod
    def of(cls, tx: Transaction) -> Lineages:
        """Those of every model."""
        table, jobs = schema.versions, schema.jobs
        columns = (table.c.model, table.c.id, table.c.parent, table.c.created_at)
        query = sa.select(*columns, jobs.c.source, jobs.c.target).join(
            jobs, jobs.c.id == table.c.job
        )
        return cls(versions=tx.rows(query.order_by(table.c.number)))

    def knowing(self, domain: str) -> dict[VersionName, Any]:
        """The versions in whose lineage a job was on the domain."""
        found: dict[VersionName, Any] = {}
        for made in self.versions:
            if domain in (made.source, made.target) or _parent(made) in found:
                found[VersionName(made.model, made.id)] = made
        return found

    def taught(
        self, rows: Iterable[Any]
    ) -> tuple[tuple[VersionName, ...], tuple[VersionName, ...]]:
        """The versions that learnt from an image's *rows*, and those that were measured by it.

        A version counts that knows the image's domain, and was made after its batch was
        committed. What descends from a trained version was trained on all that it was.
        """
        trained: dict[VersionName, None] = {}
        measured: dict[VersionName, None] = {}
        for row in rows:
            if row.batch_committed:
                into = trained if Split(row.split) is Split.TRAIN else measured
                for name, made in self.knowing(row.domain).items():
                    if made.created_at >= row.committed_at:
                        into[name] = None
        for made in self.versions:
            if _parent(made) in trained:
                trained[VersionName(made.model, made.id)] = None
        return tuple(trained), tuple(name for name in measured if name not in trained)


def in_use(jobs: Sequence[JobName], then: str) -> ImageInUse:
    """The refusal that names these jobs, and says what *then*."""
    names = ", ".join(map(str, jobs[:_TOLD]))
    more = f" and {len(jobs) - _TOLD} more" if len(jobs) > _TOLD else ""
    return ImageInUse(f"{names}{more}: {then}", jobs=names)


def rows_of(tx: Transaction, content: str) -> Sequence[Any]:
    """The image's rows, each with what its batch says of when it was committed."""
    examples, uploads = schema.examples, schema.batches
    return tx.rows(
        sa.select(examples, *_UPLOAD)
        .join(uploads, uploads.c.id == examples.c.batch)
        .where(examples.c.content == content)
    )


def unended(tx: Transaction, rows: Sequence[Any], lineages: Lineages) -> tuple[JobName, ...]:
    """The jobs that have begun, have not ended, and may have read the image.

    A job that waits for its first attempt has read nothing yet. Where the image is
    withheld, only those have read it that are being cancelled for that.
    """
    reading = _Reading(rows, lineages)
    return tuple(
        JobName(job.id)
        for job in _begun(tx)
        if any(
            reading.may_have(job, row) and (row.committed or job.cancel_requested) for row in rows
        )
    )


def _begun(tx: Transaction) -> Sequence[Any]:
    """The jobs that have had an attempt and have not ended."""
    jobs = schema.jobs
    begun = sa.select(*_READING, jobs.c.cancel_requested).where(
        jobs.c.state.in_(_UNENDED), jobs.c.attempt > 0
    )
    return tx.rows(begun.order_by(jobs.c.number))


def of_batch(tx: Transaction, batch: str, concerned: Any) -> JobName | None:
    """One of the *concerned* jobs that has read an upload or may yet; None if there is none.

    A job that waits for its first attempt will read all that is there then.
    """
    jobs, uploads = schema.jobs, schema.batches
    upload = tx.row(sa.select(uploads.c.domain, *_UPLOAD).where(uploads.c.id == batch))
    reading = _Reading([upload], Lineages.of(tx))
    found = tx.rows(sa.select(*_READING).where(concerned).order_by(jobs.c.number))
    return next((JobName(job.id) for job in found if reading.may_have(job, upload)), None)


def refused(tx: Transaction, rows: Sequence[Any], lineages: Lineages) -> dict[JobName, Any]:
    """The jobs that may have read the image and keep a candidate to force; their summaries."""
    jobs, made = schema.jobs, sa.select(schema.versions.c.job)
    ended = sa.select(*_READING).where(jobs.c.state.in_(_REFUSED), jobs.c.id.not_in(made))
    reading = _Reading(rows, lineages)
    found = {}
    for job in tx.rows(ended.order_by(jobs.c.number)):
        if any(reading.may_have(job, row) for row in rows):
            summary = tx.scalar(sa.select(jobs.c.summary).where(jobs.c.id == job.id))
            if "manifest" in summary:
                found[JobName(job.id)] = summary
    return found


class _Reading:
    """Which job may have read which of an image's rows, or of an upload."""

    def __init__(self, rows: Sequence[Any], lineages: Lineages) -> None:
        self._knowing = {row.domain: lineages.knowing(row.domain) for row in rows}

    def may_have(self, job: Any, row: Any) -> bool:
        if not row.batch_committed:
            return False
        if job.ended_at is not None and job.ended_at < row.committed_at:
            return False
        # What an older Acclimate wrote has no number: it may count.
        if None not in (row.commit_number, job.reads_up_to) and row.commit_number > job.reads_up_to:
            return False
        incumbent = None if job.incumbent is None else VersionName(job.model, job.incumbent)
        return row.domain in (job.source, job.target) or incumbent in self._knowing[row.domain]


def cancel(database: Database, content: str, *, until: float) -> tuple[JobName, ...]:
    """Withhold the image from all jobs to come, and cancel those that may have read it.

    Both at once: none begins in between that reads it, and none that has read it makes a
    version, since a wish to cancel wins over any other end.

    Args:
        until: when waiting for their ends ends, on ``time.monotonic``.

    Returns:
        Those that were cancelled; all have ended.

    Raises:
        ImageInUse: one has not ended by then. The image stays withheld.
        StoreUnavailable: the store is out of reach.
    """
    found = database.write(_withhold, content)
    left = [job for job in found if not _has_ended(database, job)]
    while left:
        if time.monotonic() >= until:
            raise in_use(
                left,
                "cancelled, but not ended yet; no other gets the image: call again, or have "
                "`acclimate store give-back` let jobs have it",
            )
        time.sleep(POLL_SECONDS)
        left = [job for job in left if not _has_ended(database, job)]
    return found


def give_back(tx: Transaction, content: str, who: str, why: str) -> tuple[BatchName, ...]:
    """Let jobs to come have an image that was withheld, and not erased; the uploads it is in.

    A job has an image from its beginning to its end, or not at all: so not beside one that
    began without it.

    Raises:
        ImageInUse: such a job has not ended.
        InvalidSpec: nobody is named, or no reason is given.
        NotFound: no image of this content is withheld.
    """
    if not (who.strip() and why.strip()):
        raise InvalidSpec("giving an image back needs a name and a reason")
    tx.serialize(batches.LOCK)
    tx.hold(schema.jobs)
    examples = schema.examples
    rows = [row for row in rows_of(tx, content) if row.batch_committed]
    withheld = [row for row in rows if not row.committed]
    if not withheld:
        raise NotFound(
            f"image of content {content}",
            kind="withheld ",
            see="the ways to name one in `acclimate store give-back --help`",
        )
    reading = _Reading(withheld, Lineages.of(tx))
    busy = tuple(
        JobName(job.id) for job in _begun(tx) if any(reading.may_have(job, row) for row in withheld)
    )
    if busy:
        raise in_use(busy, "began without the image; give it back when they have ended")
    anew = {row.domain for row in rows if row.committed}  # uploaded again meanwhile
    for row in withheld:
        this = sa.and_(examples.c.batch == row.batch, examples.c.content == content)
        if row.domain in anew:
            tx.run(sa.delete(examples).where(this))
        else:
            tx.run(sa.update(examples).where(this).values(committed=True))
    subject = audit.image(content)
    audit.record(tx, who=who, action=audit.GIVEN_BACK, subject=subject, why=why, origin="cli")
    return tuple(BatchName(row.domain, row.batch) for row in withheld)


def _withhold(tx: Transaction, content: str) -> tuple[JobName, ...]:
    tx.serialize(batches.LOCK)
    tx.hold(schema.jobs)
    found = unended(tx, rows_of(tx, content), Lineages.of(tx))
    examples = schema.examples
    tx.run(sa.update(examples).where(examples.c.content == content).values(committed=False))
    for job in found:
        events.append(
            tx,
            schema.jobs.c.id == job.job,
            kind=EventKind.WARNING,
            phase=None,
            message="an image that it may have read is being erased, so it is cancelled",
            facts={},
        )
        queue.request_cancel(tx, job)
    return found


def _has_ended(database: Database, job: JobName) -> bool:
    """Whether the job has ended; it is ended here if its worker is gone."""
    with contextlib.suppress(JobEnded):
        return database.write(queue.request_cancel, job).state.ended
    return True


def _parent(version: Any) -> VersionName | None:
    return None if version.parent is None else VersionName(version.model, version.parent)
