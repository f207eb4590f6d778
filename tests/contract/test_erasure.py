from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.builders import (
    SOURCE,
    TARGET,
    FakeClock,
    Picture,
    claimed,
    domain,
    draft,
    furnish,
    make_version,
    new_version,
    pictures,
    received,
    upload,
)
from tests.contract.conftest import Opener, Place

from acclimate_service.domain.errors import BlobNotFound, ImageInUse, InvalidSpec, NotFound
from acclimate_service.domain.examples import Role
from acclimate_service.domain.job import JobState
from acclimate_service.domain.names import DomainName, VersionName
from acclimate_service.store import AuditFilter, Store

FACE = Picture(b"somebody's face")
WHO: Any = {"who": "ann", "why": "asked to"}


@pytest.fixture
def store(store: Store) -> Store:
    furnish(store)
    return store


def examples(store: Store) -> int:
    return sum(
        sum(count.values())
        for to in (SOURCE, TARGET)
        for count in store.domains.counts(to).values()
    )


def test_an_image_is_gone_from_every_domain_and_from_disk(store: Store) -> None:
    for to in (SOURCE, TARGET):
        upload(store, [FACE, *pictures(2, prefix=str(to))], Role.TRAIN, to=to, request=str(to))
    blob = store.blobs.put(FACE.file)
    erasure = store.erase(FACE.content, **WHO)
    assert {name.domain for name in erasure.batches} == {"amazon", "webcam"}
    assert erasure.files == (blob,)
    assert not store.blobs.exists(blob)
    assert examples(store) == 4
    assert store.reconcile().missing == ()
    with pytest.raises(NotFound):
        store.erase(FACE.content, **WHO)


def test_no_trace_of_the_row_is_left_in_an_sqlite_file(store: Store, place: Place) -> None:
    if not place.is_sqlite:
        pytest.skip("PostgreSQL vacuums in its own time")
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    file = Path(place.url.removeprefix("sqlite:///"))

    def kept() -> bytes:
        return b"".join(path.read_bytes() for path in file.parent.glob(f"{file.name}*"))

    assert FACE.content.encode() in kept()
    store.erase(FACE.content, **WHO)
    audited = f"content/{FACE.content}".encode()
    assert audited in kept()
    assert FACE.content.encode() not in kept().replace(audited, b"")


def test_the_versions_that_learnt_from_it_are_told_with_their_descendants(
    store: Store, clock: FakeClock
) -> None:
    before = make_version(store)
    clock.advance(60)
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    clock.advance(60)
    taught = make_version(store, before)  # its target holds the image
    heir = make_version(store, taught)
    erasure = store.erase(FACE.content, **WHO)
    assert set(erasure.trained) == {taught, heir}
    assert before not in erasure.measured


def adapted(store: Store, incumbent: VersionName, target: DomainName) -> VersionName:
    """A version that was adapted from *incumbent* to *target*."""
    store.jobs.enqueue(replace(draft(incumbent), target=target), request_id="")
    job, lease = claimed(store)
    ended = store.jobs.finish(
        lease, state=JobState.SUCCEEDED, summary={}, version=new_version(store, job)
    )
    assert ended.version is not None
    return ended.version


@pytest.mark.parametrize("role", [Role.TRAIN, Role.HOLDOUT])
def test_what_was_replayed_from_a_domain_accepted_earlier_taught_too(
    store: Store, clock: FakeClock, role: Role
) -> None:
    other = domain(store, DomainName("other"))
    accepted = make_version(store, make_version(store))  # for TARGET
    clock.advance(60)
    upload(store, [FACE, *pictures(2)], role, request="r")  # to TARGET, which later jobs replay
    clock.advance(60)
    later = adapted(store, accepted, other)
    sibling = adapted(store, make_version(store), other)  # of a lineage that never saw TARGET
    erasure = store.erase(FACE.content, **WHO)
    assert later in (erasure.trained if role is Role.TRAIN else erasure.measured)
    assert {accepted, sibling}.isdisjoint((*erasure.trained, *erasure.measured))


def test_the_report_of_a_later_job_on_another_domain_goes_if_it_shows_the_image(
    store: Store,
) -> None:
    other = domain(store, DomainName("other"))
    upload(store, [FACE, *pictures(2)], Role.HOLDOUT, request="r")
    blob = store.blobs.put(FACE.file)
    accepted = make_version(store, make_version(store))
    store.jobs.enqueue(replace(draft(accepted), target=other), request_id="")
    job, lease = claimed(store)
    with pytest.raises(ImageInUse, match=str(job.name)):
        store.erase(FACE.content, **WHO)
    store.jobs.finish(
        lease,
        state=JobState.REJECTED,
        summary={},
        report_html=store.blobs.put(b"<html>its thumbnail"),
        report_json=store.blobs.put(json.dumps({"lost": [{"blob": blob}]}).encode()),
    )
    assert store.erase(FACE.content, **WHO).reports == (job.name,)


def test_a_held_out_image_taught_nothing_but_was_looked_at(store: Store, clock: FakeClock) -> None:
    before = make_version(store)
    clock.advance(60)
    upload(store, [FACE, *pictures(2)], Role.HOLDOUT, request="r")
    clock.advance(60)
    judged = make_version(store, before)
    erasure = store.erase(FACE.content, **WHO)
    assert erasure.trained == ()
    assert erasure.measured == (judged,)


