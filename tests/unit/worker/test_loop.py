"""The loop beside a trainer that does what a test says, over a real store that can be gone."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.contract.builders import draft, furnish

from acclimate_service.domain.errors import ProviderUnavailable, StoreUnavailable
from acclimate_service.domain.job import EventKind, Job, JobState, Lease
from acclimate_service.domain.names import JobName
from acclimate_service.store import Store, open_store
from acclimate_service.worker.loop import Loop

LEASE_SECONDS = 0.5


class StandIn:
    """A trainer that is ready at once and works until it is told to end, or killed."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.killed = False
        self.status: int | None = None
        self.quiet = 0.0
        self.gives_up = False
        self.refuses = False

    def ready(self) -> bool:
        return True

    def start(self, lease: Lease) -> None:
        self.lease = lease

    def alive(self) -> bool:
        return self.status is None and not self.killed

    def silence(self) -> float:
        return self.quiet

    def starving(self) -> bool:
        return False

    def refused(self) -> bool:
        return self.refuses

    def gave_up(self) -> bool:
        return self.gives_up

    def last_words(self) -> str:
        return f"exit status {self.status}; out of memory"

    def kill(self) -> None:
        self.killed = True


class Jobs:
    """The store's jobs, or an outage."""

    def __init__(self, store: Store) -> None:
        self._jobs = store.jobs
        self.gone = False
        self.hangs: threading.Event | None = None  # until it is set

    def __getattr__(self, name: str) -> Callable[..., object]:
        if self.hangs is not None:
            self.hangs.wait(30)
        if self.gone:
            raise StoreUnavailable("the database is gone")
        found: Callable[..., object] = getattr(self._jobs, name)
        return found


class Worker:
    """A loop on a thread of its own, the trainers it started, and its store."""

    def __init__(self, store: Store, *, max_attempts: int = 2, stall_seconds: float = 60) -> None:
        self.store = store
        self.jobs = Jobs(store)
        self.trainers: list[StandIn] = []
        self.starved: list[bool] = []
        self.stop = threading.Event()
        self.loop = Loop(
            self.jobs,  # type: ignore[arg-type]  # stands for it
            worker="one",
            spawn=self._spawn,
            lease_seconds=LEASE_SECONDS,
            poll_seconds=0.01,
            stall_seconds=stall_seconds,
            max_attempts=max_attempts,
        )
        self._thread = threading.Thread(target=self.loop.run, args=(self.stop,))
        self._thread.start()

    def _spawn(self, starved: bool) -> StandIn:
        self.starved.append(starved)
        self.trainers.append(StandIn())
        return self.trainers[-1]

    def end(self) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def trainer_at_work(self, attempt: int) -> StandIn:
        """The trainer of the so-maniest attempt, once it has its lease."""

        def found() -> StandIn | None:
            at_work = [t for t in self.trainers if t.lease and t.lease.attempt == attempt]
            return at_work[0] if at_work else None

        return until(found)

    def job(self, name: JobName) -> Job:
        return self.store.jobs.get(name)


def until(condition: Callable[[], StandIn | bool | None]) -> StandIn:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer  # type: ignore[return-value]  # True for those who ask a bool
        time.sleep(0.005)
    raise AssertionError("it did not happen")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path / "blobs")
    furnish(opened)
    yield opened
    opened.close()


def test_a_worker_whose_device_is_not_there_ends_and_claims_nothing(store: Store) -> None:
    name = store.jobs.enqueue(draft(), request_id="").name
    absent = StandIn()
    absent.status, absent.refuses = os.EX_CONFIG, True
    loop = Loop(
        store.jobs,
        worker="one",
        spawn=lambda _: absent,
        lease_seconds=LEASE_SECONDS,
        poll_seconds=0.01,
        stall_seconds=60,
        max_attempts=2,
    )
    with pytest.raises(ProviderUnavailable, match="out of memory"):  # its last words
        loop.run(threading.Event())
    assert store.jobs.get(name).state is JobState.QUEUED


