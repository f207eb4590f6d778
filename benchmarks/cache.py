"""What keeping the trunk's activations saves, by how much of the network is trained.

    ./run bench cache [--quick] [--pair NAME] [--per-class N] [--json PATH]

Each strategy trains twice on the same images and views, with the cache and with a cache
of no bytes, where every image is decoded and run through the trunk each time it is shown.
Both give the same weights; the seconds are the processor's, of everything from the source
model to the adapted one, filling the cache included: what else runs changes them little.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from benchmarks import adaptation
from benchmarks.contest import pairs
from benchmarks.contest.ours import CACHE_BYTES, network_of, stock_of
from benchmarks.contest.task import Task

from acclimate_service.training.augment import GENTLE
from acclimate_service.training.cache import Cache
from acclimate_service.training.candidate import Candidate, Effort
from acclimate_service.training.diagnosis import median
from acclimate_service.training.finetune import tune
from acclimate_service.training.network import Network
from acclimate_service.training.run import Run
from acclimate_service.training.strategies import parse
from acclimate_service.training.trunk import Trunk

VIEWS = 4
TAILS = ("head", "last:1", "last:2", "last:4", "last:6", "full")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One strategy with and without the cache, in CPU seconds; an epoch's are the median one's.

    ``share`` is the part of a forward pass's time that the trained stages take.
    """

    strategy: str
    share: float
    epochs: int
    kept: float
    kept_epoch: float
    streamed: float
    streamed_epoch: float


def timing(task: Task, model: Path, strategy: str, shares: Sequence[float]) -> Timing:
    """Train one strategy both ways."""
    boundary = len(shares)
    taken: list[tuple[float, Candidate]] = []
    for budget in (CACHE_BYTES, 0):
        network = network_of(task, safetensors.torch.load_file(model))
        boundary = parse(strategy).boundary(network)
        run = Run(clock=time.process_time, seed=task.seed)
        trunk = Trunk(network, Cache(budget=budget), augmentation=GENTLE, views=VIEWS, run=run)
        effort = Effort(epochs=task.epochs, batch_size=task.batch)
        began = time.process_time()
        candidate = tune(
            network, parse(strategy), start={}, stock=stock_of(task), trunk=trunk, effort=effort,
            run=run,
        )  # fmt: skip
        taken.append((time.process_time() - began, candidate))
    (kept, with_cache), (streamed, without) = taken
    for name, tensor in with_cache.state.items():
        assert torch.equal(tensor, without.state[name]), f"the cache changed {name}"
    return Timing(
        strategy=strategy,
        share=sum(shares[boundary:]),
        epochs=len(without.history),
        kept=kept,
        kept_epoch=median([epoch.seconds for epoch in with_cache.history]),
        streamed=streamed,
        streamed_epoch=median([epoch.seconds for epoch in without.history]),
    )


@torch.no_grad()
def stage_shares(network: Network, batch: int) -> list[float]:
    """The part of a forward pass's time that each stage takes; they add up to 1."""
    size = network.preprocessing.size
    network.eval()
    seconds = [0.0] * len(network.stages)
    for _ in range(5):
        x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        for index, stage in enumerate(network.stages):
            began = time.process_time()
            x = stage(x)
            seconds[index] += time.process_time() - began
    return [one / sum(seconds) for one in seconds]


def table(timings: Sequence[Timing]) -> str:
    """One line for each strategy."""
    rows = [
        "| trained | of forward | epochs | CPU s an epoch (streamed) | in all (streamed) | × |",
        "|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {t.strategy} | {t.share:.0%} | {t.epochs} | {t.kept_epoch:.2f} "
        f"({t.streamed_epoch:.2f}) | {t.kept:.1f} ({t.streamed:.1f}) | "
        f"{t.streamed / t.kept:.2f}× |"
        for t in timings
    ]
    return "\n".join(rows)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pair", choices=pairs.NAMES, default=pairs.NAMES[0])
    parser.add_argument("--per-class", type=int, default=10, help="target images a class; 0: all")
    parser.add_argument("--strategy", action="append", help=f"else {', '.join(TAILS)}")
    parser.add_argument("--quick", action="store_true", help="3 epochs instead of 15")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--json", type=Path)
    own = parser.parse_args()
    words = ["--threads", str(own.threads), "--epochs", "3" if own.quick else "15"]
    given = adaptation.parse(words + (["--models", str(own.models)] if own.models else []))
    torch.set_num_threads(own.threads)
    pair = pairs.named(own.pair, given.models / "images", given.photos)
    task = adaptation.task_of(pair, own.per_class or None, 0, given)
    model = adaptation.source_model(pair, task, given)
    shares = stage_shares(network_of(task, safetensors.torch.load_file(model)), task.batch)
    timings = []
    for strategy in own.strategy or TAILS:
        timings.append(timing(task, model, strategy, shares))
        print(timings[-1], file=sys.stderr, flush=True)
    print(table(timings))
    if own.json:
        own.json.write_text(json.dumps([asdict(t) for t in timings], indent=1) + "\n")


if __name__ == "__main__":
    main()
