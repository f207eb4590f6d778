"""The line of models between incumbent and candidate, and the best point on it.

WiSE-FT (Wortsman et al., arXiv:2109.01903): theta(a) = (1 - a) theta_0 + a theta_1.
Small steps along it often keep the source whole while most of the gain is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

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

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How much of the source a choice may cost.

    ``drop`` is what the guard allows of accuracy on verify images. A choice is held
    to half of it on select images, and to ``nll`` nats of the paired loss, because
    the luckiest of many points looks better on select than it is.
    """

    drop: float = 0.01
    nll: float = 0.05
    blind: float = 0.5  # the longest step where no source-select images say what it costs

    def allows(self, change: Change) -> bool:
        """Whether a point with this source-select change may be chosen."""
        return change.drop <= self.drop / 2 and change.nll_rise <= self.nll


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
    for alpha in alphas:
        if alpha > 0:
            restore(network, mix(origin, candidate.state, alpha))
            measured[alpha] = stand(trunk, stock, boundary=candidate.boundary, run=run)
    curve = tuple(_point(alpha, standing, before) for alpha, standing in measured.items())
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


def choose(curve: Sequence[Point], tolerance: Tolerance) -> tuple[float, str]:
    """The point of the curve to take, and why. Pure; the curve begins at the incumbent."""
    allowed = [
        p
        for p in curve
        if (p.alpha <= tolerance.blind if p.source is None else tolerance.allows(p.source))
    ]
    barred = f"{len(curve) - len(allowed)} of {len(curve)} points cost too much of the source"
    if curve[0].target_accuracy is None:
        # Nothing says what is gained: half the way is the cautious choice.
        best = max((p for p in allowed if p.alpha <= 0.5), key=lambda p: p.alpha)
        return best.alpha, f"no target-select images to choose by; {barred}"
    best = min(allowed, key=lambda p: (-(p.target_accuracy or 0), p.target_nll or 0, p.alpha))
    assert best.target_accuracy is not None
    return best.alpha, (
        f"select accuracy {best.target_accuracy:.1%} is the highest among the points allowed; "
        f"{barred}"
    )


def _point(alpha: float, now: Standing, before: Standing) -> Point:
    target, source = now.target, now.source
    return Point(
        alpha=alpha,
        target=target.since(before.target) if target and before.target else None,
        target_accuracy=target.accuracy if target else None,
        target_nll=target.mean_nll if target else None,
        source=source.since(before.source) if source and before.source else None,
    )
