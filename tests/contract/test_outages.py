"""What breaks below the store surfaces as one error, and leaves nothing half done."""

from __future__ import annotations

import errno
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.contract.builders import (
    TARGET,
    chain_of,
    claimed,
    draft,
    furnish,
    new_version,
    pictures,
    received,
    upload,
)
from tests.contract.conftest import Opener, Place

from acclimate_service.domain.errors import InvalidSpec, StoreFull, StoreUnavailable
from acclimate_service.domain.examples import Role, Split
from acclimate_service.domain.job import JobState
from acclimate_service.store import Store, engine, open_store, sqlite_file
from acclimate_service.store.folder import FolderBlobs


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """As on a full disk: a write beyond *size* bytes of any file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_refuses_files_and_leaves_no_half_of_one(store: Store) -> None:
    small = store.blobs.put(b"small")
    with no_file_beyond(4096):
        for write in (store.blobs.put, lambda content: store.blobs.put_many([b"x", content])):
            with pytest.raises(StoreUnavailable):
                write(b"large" * 10_000)
        with pytest.raises(StoreUnavailable), store.blobs.writer() as writer:
            writer.write(b"large" * 10_000)
    assert small in store.blobs.digests()
    for digest in store.blobs.digests():
        store.blobs.verify(digest)
    assert isinstance(store.blobs, FolderBlobs)
    assert list((store.blobs.root / "tmp").iterdir()) == []
    store.blobs.put(b"large" * 10_000)


def test_a_full_disk_refuses_rows_and_the_upload_goes_on_afterwards(
    place: Place, store: Store
) -> None:
    if not place.is_sqlite:
        pytest.skip("the limit is this process's; PostgreSQL's files are its server's")
    furnish(store)
    pics = pictures(200)
    batch = store.domains.begin_batch(TARGET, Role.TRAIN, request_id="r")
    items = received(store, pics)
    store.domains.add(batch.name, items[:10])
    wal = Path(f"{sa.make_url(place.url).database}-wal")
    with no_file_beyond(wal.stat().st_size + 4096), pytest.raises(StoreUnavailable):
        store.domains.add(batch.name, items[10:])
    assert store.domains.get_batch(batch.name).received == 10
    store.domains.add(batch.name, items[10:])
    committed = store.domains.commit_batch(batch.name, count=200, chain=chain_of(pics))
    assert committed.accepted == len(store.domains.examples(TARGET, splits=[Split.TRAIN])) == 200


def test_a_disk_without_room_is_told_from_other_outages(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(StoreFull, match="blob folder is full"):
            store.blobs.put(b"content")
    assert list(store.blobs.digests()) == []


def test_a_disk_that_fails_to_sync_acknowledges_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(StoreUnavailable):
            store.blobs.put(b"content")
    assert list(store.blobs.digests()) == []


def test_a_folder_that_is_gone_is_an_outage_and_not_a_missing_file(store: Store) -> None:
    digest = store.blobs.put(b"content")
    assert isinstance(store.blobs, FolderBlobs)
    away = store.blobs.root.rename(store.blobs.root.with_name("away"))
    for use in (
        lambda: store.blobs.get(digest),
        lambda: store.blobs.exists(digest),
        lambda: store.blobs.put(b"more"),
        store.ping,
    ):
        with pytest.raises(StoreUnavailable):
            use()
    away.rename(store.blobs.root)
    store.ping()
    assert store.blobs.get(digest) == b"content"


def test_a_database_that_is_locked_too_long_is_an_outage_that_passes(
    place: Place, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 1.0)  # of SQLite
    monkeypatch.setattr(engine, "BUSY_SECONDS", 1.0)
    store = opener()
    furnish(store)
    with _locked(place, store), pytest.raises(StoreUnavailable):
        store.jobs.enqueue(draft(), request_id="r")
    assert store.jobs.list().items == ()
    store.jobs.enqueue(draft(), request_id="r")
    assert len(store.jobs.list().items) == 1


@contextmanager
def _locked(place: Place, store: Store) -> Iterator[None]:
    """Somebody else sits on the database."""
    if place.is_sqlite:
        other = sqlite3.connect(str(sa.make_url(place.url).database), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
        other.close()
        return
    with store.database.engine.begin() as connection:
        connection.execute(sa.text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        yield


def test_a_connection_lost_in_the_middle_changes_nothing_and_the_next_call_finds_another(
    place: Place, store: Store
) -> None:
    if place.is_sqlite:
        pytest.skip("a file has no connection to lose")
    furnish(store)
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    version = new_version(store, job)

    def cut(name: object) -> object:
        with store.database.engine.connect() as other:
            other.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        return version.manifest(name)  # type: ignore[arg-type]  # what the store gives

    with pytest.raises(StoreUnavailable):
        store.jobs.finish(
            lease,
            state=JobState.SUCCEEDED,
            summary={},
            version=type(version)(parent=None, origin=version.origin, manifest=cut),  # type: ignore[arg-type]  # passed through
        )
    assert store.jobs.get(job.name).state is JobState.RUNNING
    store.jobs.finish(lease, state=JobState.SUCCEEDED, summary={}, version=version)
    assert len(store.registry.list_versions(job.draft.model).items) == 1


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////proc/nowhere/store.db",
        "postgresql+psycopg://nobody@127.0.0.1:1/nothing",
    ],
)
def test_a_database_out_of_reach_is_an_outage(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        open_store(url, tmp_path / "blobs")


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://host/db", "sqlite://", "sqlite:///:memory:"]
)
def test_only_urls_of_the_two_engines_are_taken(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec):
        open_store(url, tmp_path / "blobs")


def test_text_that_no_database_holds_is_refused_or_made_plain(place: Place, store: Store) -> None:
    furnish(store)
    upload(store, pictures(1), Role.TRAIN, request="r")
    store.audit.record(who="a\0da", action="x", subject="y")
    assert store.audit.list().items[0].who == "a\N{REPLACEMENT CHARACTER}da"
    if not place.is_sqlite:
        with pytest.raises(InvalidSpec):
            store.domains.begin_batch(TARGET, Role.TRAIN, request_id="a\0b")
