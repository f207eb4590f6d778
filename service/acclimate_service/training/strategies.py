"""How an adaptation may be done, as a table: which stages move, when, how fast, held by what.

``STRATEGIES`` are whole strategies, ``MODIFIERS`` change one thing about any of
them. ``parse`` reads what a job asks for: ``tail``, ``last:2``,
``stages:stem,block0``, ``full+lwf+no-replay``.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

from acclimate_service.domain.strategy_form import parts
from acclimate_service.training.network import Network


class BatchNorm(enum.Enum):
    """What becomes of BatchNorm statistics in the stages that are trained."""

    FROZEN = "FROZEN"
    RECALIBRATED = "RECALIBRATED"  # estimated again on the new images, before training
    UPDATED = "UPDATED"  # follow every step: forgets the source, kept to show the cost


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to spend the budget.

    ``share`` of the stages are trained, counted from the end (from the start if it
    is negative), unless ``last`` counts or ``stages`` names them. Rates are AdamW's:
    ``head_rate`` for the head, ``tail_rate`` for the last stage, times
    ``layer_decay`` for each stage below. ``effort`` multiplies the job's epochs.
    """

    name: str
    summary: str
    share: float = 0.0
    last: int | None = None  # so many of the last stages, instead of a share
    stages: tuple[str, ...] = ()
    head_first: bool = True  # start from the probe's head (LP-FT, arXiv:2202.10054)
    gradual: bool = False  # unfreeze from the last stage down (ULMFiT, arXiv:1801.06146)
    effort: float = 1.0
    head_rate: float = 1e-3
    tail_rate: float = 5e-4
    layer_decay: float = 0.8
    warmup: float = 0.1  # share of the steps
    cosine: bool = True
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    clip: float = 5.0  # largest norm of the gradient
    ema: float = 0.95  # of the weights, per step; 0 is none
    l2sp: float = 0.0  # pull per step to the starting point (L2-SP, arXiv:1802.01483)
    distil: float = 0.0  # weight of the incumbent's answers on new images (LwF)
    distil_replay: float = 1.0  # the same on replayed ones (DER++, arXiv:2004.07211)
    replay_share: float = 0.5  # of each step's images, where there is replay
    balance: float = 0.5  # of rare labels: 0 as they come, 1 all alike
    batch_norm: BatchNorm = BatchNorm.FROZEN
    augment: bool = True

    def trained(self, network: Network) -> tuple[int, ...]:
        """The indices of the stages that move; the head always does, named or not.

        Raises:
            InvalidSpec: it names a stage that the network does not have.
        """
        count = len(network.stages)
        if self.stages:
            return tuple(sorted({network.boundary(stage) for stage in self.stages} - {count}))
        if self.last is not None:
            return tuple(range(max(0, count - self.last), count))
        moved = min(count, math.ceil(abs(self.share) * count - 1e-9))
        return tuple(range(moved) if self.share < 0 else range(count - moved, count))

    def boundary(self, network: Network) -> int:
        """Where the trunk ends: before the first stage that moves."""
        return min(self.trained(network), default=len(network.stages))


STRATEGIES = {
    s.name: s
    for s in (
        Strategy(
            name="head",
            summary="the head alone, on frozen features",
            head_first=False, effort=4.0, head_rate=2e-3, ema=0.0,
        ),
        Strategy(name="late", summary="the last fifth of the stages and the head", share=0.2),
        Strategy(name="tail", summary="the last two fifths of the stages and the head", share=0.4),
        Strategy(name="deep", summary="the last two thirds of the stages and the head", share=0.67),
        Strategy(
            name="gradual", summary="as tail, unfrozen stage by stage from the end",
            share=0.4, gradual=True,
        ),
        Strategy(
            name="lpft", summary="linear probe, then everything at a low rate",
            share=1.0, tail_rate=1e-4, head_rate=2e-4,
        ),
        Strategy(
            name="surgical", summary="the first two fifths of the stages, for changes of the input",
            share=-0.4,
        ),
        Strategy(name="full", summary="every stage and the head, at decayed rates", share=1.0),
        Strategy(
            name="naive", summary="the usual script: everything, Adam 1e-3, BatchNorm updating",
            share=1.0, head_first=False, head_rate=1e-3, tail_rate=1e-3, layer_decay=1.0,
            warmup=0.0, cosine=False, weight_decay=0.0, label_smoothing=0.0, clip=math.inf,
            ema=0.0, replay_share=0.0, distil_replay=0.0, balance=0.0, batch_norm=BatchNorm.UPDATED,
        ),
    )
}  # fmt: skip


MODIFIERS = {
    "lwf": ("distil the incumbent's answers on new images", {"distil": 1.0}),
    "der": ("distil the incumbent's answers on replayed images", {"distil_replay": 1.0}),
    "held": ("held harder to the incumbent's answers on replayed images", {"distil_replay": 3.0}),
    "no-der": ("replayed images teach their labels alone", {"distil_replay": 0.0}),
    "l2sp": ("pull to the weights that it started from", {"l2sp": 0.02}),
    "no-replay": ("without replayed images", {"replay_share": 0.0}),
    "no-ema": ("without averaged weights", {"ema": 0.0}),
    "no-augment": ("on plain images only", {"augment": False}),
    "balanced": ("every label shown equally often", {"balance": 1.0}),
    "bn-recalibrated": (
        "BatchNorm estimated again on the new images",
        {"batch_norm": BatchNorm.RECALIBRATED},
    ),
    "bn-updated": ("BatchNorm follows the new images", {"batch_norm": BatchNorm.UPDATED}),
    "gradual": ("unfrozen stage by stage", {"gradual": True}),
    "longer": ("for twice the epochs", {"effort": 2.0}),
}  # fmt: skip


def parse(text: str) -> Strategy:
    """The strategy that a job asks for.

    A row's name, ``last:K`` or ``stages:NAME,NAME``, then any modifiers, each after
    a ``+``. ``auto`` is no strategy but the choice of one, see ``auto.py``.

    Raises:
        InvalidSpec: there is no such row, modifier or form.
    """
    read = parts(text)
    strategy = replace(STRATEGIES[read.row], last=read.last, stages=read.stages)
    for modifier in read.modifiers:
        strategy = replace(strategy, **MODIFIERS[modifier][1])  # type: ignore[arg-type]
    return replace(strategy, name=text)
