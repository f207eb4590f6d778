"""Erasing an image: its rows, its files, the reports that show it; and what it has taught.

Weights cannot unlearn. Versions that were trained on the image, or descend from one
that was, are listed, so that somebody can decide what becomes of them. A backup made
before still holds the image.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.errors import BlobNotFound, ImageInUse, InvalidSpec, NotFound
from acclimate_service.domain.names import BatchName, JobName, VersionName
from acclimate_service.store import audit, batches, mistakes, readers, schema
from acclimate_service.store.blobs import Blobs
from acclimate_service.store.engine import Database, Transaction


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What became of one image. ``content`` is the sha256 of its upright RGB pixels."""

    content: str
    batches: tuple[BatchName, ...]  # that held it
    files: tuple[str, ...]  # digests of the blobs removed
    reports: tuple[JobName, ...]  # removed, since they showed it
    candidates: tuple[JobName, ...]  # refused ones that read it: they can be forced no more
    cancelled: tuple[JobName, ...] = ()  # had read it, and ended by being cancelled
    trained: tuple[VersionName, ...]  # learnt from it, themselves or by descent
    measured: tuple[VersionName, ...]  # chosen or judged by it


def erase(
    database: Database,
    blobs: Blobs,
    content: str,
    *,
    who: str,
    why: str,
    cancel_jobs: float | None = None,
) -> Erasure:
    """Erase the image of this content from every domain, and record that it was done.

    Rows go first, then files: if this dies between the two, calling it again is refused
    as there is no such image, and reconciling collects the files. Who uploads the image
    meanwhile has uploaded it anew, and keeps it.

    Args:
        database: Where the rows are.
        blobs: Where the files are.
        content: The sha256 of the image's upright RGB pixels.
        who: Who asks for it.
        why: The reason.
        cancel_jobs: Cancel the jobs that may have read it, and wait as many seconds for
            their ends; None: be refused beside them.

    Raises:
        ImageInUse: a job that has not ended may have read it.
        InvalidSpec: nobody is named, or no reason is given, or the time is none.
        NotFound: no domain holds it.
        StoreUnavailable: the store is out of reach, or a backup is being made.
    """
    if not (who.strip() and why.strip()):
        raise InvalidSpec("erasing an image needs a name and a reason")
    if cancel_jobs is not None and not 0 <= cancel_jobs < math.inf:
        raise InvalidSpec("the seconds to wait for the ends of jobs must be 0 or more")
    ended: dict[JobName, None] = {}  # most often there is none to cancel
    until = time.monotonic() + (cancel_jobs or 0)
    erasure = None
    while erasure is None:
        try:
            erasure = _erase_rows(database, blobs, content, who, why)
        except ImageInUse:
            if cancel_jobs is None:
                raise
            with audit.acting_as(audit.Actor(who=who, origin="cli", why=why)):
                ended |= dict.fromkeys(readers.cancel(database, content, until=until))
    gone = [digest for digest in erasure.files if database.write(_delete, blobs, digest)]
    _forget_log(database)
    return replace(erasure, files=tuple(gone), cancelled=tuple(ended))


def _erase_rows(database: Database, blobs: Blobs, content: str, who: str, why: str) -> Erasure:
    shown: dict[str, bool] = {}
    while True:
        _read_reports(database, blobs, content, shown)
        erasure = database.write(_erase, content, shown, who, why)
        if erasure is not None:
            return erasure


def content_of(database: Database, batch_domain: str, id_: str) -> str:
    """The content of the one image that a domain holds under an uploader's id.

    Raises:
        NotFound: it holds none.
        InvalidSpec: it holds several.
    """
    table = schema.examples
    query = sa.select(table.c.content).where(table.c.domain == batch_domain, table.c.id == id_)
    found = database.read(Transaction.rows, query.distinct())
    if not found:
        raise NotFound(f"domains/{batch_domain} example {id_!r}", see="the ids that were uploaded")
    if len(found) > 1:
        raise InvalidSpec(f"{len(found)} images have the id {id_!r}; name one by its content")
    content: str = found[0].content
    return content


