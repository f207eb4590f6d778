from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from acclimate_service.domain import drift as drift_module
from acclimate_service.domain.drift import FEWEST, LEVEL, PERMUTATIONS, drift, sketch

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


def test_one_that_is_far_is_told_from_a_hundred_and_fifty_that_are_like() -> None:
    rng = np.random.default_rng(11)
    known = {f"near-{number}": cluster(rng, 64) for number in range(150)}
    known["far"] = cluster(rng, 64, shift=1.5)
    found = drift(cluster(rng, 64), known)
    assert {one.domain for one in found.domains if one.unlike} == {"far"}
    assert next(one.p for one in found.domains if one.domain == "far") < LEVEL / 151


def test_a_p_value_below_what_permutations_count_is_as_small_as_it_should_be() -> None:
    """Where one of 1,000 permutations comes, it is read from 1,999 of which two came so far."""
    rng = np.random.default_rng(12)
    ratios = []
    for _ in range(3):
        both = [cluster(rng, 48), cluster(rng, 48)]
        permuted = drift_module._permuted(np.concatenate(both), 48, rng, 30_000)[1:]
        rare = float(np.quantile(permuted, 1 - 1e-3))
        read = [drift_module._chance(rare, rng.choice(permuted, 1999)) for _ in range(20)]
        ratios.append(float(np.median(read)) / 1e-3)
    assert 0.5 < min(ratios) <= max(ratios) < 2


def test_a_sketch_is_small_and_as_far_from_others_as_what_it_is_of() -> None:
    rng = np.random.default_rng(13)
    wide = np.abs(rng.normal(size=(256, 1280))) * np.linspace(2.0, 0.1, 1280)
    wide[128:, :320] += 0.3
    whole = drift(wide[:128], {"a": wide[128:]}).domains[0].distance
    small = sketch(wide)
    assert small.shape == (256, drift_module.WIDTH)
    assert small.nbytes == 256 * drift_module.WIDTH * 2
    assert drift(small[:128], {"a": small[128:]}).domains[0].distance == pytest.approx(
        whole, rel=0.25
    )
    narrow = cluster(rng, 64)
    assert sketch(narrow).shape == narrow.shape


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
