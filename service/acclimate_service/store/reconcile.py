"""Making rows and files agree again after whatever happened.

Files are written before the rows that name them, so a crash leaves files without a
name, never the reverse. Reconciling collects those, and says which named files are
missing, which only a lost disk can bring about.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from acclimate_service.domain.names import BatchName
from acclimate_service.store import batches, schema
from acclimate_service.store.blobs import Blobs
from acclimate_service.store.engine import Clock, Database, Transaction, utc_now

_GROUP = 500  # digests asked about in one query
# Text in which a digest is found in one pass: as a run of so many hex digits, and no more.
_MARKED = bytes(ord("h" if chr(byte) in "0123456789abcdef" else " ") for byte in range(256))
_RUN = b" %s " % (b"h" * 64)


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """What was found, and done about it."""

    expired: tuple[BatchName, ...]  # open uploads that nobody went on with, dropped
    unfinished: int  # temporary files of writers that died, removed
    orphans: int  # files that no row names, removed
    freed: int  # bytes of the orphans
    missing: tuple[str, ...]  # digests that rows name and no file has


def reconcile(
    database: Database,
    blobs: Blobs,
    *,
    grace: dt.timedelta = dt.timedelta(days=1),
    idle: dt.timedelta = dt.timedelta(days=7),
    clock: Clock = utc_now,
) -> Reconciliation:
    """Drop uploads idle for *idle*, then files older than *grace* that no row names.

    Safe beside running servers and workers, as long as *grace* is longer than any of
    them takes from storing a file to writing its row; a day forgives a clock that jumps.

    Raises:
        StoreUnavailable: the database or the folder is out of reach; what was done stays.
    """
    expired = database.write(batches.expire, idle)
    moment = (clock() - grace).timestamp()
    unfinished = blobs.delete_unfinished(moment)
    # Of one moment: between two looks, a job that ends takes a file's name from a checkpoint
    # into a version, and it would be seen in neither.
    spoken = database.snapshot(spoken_of)
    orphans = freed = 0
    for group in _groups(blobs.digests()):
        candidates = [digest for digest in group if digest not in spoken]
        named = database.read(_named_by_examples, candidates)
        for digest in candidates:
            if digest not in named:
                size = blobs.delete_older(digest, moment)
                freed += size or 0
                orphans += size is not None
    return Reconciliation(
        expired=expired,
        unfinished=unfinished,
        orphans=orphans,
        freed=freed,
        missing=tuple(_missing(database, blobs)),
    )


def spoken_of(tx: Transaction) -> frozenset[str]:
    """Every digest in a row that is not an example's: few, so they are held in memory.

    JSON columns are searched as text: whatever looks like a digest counts as named,
    since what is kept too long costs space, and what is deleted is gone.
    """
    found: set[str] = set()
    for table, columns in (
        (schema.models, ("weights",)),
        (schema.versions, ("onnx", "weights", "manifest")),
        (schema.jobs, ("summary", "report_html", "report_json")),
        (schema.checkpoints, ("record", "blobs")),
    ):
        texts = sa.select(*(sa.cast(table.c[name], sa.Text) for name in columns))
        # Some at a time: the summaries of many jobs would fill the server's memory.
        for row in tx.connection.execute(texts.execution_options(yield_per=_GROUP)):
            found.update(digests_in(" ".join(row)))
    return frozenset(found)


def digests_in(text: str) -> Iterator[str]:
    """Every run of exactly 64 hex digits.

    A regular expression for it takes 13 s for the summaries of 10,000 jobs, beside serving;
    this 0.6 s.
    """
    padded = f" {text} ".encode("ascii", "replace")
    marked, at = padded.translate(_MARKED), 0
    while (at := marked.find(_RUN, at)) >= 0:
        yield padded[at + 1 : at + 65].decode()
        at += 65


def _named_by_examples(tx: Transaction, digests: Collection[str]) -> frozenset[str]:
    blob = schema.examples.c.blob
    return frozenset(row.blob for row in tx.rows(sa.select(blob).where(blob.in_(digests))))


def _missing(database: Database, blobs: Blobs) -> Iterator[str]:
    """Every digest that a row names as a file, and no file has; in bounded memory."""
    named = itertools.chain(
        _groups(iter(sorted(database.read(named_by_results)))), _examples_in_groups(database)
    )
    return itertools.chain.from_iterable(map(blobs.absent, named))


def named_by_results(tx: Transaction) -> frozenset[str]:
    """Every digest by which a report or a version's manifest names a file of its own."""
    versions, jobs = schema.versions, schema.jobs
    columns = (jobs.c.report_html, jobs.c.report_json)
    reports = sa.union(*(sa.select(column).where(column != "") for column in columns))
    named = {row[0] for row in tx.rows(reports)}
    for row in tx.rows(sa.select(versions.c.manifest)):
        # As text, so that a manifest of a newer format says what it needs as well.
        named.update(digests_in(json.dumps(row.manifest["artifacts"])))
    return frozenset(named)


def _examples_in_groups(database: Database) -> Iterator[list[str]]:
    last = ""
    while group := database.read(_examples_after, last):
        yield group
        last = group[-1]


def _examples_after(tx: Transaction, last: str) -> list[str]:
    blob = schema.examples.c.blob
    query = sa.select(blob).where(blob > last).distinct().order_by(blob).limit(_GROUP)
    return [row.blob for row in tx.rows(query)]


def _groups(digests: Iterator[str]) -> Iterator[list[str]]:
    while group := list(itertools.islice(digests, _GROUP)):
        yield group
