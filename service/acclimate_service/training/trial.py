"""A strategy tried, what to try after it, and which to take: pure decisions.

The course is short, as each trial costs as much as what is shipped: the head, a tail
of stages, and one answer to what went wrong with the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acclimate_service.training.candidate import Candidate
from acclimate_service.training.diagnosis import Failure, Finding
from acclimate_service.training.interpolate import Blend, Tolerance, gain, merit
from acclimate_service.training.strategies import STRATEGIES, Strategy, parse

GOOD_ENOUGH = 0.95  # select accuracy below which stages are tried, however few images there are
FULL = 0.99  # select accuracy that leaves too little to gain, however many images there are
BY_CHANCE = 0.05  # a difference that chance alone makes more often than this tells nothing
CLOSE = 0.005  # of accuracy: not worth moving more stages
GIVEN_UP = 0.02  # of target accuracy: what blending back may cost before it is worth a trial


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One strategy tried: what it made, and the point chosen between that and the start."""

    candidate: Candidate
    blend: Blend
    findings: tuple[Finding, ...]

    @property
    def target_accuracy(self) -> float | None:
        """On select images, at the chosen point."""
        return self.blend.chosen.target_accuracy

    def failed(self, failure: Failure) -> bool:
        """Whether this failure was found."""
        return any(finding.failure is failure for finding in self.findings)

    @property
    def given_up(self) -> float:
        """The gain on target-select images, in [-1, 1], that blending back has cost."""
        return gain(self.blend.curve[-1]) - gain(self.blend.chosen)


def next_strategy(
    trials: Sequence[Trial],
    *,
    planned: Sequence[Strategy] | None,
    seconds_left: float,
    replay: bool,
) -> tuple[Strategy, str] | None:
    """What to try next, and why; None: enough has been tried.

    Args:
        planned: what was asked for, where nothing is left to choose.
        seconds_left: until the deadline. As long as all trials so far is supposed to be
            what one more takes.
        replay: whether there are images of the source to show again.
    """
    if planned is not None:
        return None if len(trials) == len(planned) else (planned[len(trials)], "as asked")
    if not trials:
        return STRATEGIES["head"], "the least that can move"
    if seconds_left < sum(trial.candidate.seconds for trial in trials):
        return None
    last = trials[-1]
    if len(trials) == 1:
        if last.target_accuracy is None or _leaves_nothing_to_tell(last):
            return None
        return STRATEGIES["tail"], "the head alone leaves images to gain"
    return _answer(last, replay=replay) if len(trials) == 2 else None


def enough(trials: Sequence[Trial], *, seconds_left: float) -> str:
    """Why AUTO tries nothing after *trials*."""
    spent = sum(trial.candidate.seconds for trial in trials)
    if seconds_left < spent:
        return f"{max(seconds_left, 0):.0f} s are left, and those so far took {spent:.0f} s"
    if len(trials) > 1:
        return (
            "the tail failed in no way that another one answers"
            if len(trials) == 2
            else ("this one was the answer to what went wrong with the tail")
        )
    change, accuracy = trials[0].blend.chosen.target, trials[0].target_accuracy
    if change is None or accuracy is None:
        return "no select images could tell a tail from the head"
    right = round(accuracy * change.images)
    return (
        f"the head alone is right on {right} of {change.images} select images, so no tail could "
        "be told from it"
    )


def _leaves_nothing_to_tell(head: Trial) -> bool:
    """Whether no tail, however good, could be told from this head on the select images.

    One that mends all of its m mistakes and makes none is as likely as 0.5^m to be no
    better (the sign test): up to four mistakes tell nothing.
    """
    change, accuracy = head.blend.chosen.target, head.target_accuracy
    if change is None or accuracy is None or accuracy < GOOD_ENOUGH:
        return False
    mistakes = round((1 - accuracy) * change.images)
    return accuracy >= FULL or 0.5**mistakes > BY_CHANCE


def _answer(tail: Trial, *, replay: bool) -> tuple[Strategy, str] | None:
    """What to try because of how the tail failed; None: it did not, or that is no help."""
    if tail.failed(Failure.SHOCK) and tail.candidate.best_epoch == 0:
        return STRATEGIES["late"], "the tail made select images worse at any rate"
    if tail.failed(Failure.UNDERFITTING):
        return STRATEGIES["deep"], "the tail was underfitting"
    if tail.failed(Failure.FORGETTING) and tail.given_up > GIVEN_UP:
        why = f"the tail was forgetting, and blending it back gave up {tail.given_up:.1%}"
        return parse("tail+held" if replay else "tail+lwf"), why
    if tail.failed(Failure.OVERFITTING):
        return STRATEGIES["late"], "the tail was overfitting"
    return None


def choose(trials: Sequence[Trial], tolerance: Tolerance) -> tuple[int, str]:
    """The trial to take, and why.

    The one whose chosen point has the greatest merit; of those within ``CLOSE`` of it,
    the first tried, which moves least.
    """
    merits = [merit(trial.blend.chosen, tolerance) for trial in trials]
    if trials[0].target_accuracy is None:
        return 0, "no select images tell the candidates apart: the one that moves least"
    best = next(i for i, found in enumerate(merits) if found >= max(merits) - CLOSE)
    told = ", ".join(
        f"{trial.candidate.strategy} {found:+z.1%}"
        for trial, found in zip(trials, merits, strict=True)
    )
    return best, f"gain to expect on the target, counting what the guard would refuse: {told}"
