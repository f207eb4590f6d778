"""How far what comes in lies from the domains that a version knows, in its own features.

Energy distance (Székely and Rizzo, J. Stat. Plan. Inference 2013): for samples X, Y

    E = 2 E|X - Y| - E|X - X'| - E|Y - Y'|,    H = (E - E_0) / (2 E|X - Y|)  in [0, 1]

E_0 is the mean of E over permutations: what samples of this size show by chance. H is 0
where both have one distribution. Frames of one camera resemble each other more than
chance allows, so a small p of the permutation test alone accuses too readily: a domain
counts as unlike only if H is large as well.

Beside hundreds of domains that are like it, a p below what permutations can count is asked
for. It is read from Pearson's type III curve with the mean, variance and skewness of the
permuted values (Mielke and Berry, Permutation Methods, Springer 2007), by the cube root of
Wilson and Hilferty, PNAS 17 (1931), 684-688.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]  # [n, d]

ROWS = 128  # of each sample, at most
FEWEST = 48  # below which nothing is told
PERMUTATIONS, MOST_PERMUTATIONS = 499, 1_999
COUNTED = 10  # permuted values beyond the observed one, from which on p is their share
LEAST_P = 1e-12  # told at least: no curve is known further out
WIDTH = 512  # numbers that a sketch of an image's features has, at most
LEVEL = 0.01  # over all domains together (Hochberg)
FAR = 0.01  # H from which a distance matters; photographs of two cameras differ by 0.02


@dataclass(frozen=True, kw_only=True)
class DomainDrift:
    """How far live inputs lie from one domain. ``p`` is not yet corrected for their number."""

    domain: str
    distance: float  # H, in [0, 1]
    p: float
    unlike: bool


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What was found, the nearest domain first. ``due`` asks for a new adaptation."""

    images: int
    domains: tuple[DomainDrift, ...]
    due: bool
    told: str


def drift(live: Features, known: Mapping[str, Features], *, seed: int = 0) -> Drift:
    """Compare live features [n, d] with those of each known domain, [m, d]. Pure."""
    references = {name: rows for name, rows in known.items() if len(rows) >= FEWEST}
    if len(live) < FEWEST:
        told = (
            f"too few live images to tell: {len(live)} of {FEWEST} answered under an alias since "
            "this server started; ask again when it has answered more"
        )
        return Drift(images=len(live), domains=(), due=False, told=told)
    if not references:
        told = f"no domain of this version has {FEWEST} images to compare with"
        return Drift(images=len(live), domains=(), due=False, told=told)
    drawn = np.random.default_rng(seed)
    measured = {
        name: _distance(live, rows, drawn, PERMUTATIONS) for name, rows in references.items()
    }
    # Beside domains that are like, p must lie below the level that these leave to the others.
    if any(p > LEVEL for _, p in measured.values()):
        measured |= {
            name: _distance(live, references[name], drawn, MOST_PERMUTATIONS)
            for name, (_, p) in measured.items()
            if p <= LEVEL
        }
    unlike = _hochberg({name: p for name, (_, p) in measured.items()})
    found = sorted(
        (
            DomainDrift(domain=name, distance=h, p=p, unlike=name in unlike and h >= FAR)
            for name, (h, p) in measured.items()
        ),
        key=lambda one: one.distance,
    )
    due = all(one.unlike for one in found)
    nearest = found[0] if due else next(one for one in found if not one.unlike)
    told = (
        f"live images are like none of the known domains (nearest: {nearest.domain}, "
        f"{nearest.distance:.3f}): a new adaptation is due"
        if due
        else f"live images look like {nearest.domain} ({nearest.distance:.3f})"
    )
    return Drift(images=len(live), domains=tuple(found), due=due, told=told)


def _distance(
    live: Features, reference: Features, drawn: np.random.Generator, permutations: int
) -> tuple[float, float]:
    """H, and the p-value of its permutation test."""
    x, y = (_directions(_some(rows, drawn)) for rows in (live, reference))
    energy = _permuted(pooled := np.concatenate([x, y]), len(x), drawn, permutations)
    across = float(_apart(pooled)[: len(x), len(x) :].mean())
    beyond_chance = max(0.0, float(energy[0] - energy[1:].mean()))
    return beyond_chance / max(1e-12, 2 * across), _chance(float(energy[0]), energy[1:])


