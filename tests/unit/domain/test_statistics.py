"""The bounds and tests against published examples, independent oracles and their own laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats  # type: ignore[import-untyped]  # it ships none

from acclimate_service.domain.statistics import (
    clopper_pearson,
    drop_interval,
    drop_upper,
    exact_p,
    excludes,
    holm,
    mcnemar,
    spent_level,
    tango_interval,
    tango_upper,
    wilson,
)

# (b, c, n, level of each side, low, high) of (b - c) / n, with the digits printed. The first
# three are also what the tests of the R package ratesci expect of its Tango interval.
PUBLISHED = {
    "Tango 1998, the cross-over trial of contact lenses": (1, 0, 44, 0.05, -0.037, 0.096),
    "Tango 1998, 9 against 3 of 32": (9, 3, 32, 0.025, -0.027, 0.390),
    "Agresti and Min 2005: 16 against 8 of 86": (16, 8, 86, 0.025, -0.020, 0.207),
    "Fagerland, Lydersen and Laake 2017, after Cavo 2012": (6, 16, 161, 0.025, -0.1240, -0.0054),
}


@pytest.mark.parametrize("example", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_the_score_interval_is_the_published_one(
    example: tuple[int, int, int, float, float, float],
) -> None:
    b, c, n, level, low, high = example
    digits = max(len(f"{low:g}".split(".")[1]), len(f"{high:g}".split(".")[1]))
    assert tango_interval(b, c, n, level) == pytest.approx((low, high), abs=0.51 * 10**-digits)


@st.composite
def tables(draw: st.DrawFn, most: int = 400) -> tuple[int, int, int]:
    """(lost, gained, n)."""
    n = draw(st.integers(1, most))
    lost = draw(st.integers(0, n))
    return lost, draw(st.integers(0, n - lost)), n


LEVELS = st.sampled_from([0.2, 0.05, 0.025, 0.001])


def score_by_search(b: int, c: int, n: int, delta: float) -> float:
    """Tango's statistic with the restricted estimate found by maximising the likelihood."""

    def minus_log_likelihood(q: float) -> float:
        chances = (q + delta, q, 1 - 2 * q - delta)
        counts = (b, c, n - b - c)
        return -sum(k * math.log(max(p, 1e-300)) for k, p in zip(counts, chances, strict=True) if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    found = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13}
    )
    q = min((low, high, float(found.x)), key=minus_log_likelihood)
    return (n * delta - (b - c)) / math.sqrt(n * (2 * q + delta - delta**2))


@given(tables(), LEVELS)
def test_the_score_bound_is_the_root_an_independent_search_finds(
    table: tuple[int, int, int], level: float
) -> None:
    b, c, n = table
    if b == n:
        assert tango_upper(b, c, n, level) == 1
        return
    z = float(stats.norm.isf(level))
    start = (b - c) / n + 1e-9
    root = optimize.brentq(
        lambda delta: score_by_search(b, c, n, delta) - z, start, 1 - 1e-12, xtol=1e-12
    )
    assert tango_upper(b, c, n, level) == pytest.approx(root, abs=2e-5)


def test_without_disagreement_the_score_bound_has_its_closed_form() -> None:
    z = float(stats.norm.isf(0.05))
    for n in (1, 10, 250, 5000):
        assert tango_upper(0, 0, n, 0.05) == pytest.approx(z * z / (n + z * z), abs=1e-10)


@given(tables(), LEVELS)
def test_the_score_interval_turns_round_when_the_files_change_places(
    table: tuple[int, int, int], level: float
) -> None:
    b, c, n = table
    low, high = tango_interval(b, c, n, level)
    assert tango_interval(c, b, n, level) == pytest.approx((-high, -low), abs=1e-10)


@settings(max_examples=40)
@given(tables(), LEVELS)
def test_the_bounds_hold_the_estimate_and_the_guards_are_no_narrower(
    table: tuple[int, int, int], level: float
) -> None:
    b, c, n = table
    low, high = drop_interval(b, c, n, low_level=level, high_level=level)
    score_low, score_high = tango_interval(b, c, n, level)
    assert -1 <= low <= score_low <= (b - c) / n <= score_high <= high <= 1


@settings(max_examples=30)
@given(tables(most=200), LEVELS)
def test_one_more_lost_image_never_lowers_the_bound(
    table: tuple[int, int, int], level: float
) -> None:
    b, c, n = table
    if b + c < n:
        assert tango_upper(b + 1, c, n, level) > tango_upper(b, c, n, level) - 1e-9
        assert drop_upper(b + 1, c, n, level) > drop_upper(b, c, n, level) - 2e-5
        assert tango_upper(b, c + 1, n, level) < tango_upper(b, c, n, level) + 1e-9


