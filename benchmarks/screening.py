"""How many wrong labels the screen finds, and how many right ones it accuses.

    ./run bench screening                 # amazon -> webcam and back
    ./run bench screening --draws 3

Labels are flipped at random to another one, in shares of none, 10 % and 30 %. The
features and the second witness are a source model's, bootstrapped as in
``benchmarks.adaptation`` and kept in its folder. Prints the rows of docs/guard.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from benchmarks import adaptation
from benchmarks.contest import pairs
from benchmarks.contest.ours import Files, network_of
from numpy.typing import NDArray

from acclimate_service.domain.screening import Sample, screen
from acclimate_service.training.augment import GENTLE
from acclimate_service.training.cache import Cache
from acclimate_service.training.dataset import Listed
from acclimate_service.training.network import Network
from acclimate_service.training.run import Run
from acclimate_service.training.trunk import Shown, Trunk

SHARES = (0.0, 0.1, 0.3)
SIZES = (10, None)  # images a class; None: all


@dataclass(frozen=True, kw_only=True)
class Inverted:
    """A folder as a camera with inverted colours sees it."""

    folder: Files

    @property
    def labels(self) -> Sequence[int]:
        """As the folder's."""
        return self.folder.labels

    @property
    def contents(self) -> Sequence[str]:
        """Other pictures than the folder's."""
        return [f"inverted {content}" for content in self.folder.contents]

    def __len__(self) -> int:
        return len(self.folder)

    def read(self, index: int) -> NDArray[np.uint8]:
        """The pixels of one image."""
        return np.asarray(255 - self.folder.read(index), np.uint8)


def seen(network: Network, images: Files | Inverted) -> Sample:
    """The images as a network sees them, with their true labels."""
    run, end = Run(clock=time.monotonic), len(network.stages)
    trunk = Trunk(network, Cache(budget=0), augmentation=GENTLE, views=1, run=run)
    source = Listed(images)
    shown = Shown.plain(source).chunks(32)
    with torch.no_grad():
        features = torch.cat(list(trunk.read(end, ([part] for part in shown))))
        logits = network.head(features)
    return Sample(features=features.numpy(), labels=source.targets, logits=logits.numpy())


def samples(models: Path) -> Iterator[tuple[str, Sample]]:
    """What each source model sees of each domain that it would be adapted to."""
    given = adaptation.parse(["--models", str(models)])
    for name in pairs.REAL:
        pair = pairs.named(name, models / "images", given.photos)
        task = adaptation.task_of(pair, None, 0, given)
        model = safetensors.torch.load_file(adaptation.source_model(pair, task, given))
        network, images = network_of(task, model).eval(), Files(pair.target)
        source, target = name.split("-")
        yield f"{target} after {source}", seen(network, images)
        yield f"{target} after {source}, colours inverted", seen(network, Inverted(folder=images))


def measured(sample: Sample, each: int | None, share: float, draw: int) -> tuple[int, float, float]:
    """Images, the share of right labels that is accused, and of wrong ones that is found."""
    generator = np.random.default_rng(draw)
    assert sample.logits is not None
    classes = sample.logits.shape[1]
    order = generator.permutation(len(sample))
    chosen = np.concatenate([order[sample.labels[order] == c][:each] for c in range(classes)])
    chosen = generator.permutation(chosen)
    labels = sample.labels[chosen].copy()
    wrong = np.zeros(len(chosen), np.bool_)
    wrong[generator.choice(len(chosen), round(share * len(chosen)), replace=False)] = True
    labels[wrong] = (labels[wrong] + generator.integers(1, classes, wrong.sum())) % classes
    given = Sample(features=sample.features[chosen], labels=labels, logits=sample.logits[chosen])
    accused = np.zeros(len(chosen), np.bool_)
    accused[[one.index for one in screen(given, classes=classes).train]] = True
    found = float(accused[wrong].mean()) if wrong.any() else 0.0
    return len(chosen), float(accused[~wrong].mean()), found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument(
        "--models", type=Path, default=Path(tempfile.gettempdir()) / "acclimate-benchmark"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| domain learned | incumbent | images | accused, 0 % | accused / found, 10 % | 30 % |")
    print("|---|---|---|---|---|---|")
    for name, sample in samples(given.models):
        assert sample.logits is not None
        right = float((sample.logits.argmax(axis=1) == sample.labels).mean())
        for each in SIZES:
            rows = [
                np.mean([measured(sample, each, share, d) for d in range(given.draws)], axis=0)
                for share in SHARES
            ]
            cells = [f"{rows[0][1]:.1%}", *(f"{row[1]:.1%} / {row[2]:.0%}" for row in rows[1:])]
            print(f"| {name} | {right:.0%} | {rows[0][0]:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
