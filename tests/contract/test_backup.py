from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.contract.builders import (
    MODEL,
    PRODUCTION,
    TARGET,
    claimed,
    draft,
    furnish,
    make_version,
    pictures,
    send,
    spoil,
    upload,
)
from tests.contract.conftest import Opener

from acclimate_service.domain.errors import (
    AlreadyExists,
    BlobCorrupt,
    InvalidSpec,
    StoreUnavailable,
)
from acclimate_service.domain.examples import Role, Split
from acclimate_service.domain.job import EventKind, JobState
from acclimate_service.domain.names import VersionName
from acclimate_service.store import Store, backup, migrations, open_store, schema


@pytest.fixture
def filled(store: Store) -> Store:
    """A store in the middle of its life: committed and open uploads, a lineage, a running job."""
    furnish(store)
    upload(store, pictures(5), Role.AUTO, request="r")
    send(store, pictures(2, prefix="open"), Role.TRAIN, request="open")
    version = make_version(store, make_version(store, promote=PRODUCTION))
    store.jobs.enqueue(draft(version), request_id="running")
    _, lease = claimed(store)
    store.jobs.checkpoint(lease, "TUNING", {"epoch": 3}, {"weights": store.blobs.put(b"half")})
    store.jobs.event(lease, kind=EventKind.EPOCH, phase=None, message="ünïcode", facts={})
    store.audit.record(who="ann", action="promote", subject=str(PRODUCTION), why="better")
    return store


@pytest.fixture
def old(filled: Store) -> Store:
    """The same with a dozen versions: "10" sorts before "2", and descends from "9"."""
    version = VersionName(MODEL.model, "2")
    for _ in range(10):
        version = make_version(filled, version)
    return filled


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Store]:
    """A store to restore into: SQLite, whatever the backup came from."""
    other = open_store(f"sqlite:///{tmp_path / 'other.db'}", tmp_path / "other")
    yield other
    other.close()


def rows(store: Store) -> dict[str, list[dict[str, object]]]:
    """Everything that the tables hold, as plain values."""
    with store.database.engine.connect() as connection:
        return {
            table.name: [dict(row._mapping) for row in connection.execute(sa.select(table))]
            for table in schema.metadata.sorted_tables
        }


def by_key(found: dict[str, list[dict[str, object]]]) -> dict[str, list[str]]:
    return {
        name: sorted(json.dumps(row, default=str, sort_keys=True) for row in table)
        for name, table in found.items()
    }


def test_what_is_restored_is_what_was_saved(old: Store, empty: Store, tmp_path: Path) -> None:
    told = old.save(tmp_path / "backup.tar")
    assert told.missing == ()
    assert empty.restore(tmp_path / "backup.tar") == told
    assert by_key(rows(empty)) == by_key(rows(old))
    assert set(empty.blobs.digests()) == set(old.blobs.digests())
    assert empty.reconcile().missing == ()


def test_only_files_can_be_missing_from_a_backup(filled: Store, tmp_path: Path) -> None:
    file = filled.domains.examples(TARGET, splits=tuple(Split))[0].blob
    filled.jobs.enqueue(draft(), request_id="refused")
    _, lease = claimed(filled, "worker-2")
    # A refused candidate's manifest has the digest of all images of a domain, which is no file.
    told: Any = {"manifest": {"domains": {str(TARGET): filled.domains.data_digest(TARGET)}}}
    filled.jobs.finish(lease, state=JobState.REJECTED, summary=told)
    assert filled.save(tmp_path / "whole.tar").missing == ()
    filled.blobs.delete(file)
    assert filled.save(tmp_path / "not-whole.tar").missing == (file,)


def test_a_restored_store_goes_on_numbering_where_the_saved_one_was(
    old: Store, opener: Opener, tmp_path: Path
) -> None:
    old.save(tmp_path / "backup.tar")
    # Emptied in place, so that PostgreSQL, too, is restored into its own kind.
    with old.database.engine.begin() as connection:
        migrations.downgrade(connection, "base")
    again = opener()
    again.restore(tmp_path / "backup.tar")
    upload(again, pictures(2, prefix="later"), Role.TRAIN, request="later")
    assert len(again.domains.list_batches(TARGET).items) == 3
    assert make_version(again).version == str(len(again.registry.list_versions(MODEL).items))


