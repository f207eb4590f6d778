from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from acclimate_service.domain import drift as drift_module
from acclimate_service.domain.drift import FEWEST, LEVEL, PERMUTATIONS, drift

WIDTH = 32


def cluster(rng: np.random.Generator, count: int, *, shift: float = 0.0) -> NDArray[np.float64]:
    """Features as networks make them: not negative, a few directions strong, some moved."""
    strong = np.linspace(2.0, 0.1, WIDTH)
    rows = np.abs(rng.normal(size=(count, WIDTH))) * strong
    rows[:, : WIDTH // 4] += shift
    return rows


def test_the_same_distribution_is_seldom_called_another() -> None:
    rng = np.random.default_rng(1)
    due = [drift(cluster(rng, 96), {"a": cluster(rng, 96)}, seed=seed).due for seed in range(100)]
    assert sum(due) <= 3  # LEVEL is 1 %, and a distance that matters is asked for beside


def test_its_p_value_is_as_uniform_as_it_should_be() -> None:
    rng = np.random.default_rng(2)
    ps = [
        drift(cluster(rng, 64), {"a": cluster(rng, 64)}, seed=seed).domains[0].p
        for seed in range(100)
    ]
    assert sum(p <= 0.1 for p in ps) <= 20
    assert sum(p <= LEVEL for p in ps) <= 5


def test_a_shift_from_every_known_domain_calls_for_an_adaptation() -> None:
    rng = np.random.default_rng(3)
    known = {"studio": cluster(rng, 128), "night": cluster(rng, 128, shift=6.0)}
    found = drift(cluster(rng, 128, shift=2.0), known)
    assert found.due
    assert "a new adaptation is due" in found.told
    assert all(one.unlike for one in found.domains)


def test_what_looks_like_one_known_domain_is_told_to_be_that() -> None:
    rng = np.random.default_rng(4)
    known = {"studio": cluster(rng, 128), "night": cluster(rng, 128, shift=3.0)}
    found = drift(cluster(rng, 128, shift=3.0), known)
    assert not found.due
    assert found.domains[0].domain == "night"
    assert "look like night" in found.told
    assert [one.unlike for one in found.domains] == [False, True]


def test_a_shift_from_many_known_domains_is_seen_as_well() -> None:
    rng = np.random.default_rng(8)
    known = {f"site-{number}": cluster(rng, 96) for number in range(12)}
    assert drift(cluster(rng, 96, shift=4.0), known).due
    assert not drift(cluster(rng, 96), known).due


def test_a_hundred_domains_cost_a_hundred_times_as_much_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And are told apart as one is, with no more permutations for each."""
    asked: list[int] = []
    measure = drift_module._distance

    def counted(live: Any, rows: Any, drawn: Any, permutations: int) -> tuple[float, float]:
        asked.append(permutations)
        return measure(live, rows, drawn, permutations)

    monkeypatch.setattr(drift_module, "_distance", counted)
    rng = np.random.default_rng(9)
    known = {f"site-{number}": cluster(rng, 96) for number in range(100)}
    found = drift(cluster(rng, 96, shift=4.0), known)
    assert found.due
    assert all(one.unlike for one in found.domains)
    assert asked == [PERMUTATIONS] * 100


def test_domains_that_are_unlike_are_told_from_many_that_are_like() -> None:
    rng = np.random.default_rng(10)
    known = {f"near-{number}": cluster(rng, 96) for number in range(8)}
    known |= {f"far-{number}": cluster(rng, 96, shift=4.0) for number in range(3)}
    found = drift(cluster(rng, 96), known)
    assert not found.due
    assert {one.domain for one in found.domains if one.unlike} == {"far-0", "far-1", "far-2"}


def test_too_few_images_are_told_and_accuse_nobody() -> None:
    rng = np.random.default_rng(5)
    few = drift(cluster(rng, FEWEST - 1, shift=5), {"a": cluster(rng, 128)})
    assert (few.due, few.domains) == (False, ())
    assert f"{FEWEST - 1} of {FEWEST}" in few.told
    assert not drift(cluster(rng, 128), {"a": cluster(rng, 5)}).due
    assert not drift(cluster(rng, 128), {}).due


def test_contrast_alone_is_no_drift() -> None:
    rng = np.random.default_rng(6)
    assert not drift(0.5 * cluster(rng, 128), {"a": cluster(rng, 128)}).due


def test_it_is_deterministic_given_its_seed() -> None:
    rng = np.random.default_rng(7)
    live, known = cluster(rng, 200), {"a": cluster(rng, 200)}
    assert drift(live, known, seed=3) == drift(live, known, seed=3)
