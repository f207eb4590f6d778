"""Which labels nobody believes: two witnesses against each, before anything is trained.

The first witness is a probe, cross-fitted on the batch's own labels. It accuses by
confident learning (Northcutt, Jiang and Chuang, JAIR 70 (2021), 1373-1411): an image is
off the diagonal if the probe gives another label at least the probability that images
of that label get on average. The bar follows each label's own difficulty, so a hard one
is not accused wholesale.

The second must prefer the same rival. It is the incumbent, its answers divided by how
often it gives each in this domain: where that is strongly shifted it names one label for
everything, and would accuse all the others. Where it does not know both labels (a first
version, a label that is new) the nearest neighbours speak in its place, and must be
clearer, as they see the same features and the same labels as the probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acclimate_service.domain.probe import Array, Floats, Ints, Probe, Space, softmax

LEAST = 20  # images below which nothing is screened
LEAST_OF_LABEL = 4  # below which no image of a label is accused: the probe never saw it
_NEIGHBOURS = 10
_REFERENCES = 8192  # images among which neighbours are looked for
_BLOCK = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Images as witnesses see them.

    ``features`` [N, F] of the incumbent, pooled; ``labels`` [N] as given; ``logits``
    [N, K] of the incumbent, which knows the first K labels, or None.
    """

    features: Floats
    labels: Ints
    logits: Floats | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """An image, by its place in the sample, whose label both witnesses contradict.

    ``suggested`` is the label they prefer, ``confidence`` the probe's probability of it.
    """

    index: int
    suggested: int
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Screening:
    """What was found among the images to learn from, and among held-out ones.

    ``agreement`` is the share of the probe's answers, out of fold, that are the label:
    near chance, the probe is no witness and accuses hardly anybody. None: there were too
    few images to screen.
    """

    train: tuple[Suspicion, ...] = ()
    held_out: tuple[tuple[Suspicion, ...], ...] = ()
    agreement: float | None = None


def screen(
    train: Sample,
    held_out: tuple[Sample, ...] = (),
    *,
    classes: int,
    step: Callable[[], object] = lambda: None,
) -> Screening:
    """Ask the witnesses about every label of *train*, and of *held_out* samples.

    Held-out images are only asked about: nothing is fitted to them. *step* is called now
    and then.
    """
    counts = np.bincount(train.labels, minlength=classes)
    if len(train) < LEAST or (counts >= LEAST_OF_LABEL).sum() < 2:
        return Screening(held_out=tuple(() for _ in held_out))
    space = Space.of(train.features)
    points = space.project(train.features)
    probe = Probe.cross_fitted(points, train.labels, classes=classes, step=step)
    court = _Court(
        bars=_bars(probe.out_of_fold(), train.labels, counts),
        points=points,
        labels=train.labels,
        usual=None if train.logits is None else _usual(train.logits),
    )
    found = court.hear(probe.out_of_fold(), points, train, own=True)
    believed = np.setdiff1d(np.arange(len(train)), [one.index for one in found])
    others = []
    for sample in held_out:
        seen = space.project(sample.features)
        said = probe.elsewhere(points[believed], train.labels[believed], seen)
        others.append(court.hear(said, seen, sample, own=False))
    return Screening(train=found, held_out=tuple(others), agreement=probe.agreement)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Court:
    """The bars that a probability must reach to accuse, and the second witness."""

    bars: Array  # [C]; infinite where a label has too few images
    points: Array  # [N, D] of the training images
    labels: Ints  # [N]
    usual: Array | None  # [K] how much the incumbent gives each label, on average

    def hear(
        self,
        testimony: Iterable[tuple[Ints, Array]],
        points: Array,
        sample: Sample,
        *,
        own: bool,
    ) -> tuple[Suspicion, ...]:
        """Those whom both witnesses contradict. ``own``: the sample is the training images.

        *testimony* is the probe's: images by place [B], and their probabilities [B, C].
        """
        given = sample.labels
        suggested, confidence = np.zeros(len(sample), np.int64), np.zeros(len(sample), np.float32)
        for places, said in testimony:
            rival = np.where(said >= self.bars, said, -1.0)
            suggested[places], confidence[places] = rival.argmax(axis=1), rival.max(axis=1)
        charged = (confidence > 0) & (suggested != given)
        charged &= np.isfinite(self.bars)[given]
        accused = np.flatnonzero(charged)
        if not len(accused):
            return ()
        seconded = self._second(accused, suggested[accused], points, sample, own=own)
        return tuple(
            Suspicion(index=int(i), suggested=int(suggested[i]), confidence=float(confidence[i]))
            for i in accused[seconded]
        )

    def _second(
        self, accused: Ints, suggested: Ints, points: Array, sample: Sample, *, own: bool
    ) -> npt.NDArray[np.bool_]:
        """[M] whether the second witness prefers what the probe suggests."""
        given = sample.labels[accused]
        agrees = self._neighbours(accused, suggested, given, points, own=own)
        if sample.logits is not None and self.usual is not None:
            known = (suggested < len(self.usual)) & (given < len(self.usual))
            shifted = sample.logits[accused] - np.log(self.usual + 1e-6)
            rows = np.flatnonzero(known)
            agrees[rows] = shifted[rows, suggested[rows]] > shifted[rows, given[rows]]
        return agrees

    def _neighbours(
        self, accused: Ints, suggested: Ints, given: Ints, points: Array, *, own: bool
    ) -> npt.NDArray[np.bool_]:
        """Whether the nearest images have the suggested label more than twice as often."""
        total = len(self.labels)
        some = np.linspace(0, total - 1, min(total, _REFERENCES)).astype(np.int64)
        there, labels = _direction(self.points[some]), self.labels[some]
        agrees = np.zeros(len(accused), np.bool_)
        for start in range(0, len(accused), _BLOCK):
            part = slice(start, start + _BLOCK)
            likeness = _direction(points[accused[part]]) @ there.T
            if own:
                likeness[some == accused[part, None]] = -np.inf
            nearest = labels[np.argsort(-likeness, axis=1)[:, :_NEIGHBOURS]]
            votes_for = (nearest == suggested[part, None]).sum(axis=1)
            votes_against = (nearest == given[part, None]).sum(axis=1)
            agrees[part] = votes_for >= np.maximum(3, 2 * votes_against + 1)
        return agrees


def _bars(
    testimony: Iterable[tuple[Ints, Array]], labels: Ints, counts: npt.NDArray[np.int64]
) -> Array:
    """For each label, what its images get of it on average."""
    own = np.zeros(len(labels))
    for places, said in testimony:
        own[places] = said[np.arange(len(places)), labels[places]]
    means = np.bincount(labels, weights=own, minlength=len(counts)) / np.maximum(counts, 1)
    return np.where(counts >= LEAST_OF_LABEL, means, np.inf).astype(np.float32)


def _usual(logits: Floats) -> Array:
    """[K] how much of its probability each label gets, on average over *logits* [N, K]."""
    starts = range(0, len(logits), _BLOCK)
    sums = [softmax(logits[start : start + _BLOCK]).sum(axis=0) for start in starts]
    return np.asarray(np.sum(sums, axis=0) / len(logits), np.float32)


def _direction(points: Array) -> Array:
    return np.asarray(points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12))