def test_outages_of_the_store_cost_a_job_none_of_its_attempts(store: Store) -> None:
    name = store.jobs.enqueue(draft(), request_id="").name
    worker = Worker(store, max_attempts=2)
    try:
        for attempt in (1, 2, 3, 4):  # more than it has
            trainer = worker.trainer_at_work(attempt)
            worker.jobs.gone = True
            until(functools.partial(getattr, trainer, "killed"))
            worker.jobs.gone = False
        worker.trainer_at_work(5)
        assert worker.job(name).state is JobState.RUNNING
        told = [event.message for event in store.jobs.events(name)]
        assert told.count("given back by its worker: the store was out of reach") == 4
    finally:
        worker.end()


def test_a_store_that_does_not_answer_at_all_does_not_keep_a_trainer_past_its_lease(
    store: Store,
) -> None:
    """As a database that hangs does, or a lock that somebody holds for long."""
    store.jobs.enqueue(draft(), request_id="")
    worker = Worker(store, max_attempts=1)
    answers = threading.Event()
    try:
        trainer = worker.trainer_at_work(1)
        worker.jobs.hangs = answers
        until(functools.partial(getattr, trainer, "killed"))
        assert not answers.is_set()
        answers.set()
        worker.trainer_at_work(2)  # and the outage cost the job its one attempt no more
    finally:
        answers.set()
        worker.end()


def test_a_trainer_that_gave_up_on_an_absent_store_costs_its_job_no_attempt(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    worker = Worker(store, max_attempts=1)
    try:
        trainer = worker.trainer_at_work(1)
        trainer.gives_up = True
        worker.jobs.gone = True
        trainer.status = 75
        until(lambda: len(worker.trainers) > 1)
        worker.jobs.gone = False
        worker.trainer_at_work(2)
    finally:
        worker.end()


def test_jobs_are_claimed_more_and_more_rarely_while_trainers_give_up_on_the_store(
    store: Store,
) -> None:
    """A full disk beside a database server: jobs can be claimed, and nothing be stored."""
    name = store.jobs.enqueue(draft(), request_id="").name
    worker = Worker(store)
    try:
        for attempt in range(1, 5):
            trainer = worker.trainer_at_work(attempt)
            trainer.gives_up = True
            trainer.status = 75
        trainer = worker.trainer_at_work(5)
        trainer.status = 75  # and then something else went wrong: the next claim is at once
        worker.trainer_at_work(6)
        claims = [e.at for e in store.jobs.events(name) if e.facts.get("state") == "RUNNING"]
        waits = [later - earlier for earlier, later in itertools.pairwise(claims)]
        least = [LEASE_SECONDS / 6 * 2**number for number in range(4)]
        assert [wait.total_seconds() >= few for wait, few in zip(waits, least, strict=False)] == [
            True
        ] * 4
    finally:
        worker.end()


def test_a_job_whose_trainers_die_fails_with_what_the_last_one_said(store: Store) -> None:
    name = store.jobs.enqueue(draft(), request_id="").name
    other = store.jobs.enqueue(draft(seed=1), request_id="").name
    worker = Worker(store, max_attempts=2)
    try:
        for attempt in (1, 2):
            worker.trainer_at_work(attempt).status = 1
        until(lambda: worker.job(name).state.ended)
        failure = worker.job(name).failure
        assert failure is not None
        assert failure.reason == "ATTEMPTS_EXHAUSTED"
        assert "out of memory" in failure.message
        until(lambda: worker.job(other).state is JobState.RUNNING)
    finally:
        worker.end()


def test_a_trainer_without_a_sign_of_life_is_killed_and_its_job_resumed(store: Store) -> None:
    name = store.jobs.enqueue(draft(), request_id="").name
    worker = Worker(store, stall_seconds=5)
    try:
        trainer = worker.trainer_at_work(1)
        trainer.quiet = 6
        worker.trainer_at_work(2)
        assert trainer.killed
        states = [e.message for e in store.jobs.events(name) if e.kind is EventKind.STATE]
        assert "given back by its worker: no sign of life for 5 s" in states
    finally:
        worker.end()


def test_a_worker_that_stops_gives_its_job_back_with_the_attempt_unspent(store: Store) -> None:
    name = store.jobs.enqueue(draft(), request_id="").name
    for attempt in (1, 2, 3):
        worker = Worker(store, max_attempts=1)
        worker.trainer_at_work(attempt)
        worker.end()
        assert worker.job(name).state is JobState.QUEUED
        assert all(trainer.killed for trainer in worker.trainers)
