"""Labelled images as training sees them, and the order in which an epoch shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from acclimate_service.domain.errors import InvalidSpec, NotEnoughExamples
from acclimate_service.imaging import Showable
from acclimate_service.training.run import numpy_rng

PLAIN = 0  # the view without augmentation: what the served model sees

# A handful of images would make epochs of one step; one that short measures nothing.
MIN_STEPS = 8

Indices = NDArray[np.int64]


class ImageSource(Protocol):
    """Labelled images that are read one at a time, so that any number fits in memory."""

    @property
    def labels(self) -> Sequence[int]:
        """Each image's label, as an index into the network's label space."""
        ...

    @property
    def contents(self) -> Sequence[str]:
        """The hex sha256 of each image's upright RGB pixels."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Showable:
        """One image, or its upright RGB pixels [H, W, 3]. Called from several threads."""
        ...


class Listed:
    """A source whose labels and contents are looked up once; they are asked for at every step."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self.labels: Sequence[int] = tuple(source.labels)
        self.contents: Sequence[str] = tuple(source.contents)
        self.targets: Indices = np.asarray(self.labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Showable:
        """One image."""
        return self._source.read(index)

    def part(self, indices: Sequence[int] | Indices) -> Listed:
        """Some of the images, by index."""
        return Listed(Part(self, tuple(int(i) for i in indices)))


@dataclass(frozen=True)
class Part:
    """Some images of a source, by index; itself a source."""

    whole: ImageSource
    indices: tuple[int, ...]

    @property
    def labels(self) -> Sequence[int]:
        """The labels of the chosen images."""
        return [self.whole.labels[i] for i in self.indices]

    @property
    def contents(self) -> Sequence[str]:
        """The content digests of the chosen images."""
        return [self.whole.contents[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Showable:
        """One chosen image."""
        return self.whole.read(self.indices[index])


@dataclass(frozen=True, kw_only=True)
class Stock:
    """Everything one job may learn from and choose by; verify images are not in here.

    ``train`` and ``select`` are of the new domain. ``replay`` are source images that
    may be shown again; ``source_select`` held-out images of the source and of every
    domain accepted since, for measuring what is forgotten. A bootstrap has neither.
    """

    train: Listed
    select: Listed | None = None
    replay: Listed | None = None
    source_select: Listed | None = None


MIN_CARVED = 4  # images a label, on average, below which nothing is set aside
CARVED = 0.25


def prepare(
    train: ImageSource,
    *,
    labels: int,
    select: ImageSource | None = None,
    replay: ImageSource | None = None,
    source_select: ImageSource | None = None,
) -> Stock:
    """The stock of a job. Empty sources count as missing.

    Where there are no select images, a quarter of each label's training (or replay)
    images is set aside for it, by content, if there are enough.

    Raises:
        NotEnoughExamples: there is nothing to learn from.
        InvalidSpec: an image has a label outside the *labels* of the network.
    """
    listed = [
        Listed(source) if source is not None and len(source) else None
        for source in (train, select, replay, source_select)
    ]
    learnt, chosen_by, shown_again, remembered = listed
    if learnt is None:
        raise NotEnoughExamples("the target domain has no training images; upload some")
    for source in listed:
        if source is not None and not 0 <= source.targets.min() <= source.targets.max() < labels:
            raise InvalidSpec(
                f"labels {source.targets.min()}..{source.targets.max()} do not fit a network "
                f"of {labels} outputs"
            )
    if chosen_by is None:
        learnt, chosen_by = _carve(learnt)
    if remembered is None and shown_again is not None:
        shown_again, remembered = _carve(shown_again)
    return Stock(train=learnt, select=chosen_by, replay=shown_again, source_select=remembered)


def _carve(source: Listed) -> tuple[Listed, Listed | None]:
    present = np.unique(source.targets).tolist()
    if len(source) < MIN_CARVED * len(present):
        return source, None
    aside: list[int] = []
    for label in present:
        own = np.flatnonzero(source.targets == label).tolist()
        own.sort(key=lambda i: source.contents[i])
        aside += own[: round(len(own) * CARVED)]
    rest = np.setdiff1d(np.arange(len(source)), aside)
    return source.part(rest), source.part(sorted(aside))


@dataclass(frozen=True, kw_only=True)
class Step:
    """Which images one step shows: new ones, each as one of its views, and replayed ones."""

    train: Indices
    views: Indices
    replay: Indices


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of showing: a pure function of the seed and the epoch.

    A step holds ``batch_size`` images, of which ``replay_share`` are replayed ones.
    A new image is seen as any of its ``views``, the first of which is the plain one;
    a replayed one always plain, as it is not there to be learnt. An epoch shows every
    new image once, or as often as it takes to fill ``MIN_STEPS`` steps. With
    ``balance`` b in [0, 1] an image of a label with n images is shown in proportion
    to n^-b instead.
    """

    train: Listed
    replay: Listed | None
    batch_size: int
    replay_share: float
    balance: float
    views: int
    seed: int

    @property
    def replayed(self) -> int:
        """Replayed images a step."""
        if self.replay is None or self.replay_share <= 0:
            return 0
        return min(max(1, round(self.batch_size * self.replay_share)), self.batch_size - 1)

    @property
    def fresh(self) -> int:
        """New images a step; not so many that one would appear twice in it."""
        return max(1, min(self.batch_size - self.replayed, len(self.train)))

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return max(MIN_STEPS, -(-len(self.train) // self.fresh))

    @property
    def shown(self) -> int:
        """Images an epoch, new and replayed."""
        return self._slots + self.steps * self.replayed

    @property
    def _slots(self) -> int:
        """New images an epoch."""
        full = -(-len(self.train) // self.fresh) >= MIN_STEPS
        slots = len(self.train) if full else self.steps * self.fresh
        if self.fresh > 1 and not self.replayed and slots % self.fresh == 1:
            slots += 1  # a step of one image has no variance, which a moving BatchNorm needs
        return slots

    def epoch(self, number: int) -> Iterator[Step]:
        """The steps of one epoch, counted from 0."""
        rng = numpy_rng(self.seed, "order", number)
        train = self._draw(self._slots, rng)
        views = rng.integers(self.views, size=len(train))
        replay = np.empty(0, dtype=np.int64)
        if self.replay is not None and self.replayed:
            replay = _cycle(len(self.replay), self.steps * self.replayed, rng)
        for step in range(self.steps):
            new = slice(step * self.fresh, (step + 1) * self.fresh)
            again = slice(step * self.replayed, (step + 1) * self.replayed)
            yield Step(
                train=train[new],
                views=views[new],
                replay=replay[again],
            )

    def _draw(self, slots: int, rng: np.random.Generator) -> Indices:
        count = len(self.train)
        if not self.balance:
            return _cycle(count, slots, rng)
        labels = self.train.targets
        weights = np.bincount(labels)[labels] ** -self.balance
        # Systematic resampling: an image is shown floor or ceil of its share of times.
        edges = np.cumsum(weights / weights.sum()) * slots
        drawn = np.searchsorted(edges, np.arange(slots) + rng.random(), side="right")
        return rng.permutation(np.minimum(drawn, count - 1)).astype(np.int64)


def _cycle(count: int, slots: int, rng: np.random.Generator) -> Indices:
    rounds = [rng.permutation(count) for _ in range(-(-slots // count))]
    return np.concatenate(rounds)[:slots].astype(np.int64)
