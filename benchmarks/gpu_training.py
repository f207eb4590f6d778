"""What training gains from a GPU, and from each thing that is done for it there.

    ./run bench gpu_training [--quick] [--photos FOLDER] [--json PATH]

EfficientNet-Lite0 and resnet50 at 224 pixels, random weights (they cost the same). A step
is forward, backward and AdamW on a batch that lies on the device, by stages trained; the
ways take turns, and the median of their steps counts; the first one is what a job runs.
The trunk's pass, from real files to kept activations, is by how many threads decode.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.contest import pairs
from benchmarks.contest.ours import Files
from benchmarks.contest.task import Picture
from benchmarks.gpu_serving import told
from torch import Tensor
from torch.nn import functional

from acclimate_service.domain.model import Architecture
from acclimate_service.training.augment import GENTLE
from acclimate_service.training.cache import Cache
from acclimate_service.training.compiling import Compiling
from acclimate_service.training.dataset import prepare
from acclimate_service.training.device import choose_device
from acclimate_service.training.forward import compiled
from acclimate_service.training.network import Network, build
from acclimate_service.training.optimiser import Optimiser
from acclimate_service.training.run import Run
from acclimate_service.training.strategies import parse
from acclimate_service.training.trunk import LAYOUT, Shown, Trunk

SIZE = 224
BATCH = 64
NETWORKS = ("tf_efficientnet_lite0", "resnet50")
TAILS = ("last:1", "tail", "full")
COMPILED = "tail"  # the one that is also tried with torch.compile
STEPS = 30

ROWS = {"network": "24", "trained": "8", "way": "38", "rate": "9.0f", "first": "7.2f"}
TRUNK = {"network": "24", "device": "8", "readers": "8", "rate": "9.0f"}


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a step is computed. The first one of a table is the engine's own."""

    name: str
    device: str = "cuda"
    half: bool = True
    channels_last: bool = True
    deterministic: bool = True
    compiled: bool = False


WAYS = (
    Way(name="bf16, channels last, deterministic"),
    Way(name="any order of sums", deterministic=False),
    Way(name="contiguous", channels_last=False),
    Way(name="float32", half=False),
    Way(name="compiled", compiled=True),
)


class Stepper:
    """One network that takes training steps in one way."""

    def __init__(self, name: str, strategy: str, way: Way) -> None:
        self.way = way
        self.device = choose_device(way.device, threads=os.cpu_count() or 1)
        chosen = parse(strategy)
        self.layout = LAYOUT if way.channels_last else torch.contiguous_format
        network = build(Architecture(library="timm", name=name), labels=10, size=SIZE)
        self.network: Network = network.to(self.device).to(memory_format=self.layout)
        self.boundary = chosen.boundary(self.network)
        x = torch.randn(BATCH, 3, SIZE, SIZE, device=self.device).contiguous(
            memory_format=self.layout
        )
        with torch.no_grad(), self._autocast():
            for stage in self.network.stages[: self.boundary]:
                x = stage(x)
        self.x = x.float()
        self.labels = torch.arange(BATCH, device=self.device) % 10
        self.network.freeze_below(self.boundary)
        self.network.train()
        self.optimiser = Optimiser(self.network, chosen)
        self.forward: Callable[[Tensor], Tensor] = lambda x: self.network.forward_from(
            self.boundary, x
        )
        self.first = 0.0
        if way.compiled:  # as the engine does it
            self.forward = compiled(self.network, self.boundary, backend=Compiling().backend)
        began = time.perf_counter()
        self.step()
        self.first = time.perf_counter() - began

    def _autocast(self) -> AbstractContextManager[Any]:
        on = self.way.half and self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on else nullcontext()

    def step(self) -> float:
        """Take one; its seconds."""
        torch.use_deterministic_algorithms(self.way.deterministic, warn_only=True)
        began = time.perf_counter()
        self.network.zero_grad(set_to_none=True)
        with self._autocast():
            logits = self.forward(self.x).float()
        loss = functional.cross_entropy(logits, self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        float(self.optimiser.gradient_norm())  # waits for the device, as training does
        self.optimiser.step(0.3)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def steps(name: str, ways: tuple[Way, ...], count: int) -> Iterator[dict[str, Any]]:
    """A row for each tail and way: images a second, and the seconds of the first step."""
    for strategy in TAILS:
        steppers = [
            Stepper(name, strategy, way)
            for way in ways
            if strategy == COMPILED or not way.compiled  # half a minute each
        ]
        for stepper in steppers:
            for _ in range(3):
                stepper.step()
        taken: list[list[float]] = [[] for _ in steppers]
        for _ in range(count):
            for stepper, mine in zip(steppers, taken, strict=True):
                mine.append(stepper.step())
        for stepper, mine in zip(steppers, taken, strict=True):
            yield {
                "network": name,
                "trained": strategy,
                "way": stepper.way.name,
                "rate": BATCH / statistics.median(mine),
                "first": stepper.first,
            }


def trunk_pass(name: str, photos: Path, device: torch.device, readers: int) -> dict[str, Any]:
    """Images a second from files to kept activations, by so many threads that decode."""
    folder = photos / "webcam"
    labels = sorted(path.name for path in folder.iterdir())
    pictures = [
        Picture(path=str(file), label=label, content=str(file))
        for label, one in enumerate(labels)
        for file in sorted((folder / one).iterdir())
    ]
    stock = prepare(Files(pictures), labels=len(labels))
    network = build(Architecture(library="timm", name=name), labels=10, size=SIZE).to(device)
    network.to(memory_format=LAYOUT)
    run = Run(clock=time.monotonic, device=device, readers=readers)
    boundary = parse("tail").boundary(network)
    trunk = Trunk(network, Cache(budget=8 * 2**30), augmentation=GENTLE, views=4, run=run)
    trunk.fill(Shown(source=stock.train, indices=_few(32), views=_few(32) * 0), [boundary])
    shown = Shown.all(stock.train, range(1, 4))
    began = time.perf_counter()
    trunk.fill(shown, [boundary])
    return {
        "network": name,
        "device": device.type,
        "readers": readers,
        "rate": len(shown) / (time.perf_counter() - began),
    }


def _few(count: int) -> Any:
    return torch.arange(count).numpy()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--photos", type=Path, default=Path(os.environ.get("ACCLIMATE_TEST_PHOTOS", pairs.PHOTOS))
    )
    parser.add_argument("--quick", action="store_true", help="five steps, one network, no compiler")
    parser.add_argument("--device", default="cuda", help="cpu only tries the benchmark itself")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    here = choose_device(given.device, threads=os.cpu_count() or 1)
    print(torch.cuda.get_device_name(here) if here.type == "cuda" else "no GPU", torch.__version__)
    ways = tuple(replace(way, device=given.device) for way in WAYS)[: 2 if given.quick else None]
    networks = NETWORKS[: 1 if given.quick else None]
    count = 3 if given.quick else STEPS
    rates: Iterator[dict[str, Any]] = iter(())
    for name in networks:
        rates = itertools.chain(rates, steps(name, ways, count))
    if here.type == "cuda":
        beside = Way(name="the CPU beside it", device="cpu")
        rates = itertools.chain(rates, steps(NETWORKS[0], (beside,), 2))
    readers = sorted({1, min(8, os.cpu_count() or 1)})
    passes = (trunk_pass(NETWORKS[0], given.photos, here, count) for count in readers)
    found = {"trunk": told(passes, TRUNK), "steps": told(rates, ROWS)}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
