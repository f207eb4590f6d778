"""Training: the head alone, or a tail of stages with it, over cached activations.

    candidate = tune(network, parse("tail"), start=incumbent | probe.state, ...)

One loop serves every strategy. It is deterministic given a seed on one kind of
device, stops between steps when asked to, halves its micro-batch when memory runs
out, and goes back to the last good weights at a lower rate when it turns unstable.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from acclimate_service.domain.errors import TrainingDiverged
from acclimate_service.domain.job import EventKind
from acclimate_service.training.batches import Batches
from acclimate_service.training.batchnorm import check_steps, recalibrate
from acclimate_service.training.candidate import Candidate, Effort
from acclimate_service.training.dataset import Listed, Order, Stock
from acclimate_service.training.diagnosis import (
    Epoch,
    Failure,
    Finding,
    Stability,
    median,
    overfitting,
    shock,
)
from acclimate_service.training.measure import Scores, answers, evaluate
from acclimate_service.training.network import Network
from acclimate_service.training.objective import Objective
from acclimate_service.training.optimiser import Optimiser, State, restore, snapshot
from acclimate_service.training.run import Run, numpy_rng, seed_of
from acclimate_service.training.strategies import BatchNorm, Strategy
from acclimate_service.training.trunk import Shown, Trunk

DAMPING = 0.25  # of the rates, each time that training turns unstable
MAX_RESTORES = 3
MAX_SHOCKS = 2
SETTLING = 3  # epochs in which stages that began to move may be worse than before
PATIENCE = 5  # epochs without a better select score; half of all where stages have paid
PAYS = 0.05  # of select score
WATCHED = 256  # select images that tell one epoch from another; all of them weigh the trials

Trouble = tuple[Failure, str]  # what made an epoch worthless, and its sign

__all__ = ["Candidate", "Effort", "fill", "tune"]


def tune(
    network: Network,
    strategy: Strategy,
    *,
    start: State,
    stock: Stock,
    trunk: Trunk,
    effort: Effort,
    run: Run,
) -> Candidate:
    """Train what the strategy moves. The network is left at the candidate's weights.

    Args:
        network: holds the incumbent, whose answers some strategies distil.
        start: the tensors to start from that are not the incumbent's, such as the
            head of a probe.

    Raises:
        Cancelled: the job was asked to stop.
        InvalidSpec: BatchNorm is to follow steps of one image.
        TrainingDiverged: it stayed unstable at rates lowered ``MAX_RESTORES`` times.
    """
    tuning = _Tuning(
        network, strategy, start=start, stock=stock, trunk=trunk, effort=effort, run=run
    )
    return tuning.candidate()


def fill(trunk: Trunk, stock: Stock, strategy: Strategy, boundaries: Sequence[int]) -> None:
    """Keep what the strategy will read at these boundaries, as far as the cache's budget goes.

    Raises:
        Cancelled: the job was asked to stop.
    """
    views = range(trunk.views if strategy.augment else 1)
    trunk.fill(Shown.all(stock.train, views), boundaries)
    replay = stock.replay if strategy.replay_share else None
    for source in (replay, stock.select, stock.source_select):
        if source is not None:
            trunk.fill(Shown.plain(source), boundaries)


class _Tuning:
    """One call of :func:`tune`."""

    def __init__(
        self,
        network: Network,
        strategy: Strategy,
        *,
        start: State,
        stock: Stock,
        trunk: Trunk,
        effort: Effort,
        run: Run,
    ) -> None:
        self.network = network
        self.strategy = strategy
        self.stock = stock
        self.trunk = trunk
        self.run = run
        self.began = run.clock()
        self.trained = strategy.trained(network)
        self.boundary = strategy.boundary(network)
        self.start = start
        self.watched = _some(stock.select, seed=run.seed)
        teacher = copy.deepcopy(network).eval() if strategy.distil else None
        self.remembered: Tensor | None = None  # the incumbent's answers on replayed images
        self.epochs = max(1, round(effort.epochs * strategy.effort))
        self.order = Order(
            train=stock.train,
            replay=stock.replay,
            batch_size=effort.batch_size,
            replay_share=strategy.replay_share,
            balance=strategy.balance,
            views=trunk.views if strategy.augment else 1,
            seed=run.seed,
        )
        check_steps(strategy, self.order)
        self.batches = Batches(
            stock, order=self.order, trunk=trunk, boundary=self.boundary, run=run
        )
        self.objective = Objective(
            network,
            strategy,
            teacher=teacher,
            boundary=self.boundary,
            micro_batch=effort.batch_size,
            run=run,
            compiling=self._worth_compiling(),
        )
        self.rate = effort.rate
        self.history: list[Epoch] = []
        self.findings: list[Finding] = []

    def _worth_compiling(self) -> bool:
        images = self.epochs * self.order.shown
        decided = self.run.compiling.decide(
            device=self.run.device.type,
            images=images,
            stages=len(self.trained),
            gradual=self.strategy.gradual,
        )
        if decided is None:
            return False
        worth, why = decided
        self._tell(f"is {'' if worth else 'not '}compiled: {why}", images=images)
        return worth

    # ── the whole ────────────────────────────────────────────────────────────

    def candidate(self) -> Candidate:
        """Fill the cache, train epoch by epoch, keep the best."""
        fill(self.trunk, self.stock, self.strategy, [self.boundary])
        if self.strategy.distil_replay and self.order.replayed and self.stock.replay is not None:
            # Once, as a replayed image is always shown plain.
            self.remembered = answers(
                self.trunk, self.stock.replay, boundary=self.boundary, run=self.run
            )
        restore(self.network, self.start)
        # Dropout and stochastic depth draw from the global generator.
        devices = [self.run.device] if self.run.on_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed_of(self.run.seed, self.strategy.name))
            self._unfreeze(0)
            if self.trained and self.strategy.batch_norm is BatchNorm.RECALIBRATED:
                recalibrate(self.network, self.trained, self.batches.fresh())
            best, best_epoch = self._train()
        restore(self.network, best)
        self.network.freeze_below(len(self.network.stages))
        self.network.eval()
        return Candidate(
            strategy=self.strategy.name,
            stages=tuple(self.network.stage_names[i] for i in self.trained),
            boundary=self.boundary,
            state=best,
            history=tuple(self.history),
            findings=tuple(self.findings),
            best_epoch=best_epoch,
            micro_batch=self.objective.micro_batch,
            seconds=self.run.clock() - self.began,
        )

    def _train(self) -> tuple[State, int]:
        optimiser = self._optimiser(damping=self.rate)
        good = best = snapshot(self.network, self.trained)
        before = self._select()
        first = best_score = before.score if before else None
        best_epoch, epoch = 0, 0
        while epoch < self.epochs and self._time_for_another(epoch):
            self._unfreeze(epoch)
            trouble = self._epoch(epoch, optimiser)
            kept, scores = snapshot(self.network, self.trained), None
            if trouble is None:
                optimiser.average_in()
                scores = self._measure()
                trouble = None if best_epoch else self._shocked(scores, before)
            if trouble is not None:
                good = best if trouble[0] is Failure.SHOCK else good
                restore(self.network, good)
                optimiser = self._restart(trouble, optimiser.damping * DAMPING, epoch)
                epoch = len(self.history)
                continue
            good, score = kept, scores.score if scores else None
            epoch += 1
            if score is None or best_score is None or score > best_score:
                best_score, best_epoch = score, epoch
                best = snapshot(self.network, self.trained)
            optimiser.average_out()
            if score is not None and epoch - best_epoch >= self._patience(first, best_score):
                since = f"epoch {best_epoch}" if best_epoch else "the start"
                self._tell(f"ended after {epoch} epochs: no select image gained since {since}")
                break
        self._note_overfitting()
        return best, best_epoch

    def _patience(self, first: float | None, best: float | None) -> int:
        """How many epochs without a better score are enough.

        Stages that have gained much are likely to gain more while their rates fall.
        """
        if not self.trained or first is None or best is None or best - first < PAYS:
            return PATIENCE
        return max(PATIENCE, self.epochs // 2)

    def _shocked(self, scores: Scores | None, before: Scores | None) -> Trouble | None:
        """Whether stages that began to move made the select images worse, and left them so.

        Often enough lowered, it is not the rate: the best weights are then the first ones.
        """
        if scores is None or before is None or not self.trained:
            return None
        worse, epochs = shock(scores.since(before)), len(self.history)
        if worse is None or self._noted(Failure.SHOCK) >= MAX_SHOCKS:
            return None
        if epochs == min(SETTLING, self.epochs):
            self.history.clear()
            return Failure.SHOCK, worse
        if epochs == 1:
            self._tell(f"made select images worse at first ({worse}): it may settle")
        return None

    def _time_for_another(self, epoch: int) -> bool:
        """Whether the deadline leaves time; if not for all epochs, fewer are planned."""
        left = self.run.seconds_left()
        if epoch == 0 or left == float("inf"):
            return True
        affordable = int(left / max(1e-9, median([e.seconds for e in self.history])))
        self.epochs = min(self.epochs, epoch + affordable)
        return affordable > 0

    # ── one epoch ────────────────────────────────────────────────────────────

    def _epoch(self, epoch: int, optimiser: Optimiser) -> Trouble | None:
        """Train one epoch and enter it in the history; what went wrong, if anything."""
        began = self.run.clock()
        stability = self.stability
        losses, norms = [], []
        right = shown = 0
        for number, (step, x, labels) in enumerate(self.batches.epoch(epoch)):
            remembered = None if self.remembered is None else self.remembered[step.replay]
            loss, hits = self.objective.gradients(
                x, labels, new=len(step.train), remembered=remembered
            )
            norm = float(optimiser.gradient_norm())
            if trouble := stability.observe(loss, norm):
                return Failure.INSTABILITY, trouble
            optimiser.step((epoch + number / self.order.steps) / self.epochs)
            losses.append(loss)
            norms.append(norm)
            right += hits
            shown += len(step.train)
        self.history.append(
            Epoch(
                epoch=epoch + 1,
                steps=len(losses),
                seconds=self.run.clock() - began,
                train_loss=sum(losses) / len(losses),
                train_accuracy=right / shown,
                gradient_norm=median(norms),
            )
        )
        return None

    # ── between epochs ───────────────────────────────────────────────────────

    def _select(self) -> Scores | None:
        """How the network does on the watched select images, if there are any."""
        if self.watched is None:
            return None
        return evaluate(self.trunk, self.watched, boundary=self.boundary, run=self.run)

    def _measure(self) -> Scores | None:
        """Score the select images, complete the last line of the history, and tell it."""
        line, scores = self.history[-1], self._select()
        if scores is not None:
            line = replace(line, select_accuracy=scores.accuracy, select_nll=scores.mean_nll)
        self.history[-1] = line
        reached = "" if line.select_accuracy is None else f", select {line.select_accuracy:.1%}"
        self.run.tell(
            EventKind.EPOCH,
            f"{self.strategy.name} epoch {line.epoch}/{self.epochs}: loss {line.train_loss:.3f}, "
            f"train {line.train_accuracy:.1%}{reached}",
            strategy=self.strategy.name,
            epochs=self.epochs,
            **asdict(line),
        )
        return scores

    def _tell(self, decision: str, **facts: int) -> None:
        name = self.strategy.name
        self.run.tell(EventKind.DECISION, f"{name} {decision}", strategy=name, **facts)

    def _note_overfitting(self) -> None:
        if (finding := overfitting(self.history)) is not None:
            self._note(finding)

    def _note(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.run.tell(
            EventKind.WARNING, str(finding), failure=finding.failure.value, **finding.facts
        )

    def _noted(self, failure: Failure) -> int:
        return sum(finding.failure is failure for finding in self.findings)

    def _restart(self, trouble: Trouble, damping: float, epoch: int) -> Optimiser:
        """Rates lowered, moments forgotten, after the weights were restored.

        Raises:
            TrainingDiverged: that was done often enough.
        """
        failure, evidence = trouble
        restores = self._noted(failure) + 1
        self._note(
            Finding(
                failure=failure,
                evidence=f"in epoch {epoch + 1}: {evidence}",
                response=f"restored the last good weights, rates times {damping:g}",
                facts={"epoch": epoch + 1, "restores": restores, "damping": damping},
            )
        )
        if failure is Failure.INSTABILITY and restores > MAX_RESTORES:
            raise TrainingDiverged(
                f"{self.strategy.name} stayed unstable after {MAX_RESTORES} restarts at lower "
                f"rates ({evidence}); look for broken images or ask for lower rates",
                strategy=self.strategy.name,
                restores=restores,
            )
        return self._optimiser(damping=damping)

    def _optimiser(self, *, damping: float) -> Optimiser:
        self.stability = Stability()
        return Optimiser(self.network, self.strategy, damping=damping)

    def _unfreeze(self, epoch: int) -> None:
        """Let the strategy's stages move; with gradual unfreezing, as many as are due."""
        moving = set(self.trained)
        if self.strategy.gradual and self.trained:
            # The whole tail moves from the middle of the epochs on.
            due = 1 + epoch * 2 * len(self.trained) // max(1, self.epochs)
            moving = set(self.trained[-due:])
        updates = self.strategy.batch_norm is BatchNorm.UPDATED
        self.network.freeze_below(self.boundary, batchnorm_updates=updates)
        self.network.train()
        for index, stage in enumerate(self.network.stages):
            if index not in moving:
                stage.requires_grad_(False).eval()


def _some(select: Listed | None, *, seed: int) -> Listed | None:
    """At most ``WATCHED`` of them, the same in every trial of a job."""
    if select is None or len(select) <= WATCHED:
        return select
    return select.part(numpy_rng(seed, "watched").permutation(len(select))[:WATCHED])
