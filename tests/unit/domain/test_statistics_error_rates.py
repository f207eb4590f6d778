"""How often the source check lets a truly worse candidate through, by simulation.

The table of docs/guard.md is made here: ``python -m tests.unit.domain.test_statistics_error_rates``
prints it, from the same seeds.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats  # type: ignore[import-untyped]  # it ships none

from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.statistics import excludes, quantile, score, spent_level
from acclimate_service.domain.tolerance import Tolerance
from acclimate_service.domain.verdict import Decision

Ints = npt.NDArray[np.int64]

GUIDE = Path(__file__).parents[3] / "docs" / "guard.md"
SIZES = (50, 100, 200, 500, 1000, 2000)
GAINED = (0.0, 0.01, 0.03, 0.1)  # how often an image is gained; it is lost 3 points more often
MARGIN, LEVEL = 0.03, 0.05
DRAWS = 100_000
# Three standard deviations of a rate of 5 % in that many draws.
NOISE = 3 * (LEVEL * (1 - LEVEL) / DRAWS) ** 0.5


def draws(n: int, gained: float) -> tuple[Ints, Ints]:
    """How many images *DRAWS* candidates lose and gain whose true drop is the margin."""
    generator = np.random.default_rng([n, round(1000 * gained)])
    rates = [gained + MARGIN, gained, 1 - 2 * gained - MARGIN]
    counts = generator.multinomial(n, rates, size=DRAWS)
    return counts[:, 0], counts[:, 1]


def by_score(lost: Ints, gained: Ints, n: int, level: float) -> npt.NDArray[np.bool_]:
    """Whether Tango's bound alone would exclude the margin."""
    return np.asarray(score(lost.astype(float), gained.astype(float), n, MARGIN) >= quantile(level))


@cache
def most_lost(gained: int, n: int, level: float) -> int:
    """The most lost images with which the guard still excludes the margin; -1 if none."""
    lost = np.arange(n - gained + 1)
    most = int(by_score(lost, np.full_like(lost, gained), n, level).sum()) - 1
    while most >= 0 and not excludes(most, gained, n, margin=MARGIN, level=level):
        most -= 1
    return most


def by_guard(lost: Ints, gained: Ints, n: int, level: float) -> npt.NDArray[np.bool_]:
    """Whether the guard's rule excludes the margin: the score first, then the exact test."""
    kept = by_score(lost, gained, n, level)
    values = np.unique(gained[kept])
    limits = np.array([most_lost(int(value), n, level) for value in values])
    kept[kept] = lost[kept] <= limits[np.searchsorted(values, gained[kept])]
    return kept


@cache
def rates(n: int) -> tuple[float, float, float]:
    """The worst acceptance rates of: Tango's bound, the guard's bound, the default check."""
    first = spent_level(LEVEL, 0)
    score_alone, bound, check = 0.0, 0.0, 0.0
    for share in GAINED:
        lost, gained = draws(n, share)
        score_alone = max(score_alone, float(by_score(lost, gained, n, LEVEL).mean()))
        bound = max(bound, float(by_guard(lost, gained, n, LEVEL).mean()))
        small = lost - gained <= 0.01 * n + 1e-9
        check = max(check, float((by_guard(lost, gained, n, first) & small).mean()))
    return score_alone, bound, check


@pytest.mark.parametrize("n", SIZES)
def test_a_drop_as_large_as_the_margin_passes_at_most_at_the_nominal_level(n: int) -> None:
    _, bound, check = rates(n)
    assert bound <= LEVEL + NOISE
    assert check <= spent_level(LEVEL, 0) + NOISE


