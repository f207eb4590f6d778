"""Named failures of an adaptation: for each a measurable sign, and what is done first.

All decisions here are pure functions of measurements; the evidence goes into the
report beside the response.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pydantic

from acclimate_service.training.measure import Change


class Failure(enum.Enum):
    """What can go wrong while adapting, apart from bugs."""

    UNDERFITTING = "UNDERFITTING"
    OVERFITTING = "OVERFITTING"
    FORGETTING = "FORGETTING"
    INSTABILITY = "INSTABILITY"
    SHOCK = "SHOCK"  # select images got worse when stages were unfrozen, and stayed so


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One failure that was seen, the numbers that show it, and the response."""

    failure: Failure
    evidence: str
    response: str
    facts: dict[str, pydantic.JsonValue]

    def __str__(self) -> str:
        return f"{self.failure.value.lower()}: {self.evidence}; {self.response}"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch measured. Losses in nats, accuracies in [0, 1], None: not measured."""

    epoch: int
    steps: int
    seconds: float
    train_loss: float
    train_accuracy: float  # of the new images, as they were shown
    gradient_norm: float  # the median over the steps
    select_accuracy: float | None = None
    select_nll: float | None = None


LEARNED = 0.95  # accuracy from which a network counts as able to fit the images
GAP = 0.15  # between train and select accuracy
NLL_RISE = 0.1  # nats above the lowest select loss


def overfitting(history: Sequence[Epoch]) -> Finding | None:
    """Train accuracy far above select accuracy, while the select loss has turned upwards."""
    measured = [e for e in history if e.select_nll is not None and e.select_accuracy is not None]
    if len(measured) < 2:
        return None
    last = measured[-1]
    assert last.select_accuracy is not None
    assert last.select_nll is not None
    best = min(e.select_nll for e in measured if e.select_nll is not None)
    gap, rise = last.train_accuracy - last.select_accuracy, last.select_nll - best
    if gap < GAP or rise < NLL_RISE:
        return None
    return Finding(
        failure=Failure.OVERFITTING,
        evidence=(
            f"train accuracy {last.train_accuracy:.1%} against {last.select_accuracy:.1%} on "
            f"held-out ones, whose loss rose by {rise:.2f} nats from its lowest"
        ),
        response="kept the weights of the best select score",
        facts={"gap": gap, "nll_rise": rise, "epoch": last.epoch},
    )


def underfitting(history: Sequence[Epoch], *, ceiling: float | None) -> Finding | None:
    """A plateau: neither seen nor held-out images are answered, and these no better than head-only.

    Select images that are answered show that only the augmented views are hard.

    Args:
        ceiling: select accuracy of the head alone; None while probing, when being
            unable to fit the training images is sign enough.
    """
    if not history:
        return None
    last = history[-1]
    reached = max((e.select_accuracy for e in history if e.select_accuracy is not None), default=0)
    if max(last.train_accuracy, reached) >= LEARNED:
        return None
    if ceiling is not None and reached > ceiling:
        return None
    half = history[len(history) // 2]
    if last.train_accuracy - half.train_accuracy > 0.05:
        return None  # still climbing: short of epochs, not of capacity
    against = "" if ceiling is None else f", select {reached:.1%} not above head-only {ceiling:.1%}"
    return Finding(
        failure=Failure.UNDERFITTING,
        evidence=f"train accuracy levelled off at {last.train_accuracy:.1%}{against}",
        response="a strategy that moves more stages may fit them",
        facts={"train_accuracy": last.train_accuracy, "select_accuracy": reached},
    )


def forgetting(change: Change, *, limit: float, alpha: float) -> Finding | None:
    """Source-select accuracy of the full candidate fell by more than *limit* (a share).

    *alpha* is how much of the way from the incumbent is gone after all.
    """
    if change.drop <= limit:
        return None
    return Finding(
        failure=Failure.FORGETTING,
        evidence=(
            f"{change.lost} of {change.images} source images lost and {change.won} won: "
            f"a drop of {change.drop:.1%}, {change.nll_rise:+.3f} nats"
        ),
        response="blended back towards the incumbent"
        if alpha < 1
        else "taken whole all the same: the gain outweighs a drop that the guard may let pass",
        facts={"drop": change.drop, "lost": change.lost, "won": change.won},
    )


WORSE = 0.02  # of select accuracy: what one epoch must not cost


def shock(change: Change) -> str | None:
    """Worse on select since stages were unfrozen, beyond chance: the sign, if it is there.

    More images lost than won by twice the standard deviation that as many flips of a fair
    coin have (McNemar's test).
    """
    fallen = change.lost - change.won
    if change.drop < WORSE or fallen <= 2 * math.sqrt(change.lost + change.won):
        return None
    return (
        f"{change.lost} select images lost and {change.won} won of {change.images} since unfreezing"
    )


SPIKE = 4.0  # times the recent median
WINDOW = 32
SETTLED = 8  # steps before medians mean anything


@dataclass
class Stability:
    """Watches loss and gradient norm, step by step."""

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def observe(self, loss: float, norm: float) -> str | None:
        """What is wrong with this step, if anything: not a number, or a spike."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            return f"loss {loss:g} with gradient norm {norm:g}"
        if len(self.losses) >= SETTLED:
            usual = max(median(self.losses), 0.25)
            if loss > SPIKE * usual:
                return f"loss {loss:.2f}, {loss / usual:.0f} times its recent median"
            usual = max(median(self.norms), 0.1)
            if norm > 10 * SPIKE * usual:
                return f"gradient norm {norm:.1f}, {norm / usual:.0f} times its recent median"
        self.losses.append(loss)
        self.norms.append(norm)
        return None


def median(values: Sequence[float] | deque[float]) -> float:
    """The middle one of the sorted values (the upper of two)."""
    return sorted(values)[len(values) // 2]
