"""A network of a few thousand weights, and pictures that it can learn in a second."""

from __future__ import annotations

import functools
import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from acclimate_service.domain.job import EventKind
from acclimate_service.domain.model import Architecture, Preprocessing
from acclimate_service.training.augment import Augmentation
from acclimate_service.training.cache import Cache
from acclimate_service.training.candidate import Candidate, Effort
from acclimate_service.training.dataset import Stock, prepare
from acclimate_service.training.finetune import tune
from acclimate_service.training.network import Network, Stage
from acclimate_service.training.optimiser import State, restore
from acclimate_service.training.run import Facts, Run
from acclimate_service.training.strategies import Strategy, parse
from acclimate_service.training.trunk import Trunk

LABELS = 4
SIZE = 16
RATE = 20.0  # a network of random weights learns nothing at the rates for pretrained ones
LIGHT = Augmentation(name="light", area=(0.8, 1.0), brightness=0.1)


def network(*, labels: int = LABELS, seed: int = 0, dropout: float = 0.0) -> Network:
    """Four stages (stem, block0, block1, neck) with BatchNorm, and a head; random weights."""

    def block(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        )

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        model = nn.Sequential(
            OrderedDict(
                stem=block(3, 8), block0=block(8, 16), block1=block(16, 24), neck=neck,
                fc=nn.Linear(24, labels),
            )
        )  # fmt: skip
    stages = [Stage(name, [model.get_submodule(name)]) for name in ("stem", "block0", "block1")]
    return Network(
        architecture=Architecture(library="timm", name="tiny"),
        model=model,
        stages=[*stages, Stage("neck", [neck])],
        head_name="fc",
        preprocessing=Preprocessing(size=SIZE, crop=1.0),
    ).eval()


class Pictures:
    """Noisy pictures: a label is where the bright bar lies. *dark* is another camera.

    *flipped* is the share of labels that are wrong, *new* a label without a bar.
    ``reads`` counts how often pixels were asked for.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        seed: int,
        dark: bool = False,
        noise: float = 25.0,
        flipped: float = 0.0,
        new: int | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        truth = [label for label, count in enumerate(counts) for _ in range(count)]
        self._images = [
            _picture(None if label == new else label, rng, dark=dark, noise=noise)
            for label in truth
        ]
        wrong = rng.random(len(truth)) < flipped
        self.labels = [
            (label + 1) % len(counts) if bad else label
            for label, bad in zip(truth, wrong, strict=True)
        ]
        self.contents = [hashlib.sha256(image.tobytes()).hexdigest() for image in self._images]
        self.reads = 0

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        """The pixels of one picture."""
        self.reads += 1
        return self._images[index]


def _picture(
    label: int | None, rng: np.random.Generator, *, dark: bool, noise: float
) -> NDArray[np.uint8]:
    image = np.full((SIZE + 4, SIZE + 4, 3), 60.0)
    if label is None:
        image[..., 1] += 120
    elif label % 2:
        image[2 + 4 * label : 6 + 4 * label] += 120
    else:
        image[:, 2 + 4 * label : 6 + 4 * label] += 120
    if dark:  # inverted, dimmed and tinted: far enough that the incumbent fails
        image = (255 - image) * np.array([0.9, 0.5, 0.4])
    image += rng.normal(0, noise, image.shape)
    return image.clip(0, 255).astype(np.uint8)


class Diary:
    """Remembers every event."""

    def __init__(self) -> None:
        self.events: list[tuple[EventKind, str, Facts]] = []

    def __call__(self, kind: EventKind, message: str, facts: Facts) -> None:
        self.events.append((kind, message, facts))

    def messages(self, kind: EventKind) -> list[str]:
        """What was told of this kind."""
        return [message for k, message, _ in self.events if k is kind]


def run(seed: int = 0, **changes: object) -> Run:
    """A run on the CPU."""
    return Run(**({"clock": time.monotonic, "seed": seed} | changes))  # type: ignore[arg-type]


def trunk(
    net: Network,
    *,
    views: int = 2,
    budget: int = 1 << 28,
    folder: Path | None = None,
    surroundings: Run | None = None,
) -> Trunk:
    """A trunk with a cache in memory, or in a folder."""
    cache = Cache(budget=budget, folder=folder)
    return Trunk(net, cache, augmentation=LIGHT, views=views, run=surroundings or run())


def source_stock(*, per_label: int = 30) -> Stock:
    """What a bootstrap on the bright camera sees."""
    return prepare(
        Pictures([per_label] * LABELS, seed=1),
        labels=LABELS,
        select=Pictures([15] * LABELS, seed=2),
    )


def target_stock(*, per_label: int = 10, **changes: Pictures | None) -> Stock:
    """What an adaptation to the dark camera sees."""
    parts: dict[str, Pictures | None] = {
        "select": Pictures([15] * LABELS, seed=4, dark=True),
        "replay": Pictures([10] * LABELS, seed=1),
        "source_select": Pictures([25] * LABELS, seed=5),
    }
    train = Pictures([per_label] * LABELS, seed=3, dark=True)
    return prepare(changes.pop("train", None) or train, labels=LABELS, **(parts | changes))


@functools.cache
def incumbent_state() -> State:
    """A network that knows the bright camera (and fails on the dark one)."""
    net = network()
    candidate = tune(
        net, parse("full"), start={}, stock=source_stock(), trunk=trunk(net),
        effort=Effort(epochs=8, rate=RATE), run=run(),
    )  # fmt: skip
    everything: State = net.state_dict()
    return everything | candidate.state


def incumbent(**changes: object) -> Network:
    """A network at the incumbent's weights."""
    net = network(**changes)  # type: ignore[arg-type]
    restore(net, incumbent_state())
    return net.eval()


def learn(
    strategy: str | Strategy,
    *,
    net: Network | None = None,
    stock: Stock | None = None,
    epochs: int = 3,
    rate: float = RATE,
    seed: int = 0,
    batch_size: int = 16,
    **surroundings: object,
) -> Candidate:
    """Tune the incumbent (or *net*) on the dark camera."""
    net = net or incumbent()
    here = run(seed, **surroundings)
    return tune(
        net,
        parse(strategy) if isinstance(strategy, str) else strategy,
        start={},
        stock=stock or target_stock(),
        trunk=trunk(net, surroundings=here),
        effort=Effort(epochs=epochs, batch_size=batch_size, rate=rate),
        run=here,
    )
