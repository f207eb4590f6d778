"""Erasing an image at any time: which jobs count, how they are cancelled, what is promised."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tests.contract.actor import Actor
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
    manifest,
    new_version,
    pictures,
    upload,
)
from tests.contract.conftest import Opener, Place

from acclimate_service.domain.errors import ImageInUse, InvalidSpec, NotFound
from acclimate_service.domain.examples import Role, Split
from acclimate_service.domain.job import Job, JobState
from acclimate_service.domain.names import DomainName, VersionName
from acclimate_service.store import AuditFilter, Store

FACE = Picture(b"somebody's face")
WHO: Any = {"who": "ann", "why": "asked to"}
OTHER = DomainName("other")


@pytest.fixture
def store(store: Store) -> Store:
    furnish(store)
    return store


def reads(store: Store, job: Job, of: DomainName = TARGET) -> bool:
    """Whether the job, reading now, is given the image."""
    found = store.domains.examples(of, splits=tuple(Split), up_to=job.reads_up_to)
    return FACE.content in {example.content for example in found}


# ── which jobs count ─────────────────────────────────────────────────────────


def test_a_job_that_began_before_the_image_came_does_not_count(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    upload(store, [FACE], Role.TRAIN, to=SOURCE, request="late")
    assert store.erase(FACE.content, **WHO).cancelled == ()
    ended = store.jobs.finish(
        lease, state=JobState.SUCCEEDED, summary={}, version=new_version(store, job)
    )
    assert ended.state is JobState.SUCCEEDED


def test_a_job_of_the_same_model_on_other_domains_does_not_count(store: Store) -> None:
    domain(store, OTHER)
    base = make_version(store)
    make_version(store, base)  # the model knows TARGET, and this job's incumbent does not
    upload(store, [FACE], Role.TRAIN, request="r")
    store.jobs.enqueue(replace(draft(base), target=OTHER), request_id="")
    claimed(store)
    assert store.erase(FACE.content, **WHO).files


def test_a_job_that_replays_the_image_s_domain_counts(store: Store) -> None:
    domain(store, OTHER)
    heir = make_version(store, make_version(store))  # made for TARGET
    upload(store, [FACE], Role.TRAIN, request="r")
    store.jobs.enqueue(replace(draft(heir), target=OTHER), request_id="")
    job, _ = claimed(store)
    with pytest.raises(ImageInUse, match=str(job.name)):
        store.erase(FACE.content, **WHO)


def test_a_job_that_waits_for_its_first_attempt_goes_on_without_the_image(store: Store) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    asked = store.jobs.enqueue(draft(make_version(store)), request_id="")
    store.erase(FACE.content, **WHO, cancel_jobs=0)
    job, _ = claimed(store)
    assert job.name == asked.name
    assert not reads(store, job)


def test_a_job_that_was_given_back_has_read_the_image(store: Store) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    store.jobs.enqueue(draft(make_version(store)), request_id="")
    job, lease = claimed(store)
    store.jobs.release(lease)
    with pytest.raises(ImageInUse, match=str(job.name)):
        store.erase(FACE.content, **WHO)
    assert store.erase(FACE.content, **WHO, cancel_jobs=0).cancelled == (job.name,)


# ── how they are cancelled ───────────────────────────────────────────────────


def test_a_job_whose_worker_died_is_ended_by_the_erasure(store: Store, clock: FakeClock) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    store.jobs.enqueue(draft(make_version(store)), request_id="")
    job, _ = claimed(store)
    clock.advance(3600)
    assert store.erase(FACE.content, **WHO, cancel_jobs=0).cancelled == (job.name,)
    assert store.jobs.get(job.name).state is JobState.CANCELLED


def test_a_job_that_does_not_end_in_time_is_named_and_cannot_publish(store: Store) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    base = make_version(store)
    store.jobs.enqueue(draft(base), request_id="first")
    job, lease = claimed(store)
    later = store.jobs.enqueue(draft(base), request_id="later")
    with pytest.raises(ImageInUse, match=f"{job.name}: cancelled, but not ended"):
        store.erase(FACE.content, **WHO, cancel_jobs=0)
    meanwhile, _ = claimed(store, "worker-2")
    assert meanwhile.name == later.name
    assert not reads(store, meanwhile)
    ended = store.jobs.finish(
        lease, state=JobState.SUCCEEDED, summary={}, version=new_version(store, job)
    )
    assert (ended.state, ended.version) == (JobState.CANCELLED, None)
    assert store.erase(FACE.content, **WHO).files  # though the later one runs
    assert not store.jobs.get(later.name).state.ended


def test_an_image_that_was_withheld_and_not_erased_can_be_given_back(store: Store) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    store.jobs.enqueue(draft(make_version(store)), request_id="")
    job, lease = claimed(store)
    with pytest.raises(ImageInUse, match="give-back"):
        store.erase(FACE.content, **WHO, cancel_jobs=0)
    assert not reads(store, job)
    with pytest.raises(ImageInUse, match="began without"):  # it may still be reading
        store.give_back(FACE.content, **WHO)
    store.jobs.finish(lease, state=JobState.CANCELLED, summary={})
    (batch,) = store.give_back(FACE.content, **WHO)
    assert batch.domain == TARGET.domain
    assert reads(store, job)
    (entry, *_) = store.audit.list(AuditFilter(action="GiveImageBack")).items
    assert (entry.who, entry.why) == ("ann", "asked to")
    with pytest.raises(NotFound):  # it is withheld no more
        store.give_back(FACE.content, **WHO)
    with pytest.raises(InvalidSpec):
        store.give_back(FACE.content, who="ann", why=" ")


def test_an_image_that_came_anew_while_it_was_withheld_is_there_once(store: Store) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    store.jobs.enqueue(draft(make_version(store)), request_id="")
    _, lease = claimed(store)
    with pytest.raises(ImageInUse):
        store.erase(FACE.content, **WHO, cancel_jobs=0)
    store.jobs.finish(lease, state=JobState.CANCELLED, summary={})
    upload(store, [FACE], Role.TRAIN, request="anew")
    store.give_back(FACE.content, **WHO)
    found = store.domains.examples(TARGET, splits=tuple(Split))
    assert [example.content for example in found].count(FACE.content) == 1
    assert store.erase(FACE.content, **WHO).files


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_waiting_for_a_time_that_is_none_is_refused(store: Store, seconds: float) -> None:
    with pytest.raises(InvalidSpec, match="seconds"):
        store.erase(FACE.content, **WHO, cancel_jobs=seconds)


def test_the_log_and_the_story_say_why_a_job_was_cancelled(store: Store) -> None:
    upload(store, [FACE, *pictures(2)], Role.TRAIN, request="r")
    store.jobs.enqueue(draft(make_version(store)), request_id="")
    job, lease = claimed(store)
    store.jobs.release(lease)
    store.erase(FACE.content, **WHO, cancel_jobs=0)
    (entry,) = store.audit.list(AuditFilter(action="CancelAdaptationJob")).items
    assert (entry.who, entry.subject, entry.why) == ("ann", str(job.name), "asked to")
    assert any("being erased" in event.message for event in store.jobs.events(job.name))


def test_a_refused_candidate_that_read_the_image_cannot_be_forced(store: Store) -> None:
    base = make_version(store)
    jobs = []
    for request, images in (("before", pictures(2)), ("after", [FACE])):
        upload(store, images, Role.TRAIN, request=request)
        store.jobs.enqueue(draft(base), request_id=request)
        job, lease = claimed(store)
        kept = manifest(store, VersionName("desk", "candidate"), job.name, parent=base)
        summary: dict[str, Any] = {"manifest": kept.model_dump(mode="json"), "trials": 3}
        store.jobs.finish(lease, state=JobState.REJECTED, summary=summary)
        jobs.append(job.name)
    before, after = jobs
    assert store.erase(FACE.content, **WHO).candidates == (after,)
    with pytest.raises(InvalidSpec, match="no candidate"):
        store.registry.force_version(after, **WHO)
    assert store.jobs.get(after).summary == {"trials": 3}
    assert store.registry.force_version(before, **WHO).forced_by == "ann"


# ── with real processes ──────────────────────────────────────────────────────


def test_no_job_that_read_an_erased_image_publishes_while_workers_go_on(
    place: Place, store: Store, opener: Opener
) -> None:
    others = pictures(4)
    upload(store, [FACE, *others], Role.TRAIN, to=SOURCE, request="r")
    for number in range(24):
        store.jobs.enqueue(draft(seed=number), request_id=f"{number}")
    workers = [Actor(place, "train", f"worker-{number}", FACE.content) for number in range(3)]
    for worker in workers:
        worker.go()
    first: list[Any] = [worker.hear() for worker in workers]  # each has read a job's images
    assert all(seen for _, seen in first)
    at_once = opener(clock=None)
    erasure = at_once.erase(FACE.content, **WHO, cancel_jobs=60)
    standing = {str(name) for name in at_once.registry.version_names(limit=100)}
    said = first + [told for worker in workers for told in worker.hear_out()]

    saw = {job for job, seen in said if seen}
    ended = {job.name.job: job for job in store.jobs.list(page_size=100).items}
    assert len(ended) == 24
    assert all(job.state.ended for job in ended.values())
    assert {name.job for name in erasure.cancelled} <= saw
    for job in ended.values():
        if job.version is not None and str(job.version) not in standing:
            assert job.name.job not in saw
        if job.state is JobState.CANCELLED:
            assert job.name in erasure.cancelled
    taught = {str(job.version) for job in ended.values() if job.version and job.name.job in saw}
    assert taught <= {str(name) for name in erasure.trained} <= standing
    assert sum(job.state is JobState.SUCCEEDED for job in ended.values()) > len(standing)
