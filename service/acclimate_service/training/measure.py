"""How a network does on a set of images, and how that differs from the incumbent, pairwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from torch import Tensor

from acclimate_service.training.dataset import Listed, Stock
from acclimate_service.training.run import Run
from acclimate_service.training.trunk import Shown, Trunk

EVALUATION_BATCH = 64
SOFTNESS = 0.5  # logits, where no incumbent's margins give the scale
_WORST = 1e6


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of each image's answer, from the incumbent to another network.

    ``lost`` images were right and are wrong now (negative flips), ``won`` the other
    way round; ``nll_rise`` is the mean rise of the negative log-likelihood, in nats,
    and ``nll_error`` its standard error. Pairing cancels what both find hard.

    ``soft_drop`` is the fall of accuracy with the step from wrong to right smoothed
    (see :meth:`Scores.soft`). It sees images that come close to flipping, so its
    standard error, ``soft_error``, is about half of what counting flips has.
    """

    images: int
    lost: int
    won: int
    nll_rise: float
    nll_error: float
    soft_drop: float
    soft_error: float

    @property
    def drop(self) -> float:
        """The fall of accuracy, in [-1, 1]."""
        return (self.lost - self.won) / self.images

    @property
    def flips(self) -> float:
        """The share of images whose answer turned from right to wrong or back."""
        return (self.lost + self.won) / self.images


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Per image: the margin [N] and the negative log-likelihood [N] of the true label.

    The margin is its logit less the highest other one: the answer is right where the
    margin is positive.
    """

    margin: NDArray[np.float64]
    nll: NDArray[np.float64]

    @property
    def images(self) -> int:
        """N."""
        return len(self.margin)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each answer is right, bool [N]."""
        return self.margin > 0

    @property
    def accuracy(self) -> float:
        """Top-1, in [0, 1]."""
        return float(self.correct.mean())

    @property
    def mean_nll(self) -> float:
        """Nats an image."""
        return float(self.nll.mean())

    @property
    def score(self) -> float:
        """What the best epoch is chosen by: accuracy in [0, 1], half of it counted and half soft.

        Few images make few steps. The loss would stop too early: it rises with every answer
        that is right and sure but for a few.
        """
        return (self.accuracy + float(self.soft(SOFTNESS).mean())) / 2

    def soft(self, width: float) -> NDArray[np.float64]:
        """How right each answer is, in [0, 1]: a logistic of the margin, *width* logits wide."""
        return np.asarray(1 / (1 + np.exp(-np.clip(self.margin / width, -50, 50))))

    def since(self, incumbent: Scores) -> Change:
        """The paired change from the incumbent's scores on the same images."""
        rise = self.nll - incumbent.nll
        # A tenth of a usual margin: narrow enough to count as accuracy does, wide
        # enough to see an image on its way.
        width = max(0.1 * float(np.median(np.abs(incumbent.margin))), 1e-3)
        fall = incumbent.soft(width) - self.soft(width)
        return Change(
            images=self.images,
            lost=int((incumbent.correct & ~self.correct).sum()),
            won=int((~incumbent.correct & self.correct).sum()),
            nll_rise=float(rise.mean()),
            nll_error=float(rise.std() / np.sqrt(len(rise))),
            soft_drop=float(fall.mean()),
            soft_error=float(fall.std() / np.sqrt(len(fall))),
        )

    def summary(self) -> dict[str, pydantic.JsonValue]:
        """For a report."""
        return {"images": self.images, "accuracy": self.accuracy, "nll": self.mean_nll}


def evaluate(trunk: Trunk, source: Listed, *, boundary: int, run: Run) -> Scores:
    """Score the network as it is now on all of a source's images, unaugmented.

    Args:
        boundary: where the network may be entered: nothing below it has changed.

    Raises:
        Cancelled: the job was asked to stop.
    """
    margin, nll = [], []
    for part, logits in _answers(trunk, source, boundary=boundary, run=run):
        labels = part.labels().to(logits.device)
        margin.append(_margins(logits, labels).double().cpu().numpy())
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        nll.append(losses.double().cpu().numpy())
    # An answer that is no number is wrong, and as bad as can be: comparisons stay sound.
    return Scores(
        # Where there is one label, no other one is near.
        margin=np.nan_to_num(np.concatenate(margin), nan=-_WORST, posinf=_WORST, neginf=-_WORST),
        nll=np.nan_to_num(np.concatenate(nll), nan=_WORST, posinf=_WORST),
    )


def answers(trunk: Trunk, source: Listed, *, boundary: int, run: Run) -> Tensor:
    """The logits [N, C] of the network as it is now for all of a source's images, unaugmented.

    Raises:
        Cancelled: the job was asked to stop.
    """
    parts = _answers(trunk, source, boundary=boundary, run=run)
    return torch.cat([logits for _, logits in parts])


def _answers(
    trunk: Trunk, source: Listed, *, boundary: int, run: Run
) -> Iterator[tuple[Shown, Tensor]]:
    network = trunk.network
    training = network.training
    network.eval()
    shown = Shown.plain(source)
    with torch.no_grad():
        batches = trunk.read(boundary, ([part] for part in shown.chunks(EVALUATION_BATCH)))
        for part, x in zip(shown.chunks(EVALUATION_BATCH), batches, strict=True):
            with torch.autocast("cuda", torch.bfloat16, enabled=run.on_cuda):
                logits = network.forward_from(boundary, x).float()
            yield part, logits
            run.check()
    network.train(training)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Scores of one network on both kinds of select images; None where there are none."""

    target: Scores | None
    source: Scores | None


def stand(trunk: Trunk, stock: Stock, *, boundary: int, run: Run) -> Standing:
    """Score the network as it is now on the select images of the target and of the source.

    Raises:
        Cancelled: the job was asked to stop.
    """
    target, source = (
        None if images is None else evaluate(trunk, images, boundary=boundary, run=run)
        for images in (stock.select, stock.source_select)
    )
    return Standing(target=target, source=source)


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return (own - others.amax(dim=1, keepdim=True)).squeeze(1)
