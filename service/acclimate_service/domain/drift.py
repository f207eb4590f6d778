"""How far what comes in lies from the domains that a version knows, in its own features.

Energy distance (Székely and Rizzo, J. Stat. Plan. Inference 2013): for samples X, Y

    E = 2 E|X - Y| - E|X - X'| - E|Y - Y'|,    H = (E - E_0) / (2 E|X - Y|)  in [0, 1]

E_0 is the mean of E over permutations: what samples of this size show by chance. H is 0
where both have one distribution. Frames of one camera resemble each other more than
chance allows, so a small p of the permutation test alone accuses too readily: a domain
counts as unlike only if H is large as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]  # [n, d]

ROWS = 128  # of each sample, at most
FEWEST = 48  # below which nothing is told
PERMUTATIONS, MOST_PERMUTATIONS = 499, 4_999
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
        told = f"too few live images to tell: {len(live)} of {FEWEST}"
        return Drift(images=len(live), domains=(), due=False, told=told)
    if not references:
        told = f"no domain of this version has {FEWEST} images to compare with"
        return Drift(images=len(live), domains=(), due=False, told=told)
    drawn = np.random.default_rng(seed)
    measured = {
        name: _distance(live, rows, drawn, PERMUTATIONS) for name, rows in references.items()
    }
    # The smallest p there can be is 1 / (permutations + 1): beside domains that are like it must
    # still lie below the level that these leave to the others.
    like = sum(p > LEVEL for _, p in measured.values())
    more = min(MOST_PERMUTATIONS, math.ceil(2 * (like + 1) / LEVEL))
    if more > PERMUTATIONS:
        measured |= {
            name: _distance(live, references[name], drawn, more)
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
    pooled = np.concatenate([x, y])
    n, total = len(x), len(pooled)
    squares = (pooled**2).sum(axis=1)
    apart = np.sqrt(np.maximum(0, squares[:, None] + squares - 2 * pooled @ pooled.T))
    places = np.zeros((permutations + 1, total))
    places[0, :n] = 1
    for row in places[1:]:
        row[drawn.permutation(total)[:n]] = 1
    # With all sums from one product: what is not within the live sample is across or beyond.
    within = ((places @ apart) * places).sum(axis=1)
    from_live = places @ apart.sum(axis=1)
    ours, across = within / n**2, (from_live - within) / (n * (total - n))
    theirs = (apart.sum() - 2 * from_live + within) / (total - n) ** 2
    energy = 2 * across - ours - theirs
    p = float((energy >= energy[0] - 1e-12).mean())
    beyond_chance = max(0.0, energy[0] - energy[1:].mean())
    return float(beyond_chance / max(1e-12, 2 * across[0])), p


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