def test_a_running_job_goes_on_in_the_restored_store(
    filled: Store, empty: Store, tmp_path: Path
) -> None:
    filled.save(tmp_path / "backup.tar")
    empty.restore(tmp_path / "backup.tar")
    (job,) = [j for j in empty.jobs.list().items if not j.state.ended]
    kept = empty.jobs.checkpoints(job.name)["TUNING"]
    assert empty.blobs.get(kept.blobs["weights"]) == b"half"


def test_no_blob_is_removed_while_a_backup_is_made(filled: Store) -> None:
    orphan = filled.blobs.put(b"nobody's")
    with filled.blobs.held():
        assert filled.blobs.delete_older(orphan, float("inf")) is None
        with pytest.raises(StoreUnavailable, match="backup"):
            filled.blobs.delete(orphan)
    assert filled.blobs.delete(orphan)


def test_a_store_that_holds_anything_is_not_restored_into(filled: Store, tmp_path: Path) -> None:
    filled.save(tmp_path / "backup.tar")
    before = by_key(rows(filled))
    with pytest.raises(AlreadyExists, match="table"):
        filled.restore(tmp_path / "backup.tar")
    assert by_key(rows(filled)) == before


def test_a_backup_never_replaces_a_file(filled: Store, tmp_path: Path) -> None:
    (tmp_path / "backup.tar").write_text("precious")
    with pytest.raises(AlreadyExists):
        filled.save(tmp_path / "backup.tar")
    assert (tmp_path / "backup.tar").read_text() == "precious"


def test_a_backups_name_is_synced_before_it_is_told_of(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync, path = [], os.fsync, tmp_path / "backup.tar"

    def watched(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", watched)
    filled.save(path)
    assert (tmp_path, True) in synced


def test_a_rotten_blob_is_found_when_it_is_saved(filled: Store, tmp_path: Path) -> None:
    digest = filled.blobs.put(b"half")
    spoil(filled, digest, b"hafl")
    with pytest.raises(BlobCorrupt):
        filled.save(tmp_path / "backup.tar")
    assert list(tmp_path.glob("backup*")) == []


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_backup_that_was_cut_short_is_refused_whole(
    filled: Store, empty: Store, tmp_path: Path, share: float
) -> None:
    path = tmp_path / "backup.tar"
    filled.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole.rstrip(b"\0")) * share)])
    with pytest.raises(InvalidSpec):
        empty.restore(path)
    assert not any(rows(empty).values())


@pytest.mark.parametrize("part", ["rows/examples.jsonl", "rows/versions.jsonl", "blobs/"])
def test_a_damaged_backup_is_refused_and_leaves_no_rows(
    filled: Store, empty: Store, tmp_path: Path, part: str
) -> None:
    path = tmp_path / "backup.tar"
    filled.save(path)
    with tarfile.open(path) as tar:
        member = next(m for m in tar.getmembers() if m.name.startswith(part))
    damaged = bytearray(path.read_bytes())
    damaged[member.offset_data + member.size // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InvalidSpec, match="damaged"):
        empty.restore(path)
    assert not any(rows(empty).values())


def test_a_backup_of_an_older_schema_is_migrated(
    filled: Store, empty: Store, tmp_path: Path
) -> None:
    with filled.database.engine.begin() as connection:
        migrations.downgrade(connection, "0001")
    backup.save(filled.database, filled.blobs, tmp_path / "old.tar")
    with filled.database.engine.begin() as connection:
        migrations.upgrade(connection)
    assert empty.restore(tmp_path / "old.tar").schema_revision == "0001"
    found, expected = by_key(rows(empty)), by_key(rows(filled))
    assert found == expected
    assert found["audit"] == []


def test_what_is_no_backup_is_refused(empty: Store, tmp_path: Path) -> None:
    for content in (b"", b"no backup", b"\0" * 10240):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(InvalidSpec):
            empty.restore(tmp_path / "file")
