from __future__ import annotations

import datetime as dt
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.builders import (
    Picture,
    age,
    claimed,
    draft,
    furnish,
    make_version,
    manifest,
    pictures,
    send,
    upload,
    with_int8,
)
from tests.contract.conftest import Opener

from acclimate_service.domain.errors import BlobNotFound
from acclimate_service.domain.examples import Role
from acclimate_service.domain.job import JobState
from acclimate_service.domain.model import Manifest, Origin
from acclimate_service.domain.names import VersionName
from acclimate_service.store import NewVersion, Store

RECONCILE = sys.modules["acclimate_service.store.reconcile"]  # the package has its function there
AT_ONCE = dt.timedelta(seconds=-60)  # even what was stored a moment ago is old enough


@pytest.fixture
def store(store: Store) -> Store:
    furnish(store)
    return store


def test_files_that_no_row_names_are_collected(store: Store) -> None:
    orphan = store.blobs.put(b"nobody's")
    found = store.reconcile(grace=AT_ONCE)
    assert (found.orphans, found.freed) == (1, len(b"nobody's"))
    assert not store.blobs.exists(orphan)


def test_a_young_file_is_left_since_its_row_may_be_on_its_way(store: Store) -> None:
    orphan = store.blobs.put(b"nobody's yet")
    assert store.reconcile().orphans == 0
    age(store, 2)
    assert store.blobs.put(b"nobody's yet") == orphan  # stored again: it is young again
    assert store.reconcile().orphans == 0
    age(store, 2)
    assert store.reconcile().orphans == 1


def test_nothing_that_any_row_names_is_ever_collected(store: Store) -> None:
    upload(store, pictures(2), Role.TRAIN, request="r1")
    send(store, pictures(2, prefix="open"), Role.TRAIN, request="r2")
    make_version(store)
    store.jobs.enqueue(draft(), request_id="rejected")
    job, lease = claimed(store)
    kept = manifest(store, VersionName("desk", "9"), job.name, weights=b"candidate")
    store.jobs.finish(
        lease,
        state=JobState.REJECTED,
        summary={"manifest": kept.model_dump(mode="json")},
        report_html=store.blobs.put(b"<html>"),
        report_json=store.blobs.put(b"{}"),
    )
    store.jobs.enqueue(draft(), request_id="running")
    _, lease = claimed(store)
    store.jobs.checkpoint(lease, "TUNING", {}, {"weights": store.blobs.put(b"half-way")})
    before = list(store.blobs.digests())
    assert len(before) == 11
    found = store.reconcile(grace=AT_ONCE)
    assert (found.orphans, found.missing) == (0, ())
    assert list(store.blobs.digests()) == before


def test_a_file_that_a_job_names_otherwise_while_names_are_gathered_is_kept(
    store: Store, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version(store)  # so that there is a row to be read before the job ends
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    made = manifest(store, VersionName("desk", "2"), job.name, weights=b"of days ago")
    digests = sorted(made.artifacts.digests)
    store.jobs.checkpoint(lease, "EXPORTING", {}, dict(zip("ab", digests, strict=True)))
    other, found_in = opener(), RECONCILE.digests_in

    def meanwhile(text: str) -> Iterator[str]:
        if '"artifacts"' in text:  # of the version: it has just been read which ones there are
            monkeypatch.setattr(RECONCILE, "digests_in", found_in)
            version = NewVersion(parent=None, origin=Origin.ACCEPTED, manifest=lambda _: made)
            other.jobs.finish(lease, state=JobState.SUCCEEDED, summary={}, version=version)
        yield from found_in(text)

    monkeypatch.setattr(RECONCILE, "digests_in", meanwhile)
    found = store.reconcile(grace=AT_ONCE)
    assert other.jobs.get(job.name).state is JobState.SUCCEEDED
    assert (found.orphans, found.missing) == (0, ())


def test_what_only_a_resumed_job_needed_is_collected_after_its_end(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    store.jobs.checkpoint(lease, "TUNING", {}, {"weights": store.blobs.put(b"half-way")})
    assert store.reconcile(grace=AT_ONCE).orphans == 0
    store.jobs.request_cancel(job.name)
    store.jobs.finish(lease, state=JobState.CANCELLED, summary={})
    assert store.reconcile(grace=AT_ONCE).orphans == 1


def test_a_named_file_that_is_gone_is_reported(store: Store) -> None:
    upload(store, [Picture(b"one"), Picture(b"two")], Role.TRAIN, request="r")
    make_version(store)
    lost = [store.blobs.put(b"one"), store.blobs.put(b"onnx of weights of nothing")]
    for digest in lost:
        store.blobs.delete(digest)
    assert store.reconcile(grace=AT_ONCE).missing == (lost[0],)


def variant_of_a_version(store: Store) -> str:
    """The digest of the int8 file of a version that has one."""
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    version = NewVersion(
        parent=None,
        origin=Origin.ACCEPTED,
        manifest=lambda name: with_int8(store, manifest(store, name, job.name)),
    )
    store.jobs.finish(lease, state=JobState.SUCCEEDED, summary={}, version=version)
    return store.blobs.put(b"int8")


def test_a_variant_is_kept_as_long_as_its_version(store: Store) -> None:
    variant = variant_of_a_version(store)
    assert store.reconcile(grace=AT_ONCE).orphans == 0
    store.registry.delete_version(VersionName("desk", "1"))
    assert store.reconcile(grace=AT_ONCE).orphans == 3
    assert not store.blobs.exists(variant)


def test_a_variant_that_is_gone_is_reported(store: Store) -> None:
    variant = variant_of_a_version(store)
    store.blobs.delete(variant)
    assert store.reconcile(grace=AT_ONCE).missing == (variant,)


def test_a_backup_holds_the_variants(store: Store, tmp_path: Path) -> None:
    variant = variant_of_a_version(store)
    store.save(tmp_path / "all.tar")
    with tarfile.open(tmp_path / "all.tar") as tar:
        assert f"blobs/{variant}" in tar.getnames()


def test_a_version_is_not_written_without_the_file_of_its_variant(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)

    def torn(name: VersionName) -> Manifest:
        told = with_int8(store, manifest(store, name, job.name))
        store.blobs.delete(told.artifacts.variants["int8"].onnx)
        return told

    version = NewVersion(parent=None, origin=Origin.ACCEPTED, manifest=torn)
    with pytest.raises(BlobNotFound):
        store.jobs.finish(lease, state=JobState.SUCCEEDED, summary={}, version=version)


def test_an_upload_left_open_is_dropped_with_its_files(store: Store) -> None:
    batch, _ = send(store, pictures(2), Role.TRAIN, request="r")
    assert store.reconcile(grace=AT_ONCE).expired == ()
    found = store.reconcile(grace=AT_ONCE, idle=dt.timedelta(seconds=-1))
    assert (found.expired, found.orphans) == ((batch.name,), 2)
