"""What the guard's level is spent over: the candidates for one target domain of a model."""

from __future__ import annotations

from dataclasses import replace

import pydantic
import pytest
import sqlalchemy as sa
from tests.contract.builders import (
    MODEL,
    SOURCE,
    TARGET,
    FakeClock,
    claimed,
    domain,
    draft,
    furnish,
    make_version,
    new_version,
)
from tests.contract.conftest import Opener

from acclimate_service.domain.errors import LeaseLost
from acclimate_service.domain.job import JobState
from acclimate_service.domain.model import Reduced
from acclimate_service.domain.names import DomainName, JobName, ModelName, VersionName
from acclimate_service.store import Look, Store, schema

OTHER = DomainName("dslr")


@pytest.fixture
def store(store: Store) -> Store:
    furnish(store)
    domain(store, OTHER)
    return store


def judged(
    store: Store,
    target: DomainName,
    base: VersionName,
    *variants: pydantic.JsonValue,
    asked: str = "",
    state: JobState = JobState.REJECTED,
) -> tuple[JobName, Look]:
    """A job for *target* that looked at its holdout and at the source's, and its look."""
    name = store.jobs.enqueue(replace(draft(base), target=target), request_id="").name
    job, lease = claimed(store)
    look = store.jobs.look(lease, (SOURCE, target), asked=asked or str(name))
    store.jobs.finish(
        lease,
        state=state,
        summary={"variants": list(variants)},
        version=new_version(store, job) if state is JobState.SUCCEEDED else None,
    )
    return name, look


def of_variant(store: Store, target: DomainName, variant: Reduced, before: int = 100) -> int:
    return store.jobs.variant_looks(MODEL, target, variant, before=before)


def test_each_target_domain_has_looks_of_its_own(store: Store) -> None:
    base = make_version(store)
    for _ in range(3):
        judged(store, TARGET, base)
    judged(store, OTHER, base, state=JobState.SUCCEEDED)
    assert store.jobs.looks(MODEL, TARGET) == 3
    assert store.jobs.looks(MODEL, OTHER) == 1
    assert store.jobs.looks(ModelName("another"), TARGET) == 0


def test_the_thirtieth_camera_is_looked_at_as_the_first_was(store: Store) -> None:
    base = make_version(store)
    before = []
    for number in range(30):
        camera = domain(store, DomainName(f"camera-{number}"))
        _, look = judged(store, camera, base, state=JobState.SUCCEEDED)
        before.append(look.before)
    assert before == [0] * 30


def test_what_was_not_judged_spends_no_look(store: Store) -> None:
    store.jobs.enqueue(draft(make_version(store)), request_id="")
    _, lease = claimed(store)
    store.jobs.finish(lease, state=JobState.CANCELLED, summary={})
    assert store.jobs.looks(MODEL, TARGET) == 0


def test_a_first_version_spends_nothing_of_an_adaptation_s(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    _, lease = claimed(store)
    store.jobs.look(lease, [SOURCE], asked="a first version")
    assert store.jobs.looks(MODEL, None) == 1
    assert store.jobs.looks(MODEL, SOURCE) == 0


def test_variants_are_counted_by_kind_and_by_target_domain(store: Store) -> None:
    base = make_version(store)
    int8: dict[str, pydantic.JsonValue] = {"variant": "int8", "decision": "ACCEPT"}
    judged(store, TARGET, base, int8)
    judged(store, TARGET, base, int8, {"variant": "fp16", "decision": None})
    judged(store, OTHER, base, int8)
    assert of_variant(store, TARGET, "int8") == 2
    assert of_variant(store, TARGET, "int8", before=1) == 1
    assert of_variant(store, TARGET, "fp16") == 0
    assert of_variant(store, OTHER, "int8") == 1


def test_what_was_asked_before_spends_no_look(store: Store) -> None:
    base = make_version(store)
    first, _ = judged(store, TARGET, base, asked="this file")
    _, other = judged(store, TARGET, base, asked="that file")
    _, again = judged(store, TARGET, base, asked="this file")
    assert other == Look(before=1)
    assert again == Look(before=0, same_as=first)
    assert store.jobs.looks(MODEL, TARGET) == 2
    assert judged(store, OTHER, base, asked="this file")[1] == Look(before=0)


def test_two_workers_never_have_the_same_look(store: Store, opener: Opener) -> None:
    base, other = make_version(store), opener()
    leases = []
    for worker in ("worker-1", "worker-2"):
        store.jobs.enqueue(draft(base), request_id="")
        leases.append(claimed(store, worker)[1])
    looks = [
        at.jobs.look(lease, [SOURCE, TARGET], asked=lease.worker)
        for at, lease in zip((store, other), leases, strict=True)
    ]
    assert looks == [Look(before=0), Look(before=1)]


def test_a_job_that_is_resumed_keeps_its_look(store: Store, clock: FakeClock) -> None:
    store.jobs.enqueue(draft(make_version(store)), request_id="")
    _, lost = claimed(store)
    assert store.jobs.look(lost, [SOURCE, TARGET], asked="this file") == Look(before=0)
    clock.advance(60)
    _, lease = claimed(store, "worker-2")
    with pytest.raises(LeaseLost):
        store.jobs.look(lost, [SOURCE, TARGET], asked="this file")
    assert store.jobs.look(lease, [SOURCE, TARGET], asked="this file") == Look(before=0)
    assert store.jobs.looks(MODEL, TARGET) == 1


def test_who_makes_another_file_when_resumed_spends_another_look(
    store: Store, clock: FakeClock
) -> None:
    store.jobs.enqueue(draft(make_version(store)), request_id="")
    _, lost = claimed(store)
    store.jobs.look(lost, [SOURCE, TARGET], asked="this file")
    clock.advance(60)
    _, lease = claimed(store, "worker-2")
    assert store.jobs.look(lease, [SOURCE, TARGET], asked="that file") == Look(before=1)


def test_looks_that_an_older_acclimate_counted_are_spent(store: Store) -> None:
    base = make_version(store)
    for asked in ("one", "two"):
        judged(store, TARGET, base, asked=asked)
    with store.database.engine.begin() as connection:
        connection.execute(sa.update(schema.looks).values(number=None, asked=None))
    assert store.jobs.looks(MODEL, TARGET) == 2
    assert judged(store, TARGET, base, asked="one")[1] == Look(before=2)
    assert judged(store, TARGET, base, asked="three")[1] == Look(before=3)
    with store.database.engine.begin() as connection:  # an older worker beside a newer one
        later = schema.looks.c.number == 3
        connection.execute(sa.update(schema.looks).where(later).values(number=None, asked=None))
    assert store.jobs.looks(MODEL, TARGET) == 4


def test_who_sees_its_numbers_and_is_cancelled_has_spent_a_look(store: Store) -> None:
    job = store.jobs.enqueue(draft(make_version(store)), request_id="")
    _, lease = claimed(store)
    store.jobs.look(lease, [SOURCE, TARGET], asked="this file")
    store.jobs.request_cancel(job.name)
    store.jobs.finish(lease, state=JobState.CANCELLED, summary={})
    assert store.jobs.looks(MODEL, TARGET) == 1
