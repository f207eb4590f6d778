from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
from tests.contract.builders import (
    MODEL,
    PRODUCTION,
    SOURCE,
    TARGET,
    FakeClock,
    claimed,
    draft,
    furnish,
    make_version,
    new_version,
)

from acclimate_service.domain.errors import (
    BlobNotFound,
    JobEnded,
    LeaseLost,
    NotFound,
    Overloaded,
    RequestIdReused,
    VersionNotFound,
)
from acclimate_service.domain.job import EventKind, Failure, JobState, Lease, Phase
from acclimate_service.domain.names import DomainName, JobName, ModelName, VersionName
from acclimate_service.store import Store


@pytest.fixture
def store(store: Store) -> Store:
    furnish(store)
    return store


def states_told(store: Store, name: JobName) -> list[object]:
    """The states that the job's story tells of, in order."""
    return [
        event.facts["state"]
        for event in store.jobs.events(name)
        if event.kind is EventKind.STATE and "cancel_requested" not in event.facts
    ]


# ── the queue ────────────────────────────────────────────────────────────────


def test_the_same_request_makes_one_job(store: Store) -> None:
    first = store.jobs.enqueue(draft(), request_id="r")
    assert store.jobs.enqueue(draft(), request_id="r") == first
    assert store.jobs.by_request("r") == first
    assert store.jobs.by_request("s") is None
    with pytest.raises(RequestIdReused):
        store.jobs.enqueue(draft(seed=1), request_id="r")
    assert len(store.jobs.list().items) == 1


def test_a_job_is_read_back_as_it_was_asked_for(store: Store) -> None:
    job = store.jobs.enqueue(draft(seed=7), request_id="r")
    assert job.draft == draft(seed=7)
    assert (job.state, job.attempt, job.phase) == (JobState.QUEUED, 0, None)
    assert store.jobs.get(job.name) == job


def test_a_job_is_asked_of_things_that_exist(store: Store) -> None:
    with pytest.raises(VersionNotFound):
        store.jobs.enqueue(draft(VersionName("desk", "9")), request_id="")
    with pytest.raises(NotFound):
        store.jobs.get(JobName("nothing"))
    with pytest.raises(NotFound):
        store.jobs.events(JobName("nothing"))
    with pytest.raises(NotFound):
        store.jobs.request_cancel(JobName("nothing"))


def test_a_full_queue_says_when_to_try_again_and_still_knows_what_it_accepted(
    store: Store,
) -> None:
    first = store.jobs.enqueue(draft(), request_id="r1", limit=2)
    store.jobs.enqueue(draft(), request_id="r2", limit=2)
    with pytest.raises(Overloaded) as error:
        store.jobs.enqueue(draft(), request_id="r3", limit=2)
    assert error.value.retry_after > 0
    assert store.jobs.enqueue(draft(), request_id="r1", limit=2) == first
    assert store.jobs.depth()[JobState.QUEUED] == 2


def test_jobs_are_listed_newest_first_by_model_and_state(store: Store) -> None:
    names = [store.jobs.enqueue(draft(), request_id="").name for _ in range(3)]
    store.jobs.request_cancel(names[0])
    first = store.jobs.list(page_size=2)
    second = store.jobs.list(page_size=2, page_token=first.next_token)
    assert [job.name for job in first.items + second.items] == names[::-1]
    assert [job.name for job in store.jobs.list(states=[JobState.CANCELLED]).items] == names[:1]
    assert len(store.jobs.list(model=MODEL).items) == 3
    assert store.jobs.list(model=ModelName("other")).items == ()


def test_jobs_are_listed_by_the_domain_that_they_learn(store: Store) -> None:
    version = make_version(store)
    (bootstrap,) = store.jobs.list().items
    adaptation = store.jobs.enqueue(draft(version), request_id="")
    assert store.jobs.list(domain=SOURCE).items == (bootstrap,)
    assert store.jobs.list(domain=TARGET).items == (adaptation,)
    assert store.jobs.list(domain=DomainName("other")).items == ()


# ── leases ───────────────────────────────────────────────────────────────────


def test_the_oldest_job_is_claimed_first_and_by_one_worker(store: Store) -> None:
    names = [store.jobs.enqueue(draft(), request_id="").name for _ in range(2)]
    assert [claimed(store)[0].name, claimed(store)[0].name] == names
    assert store.jobs.claim("w", lease_seconds=30, max_attempts=3) is None


