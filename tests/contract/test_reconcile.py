from __future__ import annotations

import datetime as dt

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
)

from acclimate_service.domain.examples import Role
from acclimate_service.domain.job import JobState
from acclimate_service.domain.names import VersionName
from acclimate_service.store import Store

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


def test_an_upload_left_open_is_dropped_with_its_files(store: Store) -> None:
    batch, _ = send(store, pictures(2), Role.TRAIN, request="r")
    assert store.reconcile(grace=AT_ONCE).expired == ()
    found = store.reconcile(grace=AT_ONCE, idle=dt.timedelta(seconds=-1))
    assert (found.expired, found.orphans) == ((batch.name,), 2)
