"""Intervals and tests for paired right/wrong outcomes, and for single shares.

Notation: of ``n`` images ``lost`` (b) were right before and are wrong now,
``gained`` (c) the reverse; the rest agree. The *drop* is (b - c) / n and its
truth is delta = p_b - p_c. Levels are one-sided.

The upper bound that the guard uses is the larger of two: Tango's score bound,
which the field knows, and the bound that comes from turning the same score into
an exact test. The score bound alone lets too much through where few images
disagree (0 lost of 250: it says 1.07 points, the truth is 1.19).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Beyond these counts the exact test is left out: it would cost seconds to move the
# bound by a thousandth of a point.
_EXACT_IMAGES = 100_000
_EXACT_DISAGREEING = 1_000

_WHOLE_NUMBERS = 200  # images that disagree, up to which McNemar's p-value is counted out


def quantile(level: float) -> float:
    """The standard normal's upper quantile: P(Z > z) = *level*."""
    return -NormalDist().inv_cdf(level)


def spent_level(level: float, looks: int) -> float:
    """The share of *level* that the next look may use after *looks* earlier ones.

        level_k = level * 6 / (pi^2 k^2),   k = looks + 1

    The shares add up to *level* over endlessly many looks, so by Bonferroni's
    inequality the whole life of a holdout errs as rarely as one look would.
    """
    return level * 6 / (math.pi * (looks + 1)) ** 2


# ── the drop between paired proportions ──────────────────────────────────────


def score(lost: Array, gained: Array, n: float, delta: float) -> Array:
    """Tango's score statistic for the hypothesis that the drop is *delta* in (-1, 1).

        T = (n delta - (b - c)) / sqrt(n (2 q + delta (1 - delta)))

    with q the maximum likelihood estimate of p_c under p_b = p_c + delta. Large
    values speak for a smaller drop. T. Tango, Statistics in Medicine 17 (1998),
    891-908, equations (11)-(13) with the roles of b and c as here.
    """
    if delta < 0:  # mirrored, so that the root below is always of the stable kind
        return -score(gained, lost, n, -delta)
    linear = delta * (2 * n - lost + gained) - lost - gained
    constant = gained * delta * (1 - delta)
    q = (np.sqrt(linear**2 + 8 * n * constant) - linear) / (4 * n)
    surplus = n * delta - (lost - gained)
    variance = n * (2 * q + delta * (1 - delta))
    # No variance (nobody disagrees and delta is 0, or delta is 1): the sign decides.
    certain = np.where(surplus == 0, 0.0, np.copysign(np.inf, surplus))
    return np.where(variance > 0, surplus / np.sqrt(np.where(variance > 0, variance, 1.0)), certain)


def tango_upper(lost: float, gained: float, n: float, level: float) -> float:
    """The one-sided upper score bound of the drop: where the statistic reaches z.

    Counts may be fractional (planning uses expected ones). 1.0 if *n* is 0.
    """
    if n <= 0 or lost >= n:
        return 1.0
    z = quantile(level)
    b, c = np.asarray(float(lost)), np.asarray(float(gained))
    low, high = (lost - gained) / n, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if float(score(b, c, n, middle)) < z:
            low = middle
        else:
            high = middle
    return high


def tango_interval(lost: float, gained: float, n: float, level: float) -> tuple[float, float]:
    """Both one-sided score bounds of the drop; together a 1 - 2 *level* interval."""
    return -tango_upper(gained, lost, n, level), tango_upper(lost, gained, n, level)


@lru_cache(maxsize=65_536)
def drop_upper(lost: int, gained: int, n: int, level: float) -> float:
    """The upper bound of the drop: Tango's, widened where the exact test demands it.

    The true drop lies above it with a probability of at most *level* (to the
    precision of 48 nuisance values) while the exact test is affordable.
    """
    bound = tango_upper(lost, gained, n, level)
    if n <= 0 or bound >= 1 or not _exact_pays(lost, gained, n):
        return bound
    if exact_p(lost, gained, n, bound, level) <= level:
        return bound
    step, low = 0.5 / n, bound
    while (high := min(low + step, 1.0)) < 1.0 and exact_p(lost, gained, n, high, level) > level:
        low, step = high, 2 * step
    while high - low > 1e-5:
        middle = (low + high) / 2
        if exact_p(lost, gained, n, middle, level) > level:
            low = middle
        else:
            high = middle
    return high


def excludes(lost: int, gained: int, n: int, *, margin: float, level: float) -> bool:
    """Whether a drop of *margin* or more is excluded at *level*, by score and exact test.

    The score is asked first, for it is cheap and nearly always says no first.
    """
    if n <= 0:
        return False
    b, c = np.asarray(float(lost)), np.asarray(float(gained))
    if float(score(b, c, n, margin)) < quantile(level):
        return False
    if not _exact_pays(lost, gained, n):
        return True
    return exact_p(lost, gained, n, margin, level) <= level


def drop_interval(
    lost: int, gained: int, n: int, *, low_level: float, high_level: float
) -> tuple[float, float]:
    """The one-sided lower bound of the drop at *low_level*, the upper one at *high_level*."""
    return -drop_upper(gained, lost, n, low_level), drop_upper(lost, gained, n, high_level)


def _exact_pays(lost: int, gained: int, n: int) -> bool:
    return n <= _EXACT_IMAGES and lost + gained <= _EXACT_DISAGREEING