def test_a_job_whose_worker_died_is_claimed_again(store: Store, clock: FakeClock) -> None:
    store.jobs.enqueue(draft(), request_id="")
    _, first = claimed(store)
    clock.advance(29)
    store.jobs.heartbeat(first, 30)
    clock.advance(29)
    assert store.jobs.claim("w2", lease_seconds=30, max_attempts=3) is None
    clock.advance(2)
    job, second = claimed(store, "w2")
    assert (job.attempt, second.attempt) == (2, 2)
    with pytest.raises(LeaseLost):
        store.jobs.heartbeat(first, 30)


def test_a_lease_from_the_future_holds_nothing(store: Store, clock: FakeClock) -> None:
    """The clock was set back by an hour: a dead worker's lease must not last that long."""
    store.jobs.enqueue(draft(), request_id="")
    claimed(store)
    clock.advance(-3600)
    assert claimed(store, "w2")[1].attempt == 2


WRITES: dict[str, Callable[[Store, Lease], object]] = {
    "heartbeat": lambda store, lease: store.jobs.heartbeat(lease, 30),
    "release": lambda store, lease: store.jobs.release(lease),
    "event": lambda store, lease: store.jobs.event(lease, EventKind.EPOCH, None, "late"),
    "enter": lambda store, lease: store.jobs.enter(lease, Phase.TUNING),
    "checkpoint": lambda store, lease: store.jobs.checkpoint(lease, Phase.TUNING, {"late": True}),
    "finish": lambda store, lease: store.jobs.finish(
        lease, state=JobState.REJECTED, summary={"late": True}
    ),
    "finish with a version": lambda store, lease: store.jobs.finish(
        lease,
        state=JobState.SUCCEEDED,
        summary={},
        version=new_version(store, store.jobs.get(lease.job)),
        promote=PRODUCTION,
    ),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("fate", ["claimed by another", "ended by another", "given back"])
def test_a_worker_that_lost_its_lease_writes_nothing(
    store: Store, clock: FakeClock, write: str, fate: str
) -> None:
    store.jobs.enqueue(draft(), request_id="")
    job, lost = claimed(store)
    if fate == "given back":
        store.jobs.release(lost)
    else:
        clock.advance(31)
        _, lease = claimed(store, "worker-2")
        if fate == "ended by another":
            store.jobs.finish(lease, state=JobState.INCONCLUSIVE, summary={"n": 1})
    before = store.jobs.get(job.name), store.jobs.events(job.name)
    with pytest.raises(LeaseLost):
        WRITES[write](store, lost)
    assert (store.jobs.get(job.name), store.jobs.events(job.name)) == before
    assert store.jobs.checkpoints(job.name) == {}
    assert store.registry.list_versions(MODEL).items == ()
    assert store.registry.list_aliases(MODEL) == []


def test_the_same_worker_is_fenced_from_its_own_earlier_claim(
    store: Store, clock: FakeClock
) -> None:
    store.jobs.enqueue(draft(), request_id="")
    _, first = claimed(store, "worker-1")
    store.jobs.release(first)
    _, second = claimed(store, "worker-1")
    with pytest.raises(LeaseLost):
        store.jobs.event(first, EventKind.EPOCH, None, "late")
    clock.advance(31)
    claimed(store, "worker-1")
    with pytest.raises(LeaseLost):
        store.jobs.event(second, EventKind.EPOCH, None, "late")


@pytest.mark.parametrize("write", WRITES)
def test_a_lease_is_its_worker_s_alone(store: Store, write: str) -> None:
    store.jobs.enqueue(draft(), request_id="")
    _, lease = claimed(store, "worker-1")
    with pytest.raises(LeaseLost):
        WRITES[write](store, dataclasses.replace(lease, worker="worker-2"))
    store.jobs.heartbeat(lease, 30)


def test_an_attempt_that_its_worker_calls_spent_counts(store: Store) -> None:
    name = store.jobs.enqueue(draft(), request_id="").name
    for _ in range(2):
        store.jobs.release(claimed(store, attempts=2)[1], spent=True, why="out of memory")
    assert store.jobs.claim("w", lease_seconds=30, max_attempts=2) is None
    assert store.jobs.get(name).state is JobState.FAILED
    assert any("out of memory" in event.message for event in store.jobs.events(name))


def test_a_job_given_back_spends_no_attempt(store: Store) -> None:
    job = store.jobs.enqueue(draft(), request_id="")
    for _ in range(5):
        store.jobs.release(claimed(store, attempts=1)[1])
    assert store.jobs.get(job.name).state is JobState.QUEUED


def test_a_poison_job_fails_after_bounded_attempts_with_the_reason(
    store: Store, clock: FakeClock
) -> None:
    poison = store.jobs.enqueue(draft(), request_id="").name
    good = store.jobs.enqueue(draft(), request_id="").name
    for _ in range(3):
        assert claimed(store)[0].name == poison
        clock.advance(31)
    assert claimed(store)[0].name == good
    job = store.jobs.get(poison)
    assert job.state is JobState.FAILED
    assert job.failure is not None
    assert job.failure.reason == "ATTEMPTS_EXHAUSTED"
    assert states_told(store, poison) == ["QUEUED", *["RUNNING"] * 3, "FAILED"]


# ── cancelling ───────────────────────────────────────────────────────────────


def test_a_queued_job_is_cancelled_at_once(store: Store) -> None:
    job = store.jobs.enqueue(draft(), request_id="")
    assert store.jobs.request_cancel(job.name).state is JobState.CANCELLED
    assert store.jobs.request_cancel(job.name).state is JobState.CANCELLED
    assert store.jobs.claim("w", lease_seconds=30, max_attempts=3) is None
    assert states_told(store, job.name) == ["QUEUED", "CANCELLED"]


def test_a_running_job_hears_of_its_cancellation_and_ends_so_whatever_it_did(
    store: Store,
) -> None:
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    assert store.jobs.request_cancel(job.name).cancel_requested
    assert store.jobs.request_cancel(job.name).state is JobState.RUNNING
    assert store.jobs.heartbeat(lease, 30).cancel_requested
    ended = store.jobs.finish(
        lease,
        state=JobState.SUCCEEDED,
        summary={},
        version=new_version(store, job),
        promote=PRODUCTION,
    )
    assert (ended.state, ended.version) == (JobState.CANCELLED, None)
    assert store.registry.list_versions(MODEL).items == ()
    assert store.registry.list_aliases(MODEL) == []


@pytest.mark.parametrize("by", ["the wish itself", "the next claim", "the release"])
def test_a_cancelled_job_whose_worker_is_gone_ends_cancelled(
    store: Store, clock: FakeClock, by: str
) -> None:
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    if by == "the wish itself":
        clock.advance(31)
        store.jobs.request_cancel(job.name)
    else:
        store.jobs.request_cancel(job.name)
        if by == "the release":
            store.jobs.release(lease)
        else:
            clock.advance(31)
            assert store.jobs.claim("w2", lease_seconds=30, max_attempts=3) is None
    assert store.jobs.get(job.name).state is JobState.CANCELLED
    with pytest.raises(LeaseLost):
        store.jobs.heartbeat(lease, 30)


def test_an_ended_job_cannot_be_cancelled(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    store.jobs.finish(lease, state=JobState.REJECTED, summary={})
    with pytest.raises(JobEnded):
        store.jobs.request_cancel(job.name)


# ── the story and what is kept on the way ────────────────────────────────────


def test_a_story_has_no_gaps_and_is_told_from_any_point(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    store.jobs.enter(lease, Phase.PREPARING)
    event = store.jobs.event(
        lease, EventKind.EPOCH, Phase.PROBING, "epoch 1", {"loss": 0.5, "labels": ["mug"]}
    )
    store.jobs.finish(lease, state=JobState.REJECTED, summary={})
    story = store.jobs.events(job.name)
    assert [item.sequence for item in story] == [1, 2, 3, 4, 5]
    assert [item.kind and item.kind.value for item in story] == [
        "STATE", "STATE", "PHASE", "EPOCH", "STATE",
    ]  # fmt: skip
    assert story[3] == event
    assert event.facts == {"loss": 0.5, "labels": ["mug"]}
    assert store.jobs.events(job.name, after=3) == story[3:]
    assert store.jobs.events(job.name, after=1, limit=2) == story[1:3]


def test_what_no_number_is_is_told_as_nothing(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    _, lease = claimed(store)
    event = store.jobs.event(
        lease,
        EventKind.WARNING,
        None,
        "the loss is nan\0\ud800",
        {"loss": math.nan, "x": [math.inf]},
    )
    assert event.facts == {"loss": None, "x": [None]}
    assert event.message == "the loss is nan\N{REPLACEMENT CHARACTER}?"


def test_a_resumed_job_finds_what_its_predecessor_finished(store: Store, clock: FakeClock) -> None:
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    store.jobs.enter(lease, Phase.TUNING)
    assert store.jobs.get(job.name).phase is Phase.TUNING
    weights = store.blobs.put(b"weights")
    store.jobs.checkpoint(lease, Phase.PROBING, {"accuracy": 0.5})
    store.jobs.checkpoint(lease, "TUNING:last2", {"epoch": 1}, {"weights": weights})
    store.jobs.checkpoint(lease, "TUNING:last2", {"epoch": 2}, {"weights": weights})
    with pytest.raises(BlobNotFound):
        store.jobs.checkpoint(lease, "TUNING:last3", {}, {"weights": "0" * 64})
    clock.advance(31)
    claimed(store, "worker-2")
    kept = store.jobs.checkpoints(job.name)
    assert set(kept) == {"PROBING", "TUNING:last2"}
    assert kept["TUNING:last2"].record == {"epoch": 2}
    assert kept["TUNING:last2"].blobs == {"weights": weights}


# ── the end ──────────────────────────────────────────────────────────────────


def test_an_end_is_one_transaction_of_state_version_and_alias(store: Store) -> None:
    asked = store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    store.jobs.checkpoint(lease, Phase.PROBING, {})
    report = store.blobs.put(b"<html>")
    ended = store.jobs.finish(
        lease,
        state=JobState.SUCCEEDED,
        summary={"gain": 0.1},
        report_html=report,
        version=new_version(store, job),
        promote=PRODUCTION,
    )
    assert ended.state is JobState.SUCCEEDED
    assert ended.version == VersionName("desk", "1")
    assert ended.summary == {"gain": 0.1}
    assert ended.report_html == report
    version = store.registry.get_version(ended.version)
    assert (version.job, version.manifest.version) == (asked.name, "models/desk/versions/1")
    assert store.registry.get_alias(PRODUCTION).version == ended.version
    found = store.registry.get_model(MODEL)
    assert (found.labels, found.source_domain) == (version.manifest.labels, SOURCE)
    assert store.jobs.checkpoints(job.name) == {}
    assert states_told(store, job.name) == ["QUEUED", "RUNNING", "SUCCEEDED"]


def test_an_end_told_twice_by_the_same_worker_is_one_end(store: Store) -> None:
    """The answer to the first call may be lost with the connection."""
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    version = new_version(store, job)
    first = store.jobs.finish(lease, state=JobState.SUCCEEDED, summary={}, version=version)
    assert store.jobs.finish(lease, state=JobState.SUCCEEDED, summary={}, version=version) == first
    assert len(store.registry.list_versions(MODEL).items) == 1
    assert len(states_told(store, job.name)) == 3


def test_a_failure_says_why(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    _, lease = claimed(store)
    failure = Failure(reason="TRAINING_DIVERGED", message="the loss stayed NaN")
    ended = store.jobs.finish(lease, state=JobState.FAILED, summary={}, failure=failure)
    assert ended.failure == failure
    assert ended.ended_at is not None


@pytest.mark.parametrize(
    ("state", "with_version", "with_failure"),
    [
        (JobState.RUNNING, False, False),
        (JobState.SUCCEEDED, False, False),
        (JobState.REJECTED, True, False),
        (JobState.FAILED, False, False),
        (JobState.CANCELLED, False, True),
    ],
)
def test_no_end_contradicts_itself(
    store: Store, state: JobState, with_version: bool, with_failure: bool
) -> None:
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    with pytest.raises(ValueError, match=r"a job has|is not an end"):
        store.jobs.finish(
            lease,
            state=state,
            summary={},
            version=new_version(store, job) if with_version else None,
            failure=Failure(reason="X", message="x") if with_failure else None,
        )
    assert store.jobs.get(job.name).state is JobState.RUNNING


def test_a_version_whose_files_are_not_stored_is_not_written(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    version = new_version(store, job)
    built = version.manifest(VersionName("desk", "1"))
    store.blobs.delete(built.artifacts.onnx)
    with pytest.raises(BlobNotFound):
        store.jobs.finish(
            lease,
            state=JobState.SUCCEEDED,
            summary={},
            version=type(version)(parent=None, origin=version.origin, manifest=lambda _: built),
        )
    assert store.jobs.get(job.name).state is JobState.RUNNING
    assert store.registry.list_versions(MODEL).items == ()


def test_a_version_is_promoted_only_over_what_it_was_weighed_against(store: Store) -> None:
    """Somebody moved production while the job ran: the comparison does not hold for it."""
    first = make_version(store, promote=PRODUCTION)
    store.jobs.enqueue(draft(first), request_id="")
    job, lease = claimed(store)
    other = make_version(store, first)
    store.registry.set_alias(PRODUCTION, other, who="ada", why="better")
    ended = store.jobs.finish(
        lease,
        state=JobState.SUCCEEDED,
        summary={},
        version=new_version(store, job),
        promote=PRODUCTION,
    )
    assert ended.version == VersionName("desk", "3")
    assert store.registry.get_alias(PRODUCTION).version == other
    kinds = [event.kind for event in store.jobs.events(job.name)]
    assert kinds[-2:] == [EventKind.WARNING, EventKind.STATE]