def _permuted(
    pooled: NDArray[np.float64], n: int, drawn: np.random.Generator, permutations: int
) -> NDArray[np.float64]:
    """E of the first *n* rows and the others, then of as many rows drawn so often."""
    apart, total = _apart(pooled), len(pooled)
    places = np.zeros((permutations + 1, total))
    places[0, :n] = 1
    shuffled = drawn.permuted(np.tile(np.arange(total), (permutations, 1)), axis=1)
    np.put_along_axis(places[1:], shuffled[:, :n], 1, axis=1)
    # With all sums from one product: what is not within the live sample is across or beyond.
    within = ((places @ apart) * places).sum(axis=1)
    from_live = places @ apart.sum(axis=1)
    ours, across = within / n**2, (from_live - within) / (n * (total - n))
    theirs = (apart.sum() - 2 * from_live + within) / (total - n) ** 2
    found: NDArray[np.float64] = 2 * across - ours - theirs
    return found


def _apart(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance of each row to each."""
    squares = (rows**2).sum(axis=1)
    found: NDArray[np.float64] = np.sqrt(
        np.maximum(0, squares[:, None] + squares - 2 * rows @ rows.T)
    )
    return found


def _chance(observed: float, permuted: NDArray[np.float64]) -> float:
    """How likely chance alone comes as far as *observed*, by what it did when labels were mixed."""
    beyond = int((permuted >= observed - 1e-12).sum())
    spread = float(permuted.std())
    if beyond >= COUNTED or spread <= 0:
        return (beyond + 1) / (len(permuted) + 1)
    standing = (permuted - permuted.mean()) / spread
    skew = max(1e-3, float((standing**3).mean()))
    far = 1 + skew / 2 * float((observed - permuted.mean()) / spread)
    return max(LEAST_P, NormalDist().cdf(-(6 / skew * (math.cbrt(far) - 1) + skew / 6)))


def sketch(rows: Features) -> NDArray[np.float16]:
    """Features [n, d] as [n, ``WIDTH``] at most, whose distances are nearly theirs: to be kept.

    Directions, by random ones that are the same for all of one width (Johnson and
    Lindenstrauss, Contemporary Mathematics 26 (1984), 189-206): of a thousand domains with
    128 images each they take 125 MiB, and not 640. H becomes another by 11 % (one standard
    deviation; other images of the same two domains make it another by 6 %).
    """
    found, width = _directions(rows), rows.shape[1]
    if width > WIDTH:
        drawn = np.random.default_rng(width)
        found = found @ (drawn.standard_normal((width, WIDTH)) / math.sqrt(WIDTH))
    return found.astype(np.float16)


def _some(rows: Features, drawn: np.random.Generator) -> Features:
    if len(rows) <= ROWS:
        return rows
    chosen: Features = rows[drawn.permutation(len(rows))[:ROWS]]
    return chosen


def _directions(rows: Features) -> NDArray[np.float64]:
    """Rows of length 1, so that contrast, which scales all features, counts for little."""
    found = np.asarray(rows, dtype=np.float64)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.maximum(lengths, 1e-12))


def _hochberg(ps: Mapping[str, float]) -> set[str]:
    """The names whose p-value Hochberg's procedure rejects at ``LEVEL``.

    From the largest p down to the first with p <= LEVEL / (how many are as large): that and
    all below. So if every p is within the level, all are unlike, however many they are,
    which needs no correction: live images that are like one of the domains reject that one
    with a chance of LEVEL at most. Y. Hochberg, Biometrika 75 (1988), 800-802, valid for
    tests that depend positively, as those on the same live images do.
    """
    ranked = sorted(ps.items(), key=lambda item: -item[1])
    for place, (_, p) in enumerate(ranked):
        if p <= LEVEL / (place + 1):
            return {name for name, _ in ranked[place:]}
    return set()