@given(tables(most=150), LEVELS)
def test_the_interval_narrows_as_images_are_added_at_the_same_rates(
    table: tuple[int, int, int], level: float
) -> None:
    b, c, n = table
    low, high = tango_interval(b, c, n, level)
    more_low, more_high = tango_interval(4 * b, 4 * c, 4 * n, level)
    assert more_high - more_low <= high - low + 1e-9


@settings(max_examples=20)
@given(tables(most=100))
def test_a_smaller_level_widens_the_bound(table: tuple[int, int, int]) -> None:
    b, c, n = table
    bounds = [drop_upper(b, c, n, level) for level in (0.2, 0.05, 0.01, 0.001)]
    assert all(late >= early - 2e-5 for early, late in itertools.pairwise(bounds))


def test_no_image_bounds_nothing() -> None:
    assert tango_interval(0, 0, 0, 0.05) == (-1, 1)
    assert drop_interval(0, 0, 0, low_level=0.05, high_level=0.05) == (-1, 1)
    assert not excludes(0, 0, 0, margin=0.5, level=0.2)


def test_zero_lost_of_250_still_leaves_one_point_two() -> None:
    """The score bound alone would claim 1.07; the binomial's own answer is 1 - 0.05^(1/250)."""
    assert tango_upper(0, 0, 250, 0.05) < 0.0108
    assert drop_upper(0, 0, 250, 0.05) == pytest.approx(1 - 0.05 ** (1 / 250), abs=2e-5)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "delta"),
    [(0, 0, 20, 0.1), (2, 3, 20, 0.1), (1, 0, 30, 0.15), (0, 4, 25, 0.0)],
)
def test_the_exact_p_value_is_what_adding_up_every_table_gives(
    lost: int, gained: int, n: int, delta: float
) -> None:
    """Over all rates of disagreement it can only be larger, and not smaller near the data."""
    tables_of_n = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    observed = score_by_search(lost, gained, n, delta) if lost + gained or delta else 0.0
    extreme = [
        t
        for t in tables_of_n
        if (score_by_search(*t, n, delta) if sum(t) or delta else 0.0) >= observed - 1e-6
    ]

    def chance(q: float) -> float:
        rates = [q + delta, q, 1 - 2 * q - delta]
        counts = [[b, c, n - b - c] for b, c in extreme]
        return float(stats.multinomial.pmf(counts, n, rates).sum())

    everywhere = max(chance(q) for q in np.linspace(0, (1 - delta) / 2, 1500))
    near = chance(gained / n) if gained / n <= (1 - delta) / 2 else 0.0
    assert near - 1e-3 <= exact_p(lost, gained, n, delta, 0.05) <= everywhere + 1e-4


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemars_p_value_is_the_binomial_test(lost: int, gained: int) -> None:
    if lost + gained == 0:
        assert mcnemar(lost, gained) == 1
        return
    oracle = stats.binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue
    assert mcnemar(lost, gained) == pytest.approx(oracle, rel=1e-9, abs=1e-300)


def test_mcnemars_p_value_is_the_published_one() -> None:
    """Fagerland, Lydersen and Laake print the two-sided P = 0.052479 for 16 against 6."""
    assert 2 * mcnemar(16, 6) == pytest.approx(0.052479, abs=5e-7)


@given(st.integers(1, 3000), st.floats(0, 1), LEVELS)
def test_the_bounds_of_a_share_are_scipys(n: int, share: float, level: float) -> None:
    k = round(share * n)
    test = stats.binomtest(k, n)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        oracle = test.proportion_ci(1 - 2 * level, method=method)
        assert ours(k, n, level) == pytest.approx((oracle.low, oracle.high), abs=1e-9)


def test_the_bounds_of_a_share_are_newcombes() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3."""
    assert wilson(81, 263, 0.025) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148, 0.025) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20, 0.025) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0, 0.025) == (0, 1)


def test_holms_steps_are_those_of_the_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1, 1]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for raw, step in zip(p_values, adjusted, strict=True):
        assert raw <= step <= min(1, raw * len(p_values) * (1 + 1e-12))
    ranks = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[i] for i in ranks] == sorted(adjusted)


def test_the_levels_of_all_looks_together_are_the_level() -> None:
    spent = [spent_level(0.05, looks) for looks in range(100_000)]
    assert sum(spent) == pytest.approx(0.05, abs=1e-6)
    assert sum(spent) < 0.05
    assert spent[0] == pytest.approx(0.0304, abs=5e-5)


@pytest.mark.parametrize(("looks", "images"), [(0, 115), (10, 392), (100, 663), (1000, 949)])
def test_however_often_a_holdout_was_looked_at_more_images_decide(looks: int, images: int) -> None:
    level = spent_level(0.05, looks)
    assert excludes(0, 0, images, margin=0.03, level=level)
    assert not excludes(0, 0, images - 1, margin=0.03, level=level)
