"""AUTO: which strategies to try, and which of their results to take, from measurements.

The head alone is always tried, so AUTO never ends much below it; more stages follow
while the measurements on select images call for them and the budget lasts. Every
trial is a candidate and its blend with the incumbent; the incumbent itself is always
among the points to choose from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import pydantic
import torch

from acclimate_service.domain.errors import TrainingDiverged
from acclimate_service.domain.job import EventKind, Phase
from acclimate_service.domain.strategy_form import AUTO
from acclimate_service.training.candidate import Candidate, Effort
from acclimate_service.training.dataset import Stock
from acclimate_service.training.diagnosis import Finding, forgetting, underfitting
from acclimate_service.training.finetune import fill, tune
from acclimate_service.training.interpolate import ALPHAS, Blend, Tolerance, blend, unblended
from acclimate_service.training.measure import Standing, stand
from acclimate_service.training.network import Network
from acclimate_service.training.optimiser import State, restore
from acclimate_service.training.run import Run
from acclimate_service.training.strategies import STRATEGIES, Strategy, parse
from acclimate_service.training.trial import Trial, choose, enough, next_strategy
from acclimate_service.training.trunk import LAYOUT, Trunk

Summary = dict[str, pydantic.JsonValue]


class Checkpoints(Protocol):
    """Where finished steps are kept, so that a resumed job need not repeat them."""

    def load(self, key: str) -> tuple[Summary, State] | None:
        """What was saved under this key, if anything."""
        ...

    def save(self, key: str, summary: Summary, state: State) -> None:
        """Keep a JSON-able summary and its tensors."""
        ...


class NoCheckpoints:
    """Keeps nothing."""

    def load(self, key: str) -> tuple[Summary, State] | None:  # noqa: ARG002
        """Nothing."""
        return None

    def save(self, key: str, summary: Summary, state: State) -> None:
        """Let it go."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the engine ends with. ``state`` is the whole network's.

    ``trials`` are in order of trying; ``chosen`` is the one taken.
    """

    state: State
    chosen: int
    reason: str
    trials: tuple[Trial, ...]

    @property
    def trial(self) -> Trial:
        """The trial taken."""
        return self.trials[self.chosen]


def adapt(
    network: Network,
    *,
    stock: Stock,
    trunk: Trunk,
    strategy: str,
    effort: Effort,
    tolerance: Tolerance,
    run: Run,
    bootstrap: bool = False,
    checkpoints: Checkpoints | None = None,
    enter: Callable[[Phase, str], None] = lambda phase, detail: None,
    screen: Callable[[Stock, Trunk], Stock] = lambda stock, trunk: stock,
) -> Outcome:
    """Adapt a network to the stock's new domain; it is left at the chosen weights.

    Args:
        strategy: ``auto`` or what :func:`strategies.parse` reads.
        bootstrap: the head is new, and there is no incumbent to blend with or to keep.
        enter: called with each phase and what it is about.
        screen: what of the stock to use, once its features are at hand.

    Raises:
        Cancelled: the job was asked to stop.
        TrainingDiverged: training stayed unstable at ever lower rates.
    """
    kept = checkpoints or NoCheckpoints()
    if bootstrap:
        tolerance = replace(tolerance, blind=1.0)  # there is no source to be careful of
    incumbent = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
    planned = _fixed(strategy) if strategy != AUTO else None
    enter(Phase.PREPARING, "trunk")
    network.to(memory_format=LAYOUT)
    expected = planned or (STRATEGIES["head"], STRATEGIES["tail"])
    boundaries = sorted({one.boundary(network) for one in expected} | {len(network.stages)})
    fill(trunk, stock, expected[-1], boundaries)
    stock = screen(stock, trunk)
    standing = stand(trunk, stock, boundary=len(network.stages), run=run)
    engine = _Engine(
        network=network,
        stock=stock,
        trunk=trunk,
        effort=effort,
        tolerance=tolerance,
        run=run,
        bootstrap=bootstrap,
        checkpoints=kept,
        enter=enter,
        incumbent=incumbent,
        standing=standing,
    )
    trials: list[Trial] = []
    while (step := engine.following(trials, planned)) is not None:
        chosen, why = step
        run.tell(EventKind.DECISION, f"trying {chosen.name}: {why}", strategy=chosen.name)
        try:
            trials.append(engine.trial(chosen, trials))
        except TrainingDiverged as error:
            if planned is not None or not trials:
                raise
            run.tell(EventKind.WARNING, f"gave up {chosen.name}: {error}", strategy=chosen.name)
            break
    else:
        if planned is None:
            why = enough(trials, seconds_left=run.seconds_left())
            run.tell(EventKind.DECISION, f"tries no more: {why}")
    best, reason = choose(trials, tolerance)
    state = incumbent | trials[0].blend.state | trials[best].blend.state
    network.to(memory_format=torch.contiguous_format)  # as exporters expect it
    restore(network, state)
    run.tell(
        EventKind.DECISION,
        f"took {trials[best].candidate.strategy} at {trials[best].blend.alpha:g}: {reason}",
        strategy=trials[best].candidate.strategy,
        alpha=trials[best].blend.alpha,
    )
    return Outcome(state=state, chosen=best, reason=reason, trials=tuple(trials))


def _fixed(text: str) -> tuple[Strategy, ...]:
    strategy = parse(text)
    return (STRATEGIES["head"], strategy) if strategy.head_first else (strategy,)


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """Carries what every trial of one job shares."""

    network: Network
    stock: Stock
    trunk: Trunk
    effort: Effort
    tolerance: Tolerance
    run: Run
    bootstrap: bool
    checkpoints: Checkpoints
    enter: Callable[[Phase, str], None]
    incumbent: State
    standing: Standing

    def following(
        self, trials: Sequence[Trial], planned: Sequence[Strategy] | None
    ) -> tuple[Strategy, str] | None:
        """What to try next, and why."""
        return next_strategy(
            trials,
            planned=planned,
            seconds_left=self.run.seconds_left(),
            replay=self.stock.replay is not None,
        )

    def trial(self, strategy: Strategy, before: Sequence[Trial]) -> Trial:
        """Tune and blend, or take up what a checkpoint kept of either."""
        key = f"{len(before)}-{strategy.name}"
        candidate = self._candidate(strategy, before, f"{key}-candidate")
        self.enter(Phase.BLENDING, strategy.name)
        blended = self._blend(candidate, before, f"{key}-blend")
        findings = [*candidate.findings, *self._findings(candidate, blended, before)]
        return Trial(candidate=candidate, blend=blended, findings=tuple(findings))

    def _candidate(self, strategy: Strategy, before: Sequence[Trial], key: str) -> Candidate:
        if (saved := self.checkpoints.load(key)) is not None:
            return Candidate.resumed(*saved)
        stages = strategy.trained(self.network)
        names = ",".join(self.network.stage_names[i] for i in stages)
        self.enter(Phase.TUNING if stages else Phase.PROBING, names or "head")
        start = before[0].candidate.state if strategy.head_first and before else {}
        restore(self.network, self.incumbent)
        candidate = tune(
            self.network,
            strategy,
            start=start,
            stock=self.stock,
            trunk=self.trunk,
            effort=self.effort,
            run=self.run,
        )
        self.checkpoints.save(key, candidate.summary(), candidate.state)
        return candidate

    def _blend(self, candidate: Candidate, before: Sequence[Trial], key: str) -> Blend:
        if (saved := self.checkpoints.load(key)) is not None:
            return Blend.resumed(*saved)
        blended = self._measured_blend(candidate, before)
        self.checkpoints.save(key, blended.summary(), blended.state)
        return blended

    def _measured_blend(self, candidate: Candidate, before: Sequence[Trial]) -> Blend:
        origin, standing = self.incumbent, self.standing
        if self.bootstrap:
            # A head at random is no end of a line; the probe's is.
            probe = before[0].candidate if before else candidate
            origin = origin | probe.state
            restore(self.network, origin)
            standing = stand(self.trunk, self.stock, boundary=probe.boundary, run=self.run)
            if not before:
                return unblended(candidate, standing)
        # Nothing was better than where it started: at the probe, whose line is known.
        again = before and before[0].candidate.stages == () and candidate.best_epoch == 0
        alphas = (before[0].blend.alpha,) if again and candidate.stages else ALPHAS
        return blend(
            self.network,
            candidate,
            origin=origin,
            before=standing,
            stock=self.stock,
            trunk=self.trunk,
            tolerance=self.tolerance,
            run=self.run,
            alphas=alphas,
        )

    def _findings(
        self, candidate: Candidate, blended: Blend, before: Sequence[Trial]
    ) -> list[Finding]:
        found = []
        end, limit = blended.curve[-1].source, self.tolerance.drop
        if end is not None and (finding := forgetting(end, limit=limit, alpha=blended.alpha)):
            found.append(finding)
        if candidate.stages:
            ceiling = before[0].target_accuracy if before else None
            if finding := underfitting(candidate.history, ceiling=ceiling):
                found.append(finding)
        for finding in found:
            self.run.tell(
                EventKind.WARNING, str(finding), failure=finding.failure.value, **finding.facts
            )
        return found