def _read_reports(database: Database, blobs: Blobs, content: str, shown: dict[str, bool]) -> None:
    """Add to *shown* each job whose report may show the image: whether it does.

    It does if it names the image's file.
    """
    digests, reports = database.read(_reports_about, content)
    for job, report in reports:  # outside the transaction: files may be far away
        if job not in shown:
            shown[job] = False
            with contextlib.suppress(BlobNotFound):
                text = blobs.get(report)
                shown[job] = any(digest in text for digest in digests)


def _reports_about(tx: Transaction, content: str) -> tuple[list[bytes], list[tuple[str, str]]]:
    """The digests of the image's files; the jobs and reports that may show it."""
    examples, jobs = schema.examples, schema.jobs
    files = tx.rows(sa.select(examples.c.blob).where(examples.c.content == content))
    reports = tx.rows(
        sa.select(jobs.c.id, jobs.c.report_json)
        .where(jobs.c.report_json != "")
        .where(jobs.c.model.in_(mistakes.models_reading(_holding(content))))
    )
    return [row.blob.encode() for row in files], [(row.id, row.report_json) for row in reports]


def _erase(
    tx: Transaction, content: str, shown: Mapping[str, bool], who: str, why: str
) -> Erasure | None:
    """Delete the rows; None, and nothing is done, if a report came that is not in *shown*."""
    tx.serialize(batches.LOCK)
    tx.hold(schema.jobs)  # none is claimed, and none ends, between the look and the deletion
    examples, jobs = schema.examples, schema.jobs
    rows = readers.rows_of(tx, content)
    if not rows:
        raise NotFound(
            f"image of content {content}", see="the ways to name one in `store erase --help`"
        )
    lineages = readers.Lineages.of(tx)
    if busy := readers.unended(tx, rows, lineages):
        raise readers.in_use(
            busy,
            "may have read the image; wait for the end, or have `acclimate store erase "
            "--cancel-jobs` end what has read it",
        )
    _, reports = _reports_about(tx, content)
    if any(job not in shown for job, _ in reports):
        return None
    showing = [job for job, shows in shown.items() if shows]
    trained, measured = lineages.taught(rows)
    refused = readers.refused(tx, rows, lineages)
    tx.run(sa.delete(examples).where(examples.c.content == content))
    files = {row.blob for row in rows}
    gone = tx.rows(sa.select(jobs.c.report_html, jobs.c.report_json).where(jobs.c.id.in_(showing)))
    files.update(digest for row in gone for digest in row if digest)
    tx.run(sa.update(jobs).where(jobs.c.id.in_(showing)).values(report_html="", report_json=""))
    for job, summary in refused.items():  # else it could be forced into a version
        kept = {key: value for key, value in summary.items() if key != "manifest"}
        tx.run(sa.update(jobs).where(jobs.c.id == job.job).values(summary=kept))
    audit.record(
        tx, who=who, action=audit.ERASED, subject=audit.image(content), why=why, origin="cli"
    )
    return Erasure(
        content=content,
        batches=tuple(dict.fromkeys(BatchName(row.domain, row.batch) for row in rows)),
        files=tuple(sorted(files)),
        reports=tuple(JobName(job) for job in showing),
        candidates=tuple(refused),
        trained=trained,
        measured=measured,
    )


def _delete(tx: Transaction, blobs: Blobs, digest: str) -> bool:
    """Delete the file unless an upload has named it anew; whether it is deleted.

    Under the lock under which uploads do that, see ``intake``.
    """
    tx.serialize(batches.LOCK)
    examples = schema.examples
    if tx.rows(sa.select(examples.c.blob).where(examples.c.blob == digest).limit(1)):
        return False
    blobs.delete(digest)
    return True


def _holding(content: str) -> Any:
    """The domains that hold the image."""
    examples = schema.examples
    return sa.select(examples.c.domain).where(examples.c.content == content)


def _forget_log(database: Database) -> None:
    """Move SQLite's write-ahead log, which still holds the rows, into the file and empty it."""
    if database.engine.dialect.name == "sqlite":
        with database.engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            connection.rollback()
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
