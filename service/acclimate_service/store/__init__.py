"""What is kept: images, models, jobs and the record of who did what.

An SQL database holds the rows, a folder or an object store the files; nothing else is
shared between the processes of the service.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from acclimate_service.domain.errors import InvalidSpec, NotFound, StoreUnavailable
from acclimate_service.domain.names import BatchName
from acclimate_service.domain.retention import Removed, RetentionPolicy
from acclimate_service.store import backup, erasure, migrations, readers, retention
from acclimate_service.store.aliases import AliasMove
from acclimate_service.store.audit import (
    Actor,
    Audit,
    AuditEntry,
    AuditFilter,
    act_as,
    acting_as,
)
from acclimate_service.store.backup import Backup
from acclimate_service.store.blobs import Blobs, BlobWriter, Bucket, translated_os_errors
from acclimate_service.store.domains import Domains, data_digest
from acclimate_service.store.engine import Clock, Database, Transaction, open_engine, utc_now
from acclimate_service.store.erasure import Erasure
from acclimate_service.store.fence import Fence, fence_of
from acclimate_service.store.folder import FolderBlobs
from acclimate_service.store.intake import Answer, Outcome, Received, Refusal
from acclimate_service.store.jobs import Jobs
from acclimate_service.store.leases import Checkpoint
from acclimate_service.store.looks import Look
from acclimate_service.store.nearby import Nearby
from acclimate_service.store.pages import Page
from acclimate_service.store.queue import Census
from acclimate_service.store.reconcile import Reconciliation, reconcile
from acclimate_service.store.registry import Registry
from acclimate_service.store.rollouts import Rollouts
from acclimate_service.store.tokens import Minted, Tokens
from acclimate_service.store.versions import NewVersion

__all__ = [
    "Actor",
    "AliasMove",
    "Answer",
    "Audit",
    "AuditEntry",
    "AuditFilter",
    "Backup",
    "BlobWriter",
    "Blobs",
    "Bucket",
    "Census",
    "Checkpoint",
    "Domains",
    "Erasure",
    "Jobs",
    "Look",
    "Minted",
    "NewVersion",
    "Outcome",
    "Page",
    "Received",
    "Reconciliation",
    "Refusal",
    "Registry",
    "Rollouts",
    "Store",
    "Tokens",
    "act_as",
    "acting_as",
    "data_digest",
    "open_blobs",
    "open_store",
    "utc_now",
]


@dataclass(frozen=True, kw_only=True)
class Store:
    """One database and one place of blobs. Thread-safe."""

    database: Database
    blobs: Blobs
    domains: Domains
    jobs: Jobs
    registry: Registry
    rollouts: Rollouts
    audit: Audit
    tokens: Tokens

    def ping(self) -> None:
        """Say whether the store can be used.

        Raises:
            StoreUnavailable: the database or the blobs are out of reach.
        """
        self.ping_rows()
        self.blobs.ping()

    def ping_rows(self) -> None:
        """Say whether the database can be used.

        Raises:
            StoreUnavailable: it is out of reach.
        """
        self.database.ping()

    def reconcile(
        self,
        *,
        grace: dt.timedelta = dt.timedelta(days=1),
        idle: dt.timedelta = dt.timedelta(days=7),
    ) -> Reconciliation:
        """See :func:`~acclimate_service.store.reconcile.reconcile`. For start-up."""
        return reconcile(self.database, self.blobs, grace=grace, idle=idle)

    def save(self, path: Path) -> Backup:
        """See :func:`~acclimate_service.store.backup.save`."""
        return backup.save(self.database, self.blobs, path)

    def restore(self, path: Path) -> Backup:
        """See :func:`~acclimate_service.store.backup.restore`."""
        return backup.restore(path, self.database, self.blobs)

    def tidy(self, policy: RetentionPolicy, *, rehearse: bool = False) -> Removed:
        """See :func:`~acclimate_service.store.retention.tidy`."""
        return retention.tidy(self.database, policy, rehearse=rehearse)

    def erase(
        self, content: str, *, who: str, why: str, cancel_jobs: float | None = None
    ) -> Erasure:
        """See :func:`~acclimate_service.store.erasure.erase`."""
        return erasure.erase(
            self.database, self.blobs, content, who=who, why=why, cancel_jobs=cancel_jobs
        )

    def give_back(self, content: str, *, who: str, why: str) -> tuple[BatchName, ...]:
        """See :func:`~acclimate_service.store.readers.give_back`."""
        return self.database.write(readers.give_back, content, who, why)

    def close(self) -> None:
        """Give all connections back and end all threads."""
        self.database.close()
        self.blobs.close()


def open_store(
    url: str, blob_root: Path | Bucket, *, clock: Clock | None = None, make: bool = True
) -> Store:
    """Open a store, making or migrating its schema if need be.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql+psycopg://…``.
        blob_root: Where the blobs are: a folder, made if it is not there, or a bucket.
        clock: Replaces the database's clock (PostgreSQL) or the machine's (SQLite).
        make: Whether a SQLite file that is not there is made, as a new and empty store.

    Raises:
        NotFound: there is none, and none is to be made.
        InvalidSpec: the URL is of another kind, or the bucket refuses.
        StoreUnavailable: the database or the blobs are out of reach, or the schema is
            newer than this version knows.
    """
    engine = open_engine(url)
    file = engine.url.database if engine.dialect.name == "sqlite" else None
    if not make and file is not None and not Path(file).exists():
        engine.dispose()
        raise NotFound(file, kind="store ", see="--home and --database-url")
    blobs = open_blobs(blob_root, fence_of(engine))
    database = Database(engine, clock)
    try:
        with _prepared(engine):
            database.write(_migrate)
    except BaseException:
        database.close()
        blobs.close()
        raise
    return Store(
        database=database,
        blobs=blobs,
        domains=Domains(database, blobs),
        jobs=Jobs(database, blobs),
        registry=Registry(database),
        rollouts=Rollouts(database),
        audit=Audit(database),
        tokens=Tokens(database),
    )


def open_blobs(root: Path | Bucket, fence: Fence) -> Blobs:
    """Open a place of blobs, whose users on all machines share *fence*.

    Raises:
        InvalidSpec: the bucket's URL is of another kind, the library for it is not
            installed, or it refuses.
        StoreUnavailable: it is out of reach.
    """
    if isinstance(root, Path):
        return FolderBlobs(root)
    try:
        from acclimate_service.store.bucket import BucketBlobs  # noqa: PLC0415 - see the extra
        from acclimate_service.store.objects import Objects  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InvalidSpec(
            f"blobs in {root.url} need a library: pip install 'acclimate[bucket]'"
        ) from error
    blobs = BucketBlobs(Objects(root.url), fence=fence, nearby=Nearby(root.cache, root.cache_bytes))
    blobs.begin()
    return blobs


def _migrate(tx: Transaction) -> None:
    tx.serialize("migrations")
    migrations.upgrade(tx.connection)


@contextlib.contextmanager
def _prepared(engine: sa.Engine) -> Iterator[None]:
    """Hold off other processes that open the same SQLite file; put it into WAL mode.

    The change of mode does not wait for a lock as other statements do, so two
    processes that open a new file at once would fail without this.
    """
    if engine.dialect.name != "sqlite":
        yield
        return
    assert engine.url.database is not None
    path = Path(engine.url.database)
    with translated_os_errors():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        lock = os.open(path.with_name(path.name + ".open"), how, 0o600)
        path.touch(0o600)  # which is all that a new, empty database is; its log has its rights
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _switch_to_wal(engine)
        yield
    finally:
        os.close(lock)


def _switch_to_wal(engine: sa.Engine) -> None:
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    finally:
        connection.close()
    if mode != "wal":
        raise StoreUnavailable("the store's file system cannot hold a write-ahead log")