def test_a_report_that_shows_the_image_goes_and_another_stays(store: Store) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    blob = store.blobs.put(FACE.file)
    version = make_version(store)
    jobs = []
    for lost in ([{"blob": blob}], []):
        store.jobs.enqueue(draft(version), request_id="")
        job, lease = claimed(store)
        store.jobs.finish(
            lease,
            state=JobState.REJECTED,
            summary={},
            report_html=store.blobs.put(f"<html>{lost}".encode()),
            report_json=store.blobs.put(json.dumps({"lost": lost}).encode()),
        )
        jobs.append(job.name)
    erasure = store.erase(FACE.content, **WHO)
    assert erasure.reports == (jobs[0],)
    assert [bool(store.jobs.get(job).report_html) for job in jobs] == [False, True]
    assert len(erasure.files) == 3
    assert not any(store.blobs.exists(digest) for digest in erasure.files)


def test_a_report_that_comes_while_others_are_read_goes_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    blob = store.blobs.put(FACE.file)
    version = make_version(store)
    store.jobs.enqueue(draft(version), request_id="first")
    _, lease = claimed(store)
    unshown = store.blobs.put(b'{"lost": []}')
    store.jobs.finish(
        lease, state=JobState.REJECTED, summary={}, report_html=unshown, report_json=unshown
    )
    store.jobs.enqueue(draft(version), request_id="second")
    job, lease = claimed(store)
    get = store.blobs.get

    def meanwhile(digest: str) -> bytes:
        monkeypatch.setattr(store.blobs, "get", get)
        shows = store.blobs.put(json.dumps({"lost": [{"blob": blob}]}).encode())
        store.jobs.finish(
            lease, state=JobState.REJECTED, summary={}, report_html=shows, report_json=shows
        )
        return get(digest)

    monkeypatch.setattr(store.blobs, "get", meanwhile)
    assert store.erase(FACE.content, **WHO).reports == (job.name,)
    assert not store.jobs.get(job.name).report_json


def test_an_image_uploaded_anew_while_it_is_erased_is_kept(
    store: Store, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    other, write = opener(), store.database.write

    def meanwhile(work: Callable[..., object], *args: object) -> object:
        done = write(work, *args)
        monkeypatch.setattr(store.database, "write", write)
        upload(other, [FACE], Role.TRAIN, request="anew")
        return done

    monkeypatch.setattr(store.database, "write", meanwhile)
    assert store.erase(FACE.content, **WHO).files == ()
    assert store.blobs.get(store.blobs.put(FACE.file)) == FACE.file
    assert store.reconcile().missing == ()


def test_an_image_erased_before_its_upload_names_its_file_is_not_taken_without_one(
    store: Store,
) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    batch = store.domains.begin_batch(TARGET, Role.TRAIN, request_id="anew")
    stored = received(store, [FACE])
    store.erase(FACE.content, **WHO)
    with pytest.raises(BlobNotFound):
        store.domains.add(batch.name, stored)
    (answer,) = store.domains.add(batch.name, received(store, [FACE]))
    assert answer.split is not None
    assert store.reconcile().missing == ()


def test_an_erased_image_is_looked_for_under_every_file_that_it_arrives_in(store: Store) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    batch = store.domains.begin_batch(TARGET, Role.TRAIN, request_id="anew")
    (first,) = received(store, [FACE])
    store.erase(FACE.content, **WHO)
    encoded_anew = replace(first, index=1, blob=store.blobs.put(b"the same pixels"))
    with pytest.raises(BlobNotFound):
        store.domains.add(batch.name, [first, encoded_anew])


def test_an_image_is_not_erased_under_a_job(store: Store) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    store.jobs.enqueue(draft(make_version(store)), request_id="")
    job, lease = claimed(store)
    with pytest.raises(ImageInUse, match=f"{job.name}.*--cancel-jobs"):
        store.erase(FACE.content, **WHO)
    assert store.blobs.exists(store.blobs.put(FACE.file))
    store.jobs.finish(lease, state=JobState.REJECTED, summary={})
    assert store.erase(FACE.content, **WHO).files


def test_erasing_needs_a_name_and_a_reason_and_is_recorded(store: Store) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    for who, why in (("", "asked to"), ("ann", " ")):
        with pytest.raises(InvalidSpec):
            store.erase(FACE.content, who=who, why=why)
    store.erase(FACE.content, **WHO)
    (entry,) = store.audit.list(AuditFilter(subject=f"content/{FACE.content}")).items
    assert (entry.who, entry.action, entry.why) == ("ann", "EraseImage", "asked to")


def test_an_erased_image_may_be_uploaded_again_for_another_use(store: Store) -> None:
    other = domain(store, DomainName("other"))
    upload(store, [FACE, *pictures(2)], Role.HOLDOUT, request="r")
    store.erase(FACE.content, **WHO)
    batch = upload(store, [FACE], Role.TRAIN, to=other, request="again")
    assert batch.accepted == 1
