"""How many images a decision will need."""

from __future__ import annotations

import numpy as np
import pytest

from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.guard import Decision, GuardPolicy
from acclimate_service.domain.planning import plan, power
from acclimate_service.domain.tolerance import Tolerance

BALANCED = GuardPolicy()
SOURCE = Tolerance(limit=0.01, margin=0.03, level=0.05, looks=0)


def test_without_disagreement_the_plan_is_the_binomials_own_number() -> None:
    """0.97^n <= 0.0304, the level of the first look."""
    row = plan(BALANCED, discordances=[0.0], powers=[0.8])[0]
    assert row.verify == 115
    assert row.holdout == 192  # 60 % of the held-out images verify


def test_a_margin_of_one_point_cannot_be_certified_under_three_hundred_images() -> None:
    rows = plan(BALANCED, margin=0.01)
    assert all(row.verify is not None and row.verify >= 300 for row in rows)


def test_more_disagreement_power_looks_or_a_smaller_margin_need_more_images() -> None:
    def verify(**how: object) -> int:
        wanted = {"discordances": [0.03], "powers": [0.8], **how}
        found = plan(BALANCED, **wanted)[0].verify  # type: ignore[arg-type]
        assert found is not None
        return found

    base = verify()
    assert verify(discordances=[0.1]) > base
    assert verify(powers=[0.95]) > base
    assert verify(looks=10) > base
    assert verify(margin=0.02) > base
    assert verify(drop=0.005) > base


def test_a_drop_beyond_the_limit_is_out_of_reach() -> None:
    (row,) = plan(BALANCED, drop=0.02, discordances=[0.05], powers=[0.8])
    assert row.verify is None
    assert row.holdout is None
    assert row.to_json()["verify"] is None


@pytest.mark.parametrize(("n", "discordance"), [(200, 0.02), (472, 0.05), (300, 0.0)])
def test_the_promised_power_is_what_simulated_candidates_find(n: int, discordance: float) -> None:
    generator = np.random.default_rng(5)
    rates = [discordance / 2, discordance / 2, 1 - discordance]
    counts = generator.multinomial(n, rates, size=3000)
    tables, times = np.unique(counts, axis=0, return_counts=True)
    found = [SOURCE.decide(int(b), int(c), n) is Decision.ACCEPT for b, c, _ in tables]
    assert np.average(found, weights=times) == pytest.approx(
        power(SOURCE, n, discordance, 0.0), abs=0.03
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin": 0.0},
        {"margin": 1.5},
        {"looks": -1},
        {"drop": 1.0},
        {"discordances": [1.5]},
        {"powers": [1.0]},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidSpec):
        plan(BALANCED, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lost", "gained"), [(0.0, 0.0), (0.01, 0.01), (0.02, 0.005), (0.03, 0.03), (0.012, 0.0)]
)
def test_the_number_needed_decides_at_the_observed_rates(lost: float, gained: float) -> None:
    needed = SOURCE.needed(lost, gained, 50)
    assert needed is not None
    later = Tolerance(limit=0.01, margin=0.03, level=0.05, looks=1)
    answer = later.decide(round(lost * needed), round(gained * needed), needed)
    assert answer is not Decision.INCONCLUSIVE
    assert answer is (Decision.ACCEPT if lost - gained <= 0.01 else Decision.REJECT)


@pytest.mark.parametrize("half", [1, 2, 3, 5])
def test_where_all_images_disagree_no_more_of_them_are_counted_than_there_are(half: int) -> None:
    """Half lost and half gained: of an odd number, both would round up."""
    allowed = Tolerance(limit=0.1, margin=0.2, level=0.01, looks=0)
    assert allowed.decide(half, half, 2 * half) is Decision.INCONCLUSIVE
    needed = allowed.needed(0.5, 0.5, 2 * half)
    assert needed is not None
    assert needed > 2 * half
