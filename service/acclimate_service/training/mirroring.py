"""Whether training may mirror the pictures: asked of the incumbent, on images of the source.

A mirrored mug is a mug, and views that show it so teach more from few images. A mirrored
digit, word or sign is another one. Which it is need not be asked of the user: the
incumbent knows the labels, so where it answers mirrored pictures as it does plain ones,
they are the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from acclimate_service.domain.job import EventKind
from acclimate_service.training.dataset import MIRRORED, Indices, Listed, Stock
from acclimate_service.training.measure import Scores, evaluate
from acclimate_service.training.run import Run, numpy_rng
from acclimate_service.training.trunk import Shown, Trunk

ASKED = 256  # source-select images of all labels together, if that is ``LEAST`` of each
LEAST = 4
TELLING = 3  # images of a label that the incumbent answers right, to tell about the label


def mirror_views(trunk: Trunk, stock: Stock, *, boundaries: Sequence[int], run: Run) -> None:
    """Let half of the trunk's views be mirrored from now on, if no label minds; tell the decision.

    Args:
        trunk: over the incumbent, with no augmented view kept so far.
        boundaries: where what is computed of the source-select images is kept.

    Raises:
        Cancelled: the job was asked to stop.
    """
    if trunk.augmentation.flip or trunk.views < 2:
        return
    asked = _asked(stock, seed=run.seed)
    if asked is None:
        alike, why = False, "no held-out source images tell whether that keeps their labels"
    else:
        trunk.fill(Shown.plain(asked), boundaries)
        last = len(trunk.network.stages)
        plain = evaluate(trunk, asked, boundary=last, run=run)
        mirrored = evaluate(trunk, asked, boundary=last, run=run, view=MIRRORED)
        alike, why = same_thing(plain, mirrored, asked.targets, np.unique(stock.train.targets))
    if alike:
        trunk.augmentation = trunk.augmentation.mirrored()
    run.tell(EventKind.DECISION, f"views are {'' if alike else 'not '}mirrored: {why}")


def same_thing(
    plain: Scores, mirrored: Scores, targets: Indices, labels: Indices
) -> tuple[bool, str]:
    """Whether each of the *labels* survives mirroring, and the evidence. Pure.

    Of each label, the images that are answered right plain must be so mirrored by more than
    half, and there must be ``TELLING`` of them; and of all images no more may be lost than
    won but by chance (McNemar's test, two standard deviations).

    Args:
        targets: the true labels of the scored images, int64 [N].
        labels: those that training will show.
    """
    change = mirrored.since(plain)
    for label in labels.tolist():
        right = plain.correct & (targets == label)
        if (count := int(right.sum())) < TELLING:
            return False, f"of label {label} the incumbent knows only {count} source images"
        if 2 * (kept := int((right & mirrored.correct).sum())) <= count:
            return False, f"of label {label} it knows {count} source images plain, {kept} mirrored"
    told = (
        f"of {change.images} source images the incumbent loses {change.lost} when they are "
        f"mirrored and wins {change.won}"
    )
    return change.lost - change.won <= 2 * math.sqrt(change.lost + change.won), told


def _asked(stock: Stock, *, seed: int) -> Listed | None:
    """Some source-select images of each label that training will show, if there are any."""
    if stock.source_select is None:
        return None
    targets = stock.source_select.targets
    labels = np.unique(stock.train.targets)
    each = max(LEAST, ASKED // len(labels))
    rng = numpy_rng(seed, "mirrored")
    chosen = [rng.permutation(np.flatnonzero(targets == label))[:each] for label in labels]
    found = np.sort(np.concatenate(chosen))
    return stock.source_select.part(found) if len(found) else None