@pytest.mark.parametrize("n", [100, 200, 500])
@pytest.mark.parametrize("level", [LEVEL, spent_level(LEVEL, 0), spent_level(LEVEL, 9)])
def test_the_exact_chance_to_pass_is_within_the_level(n: int, level: float) -> None:
    """No simulation: every table that passes is added up, with scipy's binomials."""
    for share in (0.0, 0.005, 0.01, 0.03):
        gained = np.arange(int(stats.binom.isf(1e-9, n, share)) + 1)
        limits = np.array([most_lost(int(count), n, level) for count in gained])
        given = stats.binom.cdf(limits, n - gained, (share + MARGIN) / (1 - share))
        assert float((stats.binom.pmf(gained, n, share) * given).sum()) <= level


def test_the_score_bound_alone_would_pass_more_than_the_level() -> None:
    """The control: without the exact test, 200 images let almost 6 % through."""
    score_alone, bound, _ = rates(200)
    assert score_alone > LEVEL + NOISE
    assert bound < score_alone


def test_the_simulated_rule_is_the_one_the_guard_decides_by() -> None:
    source = Tolerance(limit=0.01, margin=MARGIN, level=LEVEL, looks=0)
    for n in (100, 500):
        lost, gained = draws(n, 0.01)
        lost, gained = lost[:150], gained[:150]
        simulated = by_guard(lost, gained, n, source.spent) & (lost - gained <= 0.01 * n + 1e-9)
        decided = [
            source.decide(int(b), int(c), n) is Decision.ACCEPT
            for b, c in zip(lost, gained, strict=True)
        ]
        assert simulated.tolist() == decided


def test_the_default_check_is_the_simulated_one() -> None:
    policy = GuardPolicy()
    assert (policy.source_margin, policy.level, policy.source_drop_limit) == (MARGIN, LEVEL, 0.01)


def row(n: int) -> str:
    return f"| {n} | " + " | ".join(f"{100 * rate:.2f} %" for rate in rates(n)) + " |"


@pytest.mark.parametrize("n", SIZES)
def test_the_guide_prints_the_measured_rates(n: int) -> None:
    cells = rf"\| {n} \| (\S+) % \| (\S+) % \| (\S+) % \|"
    printed = re.search(f"^{cells}$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert printed, f"docs/guard.md lacks the row {row(n)}"
    found = [float(value) / 100 for value in printed.groups()]
    assert found == pytest.approx(rates(n), abs=0.002)  # numpy may change its stream


LOOKS = 50


def passes_somewhere(n: int, gained: float, *, spending: bool) -> float:
    """The share of sequences in which one of 50 candidates passes, each truly 3 points worse."""
    sequences = 2000
    generator = np.random.default_rng([7, n])
    table = [gained + MARGIN, gained, 1 - 2 * gained - MARGIN]
    counts = generator.multinomial(n, table, size=(sequences, LOOKS))
    passed = np.zeros(sequences, dtype=np.bool_)
    for look in range(LOOKS):
        rule = Tolerance(limit=0.01, margin=MARGIN, level=LEVEL, looks=look if spending else 0)
        lost, won = counts[:, look, 0], counts[:, look, 1]
        small = lost - won <= rule.limit * n + 1e-9
        passed |= small & by_guard(lost, won, n, rule.spent)
    return float(passed.mean())


@pytest.mark.parametrize(("n", "gained"), [(200, 0.0), (400, 0.0), (400, 0.01)])
def test_fifty_repeated_jobs_let_a_worse_candidate_through_at_most_at_the_level(
    n: int, gained: float
) -> None:
    noise = 3 * (LEVEL * (1 - LEVEL) / 2000) ** 0.5
    assert passes_somewhere(n, gained, spending=True) <= LEVEL + noise


def test_without_spending_the_level_a_worse_candidate_gets_through_by_patience() -> None:
    """The control: the same fifty jobs, each judged as if it were the first."""
    assert passes_somewhere(400, 0.01, spending=False) > 0.4


if __name__ == "__main__":
    print("\n".join(row(n) for n in SIZES))
    for n, gained in ((200, 0.0), (400, 0.0), (400, 0.01)):
        spent, plain = (passes_somewhere(n, gained, spending=on) for on in (True, False))
        print(n, gained, f"{spent:.2%}", f"{plain:.2%}")
