"""What the guard's level is spent over: the candidates for one target domain of a model."""

from __future__ import annotations

from dataclasses import replace

import pydantic
import pytest
from tests.contract.builders import (
    MODEL,
    SOURCE,
    TARGET,
    claimed,
    domain,
    draft,
    furnish,
    make_version,
    new_version,
)

from acclimate_service.domain.job import JobState
from acclimate_service.domain.names import DomainName, ModelName, VersionName
from acclimate_service.store import Store

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
    state: JobState = JobState.REJECTED,
) -> None:
    """A job for *target* that looked at its holdout and at the source's."""
    store.jobs.enqueue(replace(draft(base), target=target), request_id="")
    job, lease = claimed(store)
    store.jobs.finish(
        lease,
        state=state,
        summary={"variants": list(variants)},
        version=new_version(store, job) if state is JobState.SUCCEEDED else None,
        judged=(SOURCE, target),
    )


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
        before.append(store.jobs.looks(MODEL, camera))
        judged(store, camera, base, state=JobState.SUCCEEDED)
    assert before == [0] * 30


def test_what_was_not_judged_spends_no_look(store: Store) -> None:
    store.jobs.enqueue(draft(make_version(store)), request_id="")
    _, lease = claimed(store)
    store.jobs.finish(lease, state=JobState.CANCELLED, summary={})
    assert store.jobs.looks(MODEL, TARGET) == 0


def test_a_first_version_spends_nothing_of_an_adaptation_s(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    _, lease = claimed(store)
    store.jobs.finish(lease, state=JobState.REJECTED, summary={}, judged=(SOURCE,))
    assert store.jobs.looks(MODEL, None) == 1
    assert store.jobs.looks(MODEL, SOURCE) == 0


def test_variants_are_counted_by_kind_and_by_target_domain(store: Store) -> None:
    base = make_version(store)
    int8: dict[str, pydantic.JsonValue] = {"variant": "int8", "decision": "ACCEPT"}
    judged(store, TARGET, base, int8)
    judged(store, TARGET, base, int8, {"variant": "fp16", "decision": None})
    judged(store, OTHER, base, int8)
    assert store.jobs.variant_looks(MODEL, TARGET, "int8") == 2
    assert store.jobs.variant_looks(MODEL, TARGET, "fp16") == 0
    assert store.jobs.variant_looks(MODEL, OTHER, "int8") == 1
