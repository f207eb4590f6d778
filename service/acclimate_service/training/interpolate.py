"""The line of models between incumbent and candidate, and the best point on it.

WiSE-FT (Wortsman et al., arXiv:2109.01903): theta(a) = (1 - a) theta_0 + a theta_1.
Small steps along it often keep the source whole while most of the gain is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import ClassVar

import pydantic
import torch

from acclimate_service.domain.job import EventKind
from acclimate_service.training.candidate import Candidate
from acclimate_service.training.dataset import Stock
from acclimate_service.training.measure import Change, Standing, stand
from acclimate_service.training.network import Network
from acclimate_service.training.optimiser import State, restore
from acclimate_service.training.run import Run
from acclimate_service.training.trunk import Trunk

# A chance above which more certainty is worth no gain. No higher, as drops look larger here than
# they are: the incumbent was itself chosen on these source-select images. Of recorded points with
# a chance of 0.3 to 0.5, nine in ten kept within the limit (results/2026-11-26-adaptation.md).
SURE = 0.3
CAUTIOUS = 0.8  # of the chance that no step has: asked of one whose gain nobody can tell
TIE = 0.002  # of accuracy: not worth a longer step
NLL_TIE = 0.01  # nats, likewise
ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How much of the source a choice may cost.

    ``drop`` is the fall of accuracy that the guard allows on verify images, ``nll``
    the largest rise of the source's loss in nats. ``blind`` is the longest step along
    a line where no source-select images say what it costs.
    """

    drop: float = 0.01
    nll: float = 0.1
    blind: float = 0.5

    def chance(self, change: Change) -> float:
        """The chance that the guard will see a drop within its limit on verify images.

            P(drop_verify <= limit),  drop_verify ~ N(soft_drop, soft_error^2 + flips / n)

        The first variance is of what select images say, the second of what verify
        images will say, supposing that there are as many of them.
        """
        if change.nll_rise > self.nll:
            return 0.0
        # Half an image more may flip anywhere, even if none did here.
        spread = change.soft_error**2 + (change.flips + 0.5 / change.images) / change.images
        return NormalDist(change.soft_drop, math.sqrt(spread)).cdf(self.drop)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the line, measured on select images. None: there are no such images."""

    alpha: float
    target: Change | None
    target_accuracy: float | None
    target_nll: float | None
    source: Change | None


@dataclass(frozen=True, kw_only=True)
class Blend:
    """The chosen point of the line, and the line.

    ``state`` holds the same tensors as the candidate's, at the chosen point.
    """

    __pydantic_config__: ClassVar = pydantic.ConfigDict(arbitrary_types_allowed=True)  # tensors

    alpha: float
    reason: str
    curve: tuple[Point, ...]
    state: State

    @property
    def chosen(self) -> Point:
        """The chosen point's measurements."""
        return next(point for point in self.curve if point.alpha == self.alpha)

    def summary(self) -> dict[str, pydantic.JsonValue]:
        """For a checkpoint or a report: everything but the tensors."""
        return {
            "alpha": self.alpha,
            "reason": self.reason,
            "curve": [asdict(point) for point in self.curve],
        }

    @classmethod
    def resumed(cls, summary: dict[str, pydantic.JsonValue], state: State) -> Blend:
        """The blend whose :meth:`summary` and state were kept in a checkpoint."""
        return pydantic.TypeAdapter(cls).validate_python({**summary, "state": state})


def mix(incumbent: State, candidate: State, alpha: float) -> State:
    """The tensors of *candidate*, moved to the point *alpha* of the line.

    BatchNorm's running means and variances lie on the line with the weights: both
    were estimated on the same activations at its start, and a convex mixture of
    variances is a variance. Counters are taken from the nearer end. The end points
    are exact.
    """
    if alpha in (0.0, 1.0):
        return {name: (candidate if alpha else incumbent)[name].clone() for name in candidate}
    mixed = {}
    for name, tensor in candidate.items():
        start = incumbent[name]
        if tensor.is_floating_point():
            mixed[name] = torch.lerp(start, tensor, alpha)
        else:
            mixed[name] = (tensor if alpha >= 0.5 else start).clone()
    return mixed


def blend(
    network: Network,
    candidate: Candidate,
    *,
    origin: State,
    before: Standing,
    stock: Stock,
    trunk: Trunk,
    tolerance: Tolerance,
    run: Run,
    alphas: Sequence[float] = ALPHAS,
) -> Blend:
    """Measure the line on the select images and choose a point. The network is left there.

    Args:
        origin: where the line begins: the incumbent's tensors.
        before: how the incumbent does.
        alphas: the points to measure; the incumbent, 0, is among them in any case.

    Raises:
        Cancelled: the job was asked to stop.
    """
    measured = {0.0: before}

    def measure(wanted: Iterable[float]) -> tuple[Point, ...]:
        for alpha in wanted:
            if alpha not in measured:
                restore(network, mix(origin, candidate.state, alpha))
                measured[alpha] = stand(trunk, stock, boundary=candidate.boundary, run=run)
        return tuple(_point(alpha, measured[alpha], before) for alpha in sorted(measured))

    # From the candidate back. A head's line costs nothing, a tail's as much as an epoch of it.
    curve = measure(())
    for alpha in sorted(alphas, reverse=True):
        curve = measure([alpha])
        if candidate.stages and past_the_best(curve, tolerance):
            break
    rough, _ = choose(curve, tolerance)
    curve = measure(_between(rough, alphas))
    alpha, reason = choose(curve, tolerance)
    state = mix(origin, candidate.state, alpha)
    restore(network, state)
    run.tell(
        EventKind.DECISION,
        f"blended {candidate.strategy} at {alpha:g} of the way from the incumbent: {reason}",
        strategy=candidate.strategy,
        alpha=alpha,
    )
    return Blend(alpha=alpha, reason=reason, curve=curve, state=state)


