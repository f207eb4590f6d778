"""Processes that are killed, and processes that race: what was acknowledged holds."""

from __future__ import annotations

import datetime as dt
import functools
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.contract.actor import Actor
from tests.contract.builders import (
    MODEL,
    PRODUCTION,
    SOURCE,
    TARGET,
    FakeClock,
    chain_of,
    claimed,
    draft,
    furnish,
    make_version,
    new_version,
    pictures,
    received,
    send,
)
from tests.contract.conftest import Opener, Place

from acclimate_service.domain.errors import JobEnded, LeaseLost, ServiceError
from acclimate_service.domain.examples import Role, Split
from acclimate_service.domain.job import EventKind, Job, JobState, Lease
from acclimate_service.domain.names import VersionName
from acclimate_service.store import Store

HOUR = 3600


def claimed_when_unlocked(store: Store, worker: str) -> tuple[Job, Lease]:
    """The job of a worker that was killed: PostgreSQL holds its locks until it notices."""
    for _ in range(200):
        if claim := store.jobs.claim(worker, lease_seconds=30, max_attempts=3):
            return claim
        time.sleep(0.05)
    raise AssertionError("the job is never to be had")


def test_racing_processes_claim_every_job_exactly_once(place: Place, store: Store) -> None:
    furnish(store)
    names = [store.jobs.enqueue(draft(), request_id="").name.job for _ in range(40)]
    workers = [Actor(place, "claim", f"worker-{number}") for number in range(3)]
    for worker in workers:
        worker.go()
    taken = [name for worker in workers for name in worker.hear_out()]
    assert sorted(map(str, taken)) == sorted(names)
    assert {job.attempt for job in store.jobs.list(page_size=100).items} == {1}


@pytest.mark.parametrize("heard", [1, 4])
def test_an_upload_killed_midway_goes_on_where_it_was_acknowledged(
    place: Place, store: Store, heard: int
) -> None:
    furnish(store)
    actor = Actor(place, "upload", 5, 200)
    actor.go()
    acknowledged = [actor.hear() for _ in range(heard)][-1]
    actor.process.kill()
    actor.hear_out()

    batch = store.domains.begin_batch(TARGET, Role.TRAIN, request_id="r")
    assert isinstance(acknowledged, int)
    assert acknowledged <= batch.received < 200
    assert store.domains.examples(TARGET, splits=[Split.TRAIN]) == []  # no partial batch
    pics = pictures(200)
    assert batch.chain == chain_of(pics[: batch.received])
    rest = received(store, pics[batch.received :], start=batch.received, chain=batch.chain)
    store.domains.add(batch.name, rest)
    committed = store.domains.commit_batch(batch.name, count=200, chain=chain_of(pics))
    assert (committed.accepted, committed.duplicates) == (200, 0)
    examples = store.domains.examples(TARGET, splits=[Split.TRAIN])
    assert {example.content for example in examples} == {pic.content for pic in pics}
    for example in examples:
        store.blobs.verify(example.blob)


def test_a_worker_killed_while_it_ends_a_job_leaves_the_job_to_be_ended_once(
    place: Place, opener: Opener
) -> None:
    store = opener(clock=None)
    furnish(store)
    job = store.jobs.enqueue(draft(), request_id="r")
    actor = Actor(place, "finish_and_die")
    actor.go()
    assert actor.hear_out() == ["models/desk/versions/1"]
    assert actor.process.exitcode == -signal.SIGKILL

    found = store.jobs.get(job.name)
    assert (found.state, found.version) == (JobState.RUNNING, None)
    assert store.registry.list_versions(MODEL).items == ()
    later = opener(clock=lambda: dt.datetime.now(dt.UTC) + dt.timedelta(seconds=60))
    resumed, lease = claimed_when_unlocked(later, "worker-2")
    ended = later.jobs.finish(
        lease, state=JobState.SUCCEEDED, summary={}, version=new_version(later, resumed)
    )
    assert (ended.attempt, ended.version) == (2, VersionName("desk", "1"))


def test_a_blob_whose_writer_died_before_its_rename_was_never_there(
    place: Place, store: Store
) -> None:
    actor = Actor(place, "die_before_rename")
    actor.go()
    assert actor.hear_out() == ["written"]
    assert actor.process.exitcode == -signal.SIGKILL
    assert list(store.blobs.digests()) == []
    assert isinstance(place.blobs, Path)
    assert len(list((place.blobs / "tmp").iterdir())) == 1
    assert store.reconcile(grace=dt.timedelta(seconds=-60)).unfinished == 1
    assert list((place.blobs / "tmp").iterdir()) == []