def exact_p(lost: int, gained: int, n: int, delta: float, level: float) -> float:
    """The exact unconditional p-value of "the drop is at least *delta*", to compare with *level*.

    Every table whose score is at least as large as the observed one counts; the
    share of images that disagree, which the hypothesis leaves open, is taken
    where it hurts most within its own interval of confidence 1 - gamma, and
    gamma is added. Hsueh, Liu and Chen, Biometrics 57 (2001), 478-483; Berger
    and Boos, JASA 89 (1994), 1012-1016. gamma is a small part of the level,
    however little of that many looks have left: after 551 looks a gamma of 1e-7
    would be all of it, and nothing could be accepted any more.
    """
    gamma = min(1e-7, level / 100)
    observed = float(score(np.asarray(float(lost)), np.asarray(float(gained)), n, delta))
    low, high = clopper_pearson(lost + gained, n, gamma / 2)
    discordance = np.linspace(max(low, abs(delta)), max(high, abs(delta)), 48)
    p_lost, p_gained = (discordance + delta) / 2, (discordance - delta) / 2

    # What lies outside these windows has a probability far below gamma.
    least = gamma / 1000
    b = np.arange(window(n, p_lost[0], least)[0], window(n, p_lost[-1], least)[-1] + 1)[None, :]
    c = np.arange(window(n, p_gained[0], least)[0], window(n, p_gained[-1], least)[-1] + 1)[:, None]
    fits = b + c <= n
    extreme = fits & (score(np.where(fits, b, 0.0), c, n, delta) >= observed - 1e-9)
    rows, columns = np.nonzero(extreme)
    b, c = b[0, columns], c[rows, 0]  # [M]: the tables that count

    counts = np.stack([b, c, n - b - c], axis=1)  # [M, 3]
    logs = log_factorials(n)
    ways = logs[n] - logs[counts.astype(np.int64)].sum(axis=1)
    rates = np.stack([p_lost, p_gained, 1 - p_lost - p_gained])  # [3, 48]
    # A rate of 0 times a count of 0 must be 0, and of any other count impossible.
    chances = np.exp(ways[:, None] + counts @ np.log(np.maximum(rates, 1e-300)))
    return min(1.0, float(chances.sum(axis=0).max(initial=0.0)) + gamma)


def window(n: int, p: float, least: float = 1e-10) -> Array:
    """The counts of a binomial(n, p) that are worth summing over: all but about *least*."""
    p = min(max(p, 0.0), 1.0)  # rounding may have left it a hair outside
    spread = (quantile(least) + 0.15) * math.sqrt(n * p * (1 - p)) + 12
    return np.arange(max(0, math.floor(n * p - spread)), min(n, math.ceil(n * p + spread)) + 1.0)


def log_factorials(n: int) -> Array:
    """The logarithms of 0!, 1!, 2!, … up to n! at least."""
    return _log_factorials(max(6, n.bit_length()))


@lru_cache(maxsize=32)
def _log_factorials(bits: int) -> Array:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, (1 << bits) + 1)))])


def binomial(k: Array, n: Array, p: float) -> Array:
    """The binomial probabilities of *k* of *n*, zero where k > n; the arrays broadcast."""
    if p <= 0:
        return np.where((k == 0) & (n >= 0), 1.0, 0.0)
    if p >= 1:
        return np.where(k == n, 1.0, 0.0)
    table = log_factorials(int(n.max()))
    ks, ns = k.astype(np.int64), n.astype(np.int64)
    fails = np.maximum(ns - ks, 0)
    logs = table[ns] - table[ks] - table[fails] + ks * math.log(p) + fails * math.log1p(-p)
    return np.where(ks <= ns, np.exp(logs), 0.0)


def mcnemar(lost: int, gained: int) -> float:
    """The exact one-sided p-value of McNemar's test that images are lost on balance.

    P(X >= lost) for X binomial(lost + gained, 1/2): valid at every size, since it
    conditions on the images that disagree.
    """
    m = lost + gained
    if m == 0:
        return 1.0
    if m <= _WHOLE_NUMBERS:  # three lost and none gained is 1/8, not a hair more
        return sum(math.comb(m, k) for k in range(lost, m + 1)) / 2.0**m
    counts = np.arange(lost, m + 1.0)
    return min(1.0, float(binomial(counts, np.full_like(counts, m), 0.5).sum()))


# ── single proportions ───────────────────────────────────────────────────────


def wilson(successes: int, n: int, level: float) -> tuple[float, float]:
    """Wilson's score bounds of a share, each one-sided at *level*; (0, 1) if *n* is 0."""
    if n == 0:
        return 0.0, 1.0
    z = quantile(level)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@lru_cache(maxsize=4096)
def clopper_pearson(successes: int, n: int, level: float) -> tuple[float, float]:
    """The exact bounds of a share, each one-sided at *level*."""
    return (
        0.0 if successes == 0 else _where_tail_is(successes, n, level),
        1.0 if successes == n else 1.0 - _where_tail_is(n - successes, n, level),
    )


def _where_tail_is(successes: int, n: int, level: float) -> float:
    """The p at which P(X >= successes) = *level* for X binomial(n, p)."""
    counts = np.arange(float(successes), n + 1.0)
    trials = np.full_like(counts, n)
    low, high = 0.0, successes / n
    for _ in range(50):
        middle = (low + high) / 2
        if float(binomial(counts, trials, middle).sum()) < level:
            low = middle
        else:
            high = middle
    return low


# ── many tests at once ───────────────────────────────────────────────────────


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    Comparing each with a level keeps the chance of even one false alarm in the
    family at that level. S. Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
