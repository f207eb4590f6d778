"""Kills at random moments: 60 of them over the two stores; with ``-m slow``, 300. ``-s`` tells."""

from __future__ import annotations

import random
import time

import pytest
from tests.contract.actor import Actor
from tests.contract.builders import MODEL, TARGET, furnish, new_version, pictures
from tests.contract.conftest import Opener, Place

from acclimate_service.domain.examples import Split
from acclimate_service.domain.job import Job, JobState
from acclimate_service.store import Store

SEED = 20261123


@pytest.mark.parametrize("rounds", [15, pytest.param(75, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_whenever_two_writers_are_killed(
    place: Place, opener: Opener, rounds: int
) -> None:
    store = opener(clock=None)
    furnish(store)
    moments = random.Random(SEED)
    # A process dies in the first to the fourth round of its work, however long one takes here.
    said, each = _undisturbed(place, 2 * rounds)
    for number in range(rounds):
        two = [Actor(place, "live", 2 * number + side) for side in range(2)]
        for actor in two:
            actor.go()
        for actor in two:
            time.sleep(moments.uniform(0, 4 * each))
            actor.process.kill()
        for actor in two:
            said += [tuple(word) for word in actor.hear_out()]  # type: ignore[arg-type,misc]  # as it was sent
    _see_all_jobs_through(store)

    batches = {name for what, name in said if what == "batch"}
    jobs = {name for what, name in said if what == "job"}
    versions = {name for what, name in said if what == "version"}
    print(
        f"\n{2 * rounds} kills: {len(batches)} batches, {len(jobs)} jobs and {len(versions)}"
        " versions acknowledged"
    )
    assert len(batches) > rounds
    _check_examples(store, batches)
    _check_jobs(store, jobs, versions)
    found = store.reconcile()
    assert found.missing == ()


def _undisturbed(place: Place, seed: int) -> tuple[list[tuple[str, str]], float]:
    """What a process says that is left alone for three uploads, and the seconds for each round."""
    actor, said, began = Actor(place, "live", seed), list[tuple[str, str]](), time.monotonic()
    actor.go()
    while [what for what, _ in said].count("batch") < 3:
        said.append(actor.hear())  # type: ignore[arg-type]  # as it was sent
    seconds = (time.monotonic() - began) / 2
    actor.process.kill()
    return said + actor.hear_out(), seconds  # type: ignore[operator]


def _see_all_jobs_through(store: Store) -> None:
    time.sleep(0.1)  # the leases of the dead
    while taken := store.jobs.claim("last", lease_seconds=30, max_attempts=10_000):
        job, lease = taken
        version = new_version(store, job)
        store.jobs.finish(lease, state=JobState.SUCCEEDED, summary={}, version=version)


def _check_examples(store: Store, batches: set[str]) -> None:
    """Every acknowledged batch is whole, with its files; any other is whole or not there."""
    examples = store.domains.examples(TARGET, splits=[Split.TRAIN])
    contents = {example.content for example in examples}
    for request in batches:
        assert contents >= {pic.content for pic in pictures(12, prefix=request)}
    assert len(examples) % 12 == 0
    for example in examples:
        store.blobs.verify(example.blob)


def _check_jobs(store: Store, asked: set[str], versions: set[str]) -> None:
    """Every acknowledged job is there once and has one end and one version."""
    jobs: list[Job] = []
    token = ""
    while True:
        page = store.jobs.list(page_size=1000, page_token=token)
        jobs += page.items
        token = page.next_token
        if not token:
            break
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    requests = [job.request_id for job in jobs]
    assert len(requests) == len(set(requests))
    assert set(requests) >= asked
    made = [str(job.version) for job in jobs]
    assert len(made) == len(set(made))
    assert set(made) >= versions
    for job in jobs:
        ends = [
            event
            for event in store.jobs.events(job.name, limit=10_000)
            if event.facts.get("state") == "SUCCEEDED"
        ]
        assert len(ends) == 1
    numbers = {int(name.rsplit("/", 1)[1]) for name in made}
    assert numbers == set(range(1, len(jobs) + 1))
    assert store.registry.get_model(MODEL).labels == ("mug", "pen")