def race(*moves: Callable[[], object]) -> list[ServiceError | None]:
    """Run *moves* at once, each in its thread; what refused each, if anything did."""
    barrier = threading.Barrier(len(moves))
    answers: list[ServiceError | None] = [None] * len(moves)
    broken: list[BaseException] = []

    def run(number: int, move: Callable[[], object]) -> None:
        barrier.wait()
        try:
            move()
        except ServiceError as error:
            answers[number] = error
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            broken.append(error)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(moves)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert broken == []
    return answers


def test_a_job_that_is_finished_cancelled_and_claimed_at_once_has_one_end(
    opener: Opener, clock: FakeClock
) -> None:
    """The third sees a clock on which the lease has expired."""
    one, two = opener(), opener()
    late = opener(clock=FakeClock(clock.now + dt.timedelta(seconds=HOUR)))
    furnish(one)
    for _ in range(12):
        name = one.jobs.enqueue(draft(), request_id="").name
        job, lease = claimed(one)
        finish = functools.partial(
            one.jobs.finish,
            lease,
            state=JobState.SUCCEEDED,
            summary={},
            version=new_version(one, job),
            promote=PRODUCTION,
        )
        cancel = functools.partial(two.jobs.request_cancel, name)
        claim = functools.partial(late.jobs.claim, "late", lease_seconds=30, max_attempts=1)
        answers = race(finish, cancel, claim)
        assert {type(answer) for answer in answers} <= {type(None), LeaseLost, JobEnded}
        ended = one.jobs.get(name)
        assert ended.state.ended
        told = [
            event.facts["state"]
            for event in one.jobs.events(name)
            if event.kind is EventKind.STATE and JobState(event.facts["state"]).ended
        ]
        assert told == [ended.state.value]
        assert (one.registry.version_of_job(name) is not None) == (
            ended.state is JobState.SUCCEEDED
        )
        if answers[1] is None:  # the cancellation was acknowledged
            assert ended.state in {JobState.CANCELLED, JobState.FAILED}


def test_of_racing_enqueues_with_one_request_id_one_makes_the_job(opener: Opener) -> None:
    stores = [opener() for _ in range(4)]
    furnish(stores[0])

    def enqueue(store: Store) -> Callable[[], object]:
        return lambda: store.jobs.enqueue(draft(), request_id="r")

    assert race(*map(enqueue, stores)) == [None] * 4
    assert len(stores[0].jobs.list().items) == 1


def test_of_racing_promotions_from_one_version_one_wins(opener: Opener) -> None:
    stores = [opener() for _ in range(3)]
    furnish(stores[0])
    first = make_version(stores[0], promote=PRODUCTION)
    others = [make_version(stores[0], first) for _ in stores]

    def promote(store: Store, version: VersionName) -> Callable[[], object]:
        return lambda: store.registry.set_alias(PRODUCTION, version, expect=first)

    answers = race(*map(promote, stores, others))
    assert sorted(type(answer).__name__ for answer in answers) == [
        "AliasMoved",
        "AliasMoved",
        "NoneType",
    ]
    winner = others[answers.index(None)]
    assert stores[0].registry.get_alias(PRODUCTION).version == winner
    assert len(stores[0].registry.alias_history(PRODUCTION)) == 2


def test_of_one_picture_held_out_and_trained_on_at_once_one_is_refused(opener: Opener) -> None:
    one, two = opener(), opener()
    furnish(one)
    taken: list[str] = []

    def upload(store: Store, name: str, role: Role) -> None:
        to = TARGET if role is Role.TRAIN else SOURCE
        _, outcomes = send(store, pictures(3, prefix=name), role, to=to, request=f"{name} {role}")
        taken.extend(name for outcome in outcomes if outcome.refusal is None)

    for round_ in range(6):
        name = f"round {round_}"
        answers = race(
            functools.partial(upload, one, name, Role.TRAIN),
            functools.partial(upload, two, name, Role.HOLDOUT),
        )
        assert answers == [None, None]
        assert taken.count(name) == 3