def unblended(candidate: Candidate, standing: Standing) -> Blend:
    """The candidate as it is, where there is nothing to blend it with."""
    point = _point(1.0, standing, standing)
    reason = "the first of its kind: there is nothing to blend it with"
    return Blend(alpha=1.0, reason=reason, curve=(point,), state=candidate.state)


def _between(alpha: float, alphas: Sequence[float]) -> list[float]:
    """The points half way from *alpha* to its neighbours."""
    place = list(alphas).index(alpha) if alpha in alphas else 0
    neighbours = [*alphas[max(0, place - 1) : place], *alphas[place + 1 : place + 2]]
    return [round((alpha + neighbour) / 2, 3) for neighbour in neighbours]


def gain(point: Point) -> float:
    """Accuracy on target-select images over the incumbent's, half counted and half soft."""
    return 0.0 if point.target is None else -(point.target.drop + point.target.soft_drop) / 2


def merit(point: Point, tolerance: Tolerance) -> float:
    """The gain to expect of a point if what the guard refuses gains nothing.

    The gain on select images, times the chance to stay within the limit on the source. A
    chance of ``SURE`` counts as certain, or a large gain would be given away for a little
    of it.
    """
    return gain(point) * _safety(point, tolerance)


def past_the_best(curve: Sequence[Point], tolerance: Tolerance) -> bool:
    """Whether steps shorter than those measured have nothing to offer. Pure.

    The gain falls towards the incumbent, so once a point gains less than a longer step by
    more than decides, and that step is as safe as counts, the rest need not be measured.
    """
    if len(curve) < 3:
        return False
    nearest = curve[1]
    best = max(curve[1:], key=lambda point: merit(point, tolerance))
    lacking = merit(best, tolerance) - merit(nearest, tolerance)
    return lacking > _tie(curve) and _safety(best, tolerance) == 1


def _tie(curve: Sequence[Point], *, images: float = 0.5) -> float:
    """The accuracy that so many select images make: half of one tells no two points apart."""
    target = curve[0].target
    return TIE if target is None else max(TIE, images / target.images)


def _safety(point: Point, tolerance: Tolerance) -> float:
    if point.source is None:
        return 1.0 if point.alpha <= tolerance.blind else 0.0
    return min(1.0, tolerance.chance(point.source) / SURE)


def choose(curve: Sequence[Point], tolerance: Tolerance) -> tuple[float, str]:
    """The point of the curve to take, and why. Pure; the curve begins at the incumbent.

    The incumbent, if nothing gains ``TIE`` over it. Of the points that half an image at most
    tells from the best, or a whole one if they go further, and none less safe or without a
    gain, those with the lowest target loss, within ``NLL_TIE``; of these the one nearest to the
    incumbent. Accuracy on a hundred images is too coarse an answer to stop at: where it is
    full, or one image better, the loss still says how far to go.
    """
    if curve[0].target is None:
        within = [p.alpha for p in curve if _permitted(p, curve[0], tolerance)]
        reason = "no target-select images tell what is gained: the longest cautious step"
        return max(within), reason
    merits = [merit(point, tolerance) for point in curve]
    least = merits[0] + TIE
    if max(merits) <= least:
        return 0.0, "no step promises a gain that the guard would let pass"
    top = merits.index(max(merits))
    safety = _safety(curve[top], tolerance)
    tied = [
        point
        for place, (point, found) in enumerate(zip(curve, merits, strict=True))
        if found > least  # of few images, one is more than all that is gained
        and found >= merits[top] - _tie(curve, images=1 if place > top else 0.5)
        and _safety(point, tolerance) >= safety
    ]
    lowest = min(p.target_nll for p in tied if p.target_nll is not None)
    best = next(p for p in tied if p.target_nll is not None and p.target_nll <= lowest + NLL_TIE)
    reason = f"expected to gain {merit(best, tolerance):.1%} on the target"
    if best.source is None:
        limit = f"at most {tolerance.blind:.0%} of the way"
        return best.alpha, f"{reason}; no source images say what it costs, so {limit}"
    return best.alpha, (
        f"{reason}, with {best.source.lost} source images lost and {best.source.won} won of "
        f"{best.source.images}, {tolerance.chance(best.source):.0%} likely to stay within the limit"
    )


def _permitted(point: Point, incumbent: Point, tolerance: Tolerance) -> bool:
    """Whether a step that may gain nothing is about as safe as none. That one always is.

    As safe as none, not safe outright: of a few source images nobody can tell the
    incumbent itself to stay within the limit.
    """
    if point.alpha > tolerance.blind:
        return False
    if point.source is None or incumbent.source is None:
        return True
    asked = CAUTIOUS * tolerance.chance(incumbent.source)
    return tolerance.chance(point.source) >= asked


def _point(alpha: float, now: Standing, before: Standing) -> Point:
    target, source = now.target, now.source
    return Point(
        alpha=alpha,
        target=target.since(before.target) if target and before.target else None,
        target_accuracy=target.accuracy if target else None,
        target_nll=target.mean_nll if target else None,
        source=source.since(before.source) if source and before.source else None,
    )
