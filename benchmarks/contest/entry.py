"""The frame of every entrant's process: read the task, adapt, write the weights and the effort."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from benchmarks.contest.task import (
    ADAPTED_WEIGHTS,
    SOURCE_WEIGHTS,
    Effort,
    Finished,
    Task,
    read_task,
)
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Two clocks, read together: seconds by the wall, and of all processors."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Reading:
        """As they stand."""
        times = os.times()
        spent = times.user + times.system + times.children_user + times.children_system
        return cls(wall=time.monotonic(), cpu=spent)


@dataclass(frozen=True, kw_only=True)
class OnTheWay:
    """A candidate that stood before the end: its name, what it changed of the weights, and when."""

    name: str
    state: State
    at: Reading


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What an entrant ended with: weights under timm's names, and a word on how."""

    state: State
    detail: str
    finished: Sequence[OnTheWay] = ()


Adaptation = Callable[[Task, str, State], Adapted]


def peak_mib() -> int:
    """The most memory that this process ever had resident.

    Not ``ru_maxrss``, which a child inherits from the process that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def enter(adaptation: Adaptation, libraries: Sequence[str]) -> None:
    """Run one entrant from the command line.

    Args:
        adaptation: adapts, given a task, a method's name and the source model's weights.
        libraries: whose versions to report.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("method")
    given = parser.parse_args()
    task = read_task(given.folder)
    torch.set_num_threads(task.threads)
    seed_everything(task.seed)
    began = Reading.now()
    source = safetensors.torch.load_file(given.folder / SOURCE_WEIGHTS)
    made = adaptation(task, given.method, source)
    _save(made.state, given.folder / ADAPTED_WEIGHTS)
    ended, peak = Reading.now(), peak_mib()
    # What is only there to be scored is written after the clocks were read.
    Effort(
        seconds=ended.wall - began.wall,
        cpu_seconds=ended.cpu - began.cpu,
        peak_mib=peak,
        detail=made.detail,
        versions={name: importlib.metadata.version(name) for name in ("torch", "timm", *libraries)},
        finished=tuple(
            Finished(
                name=one.name,
                seconds=one.at.wall - began.wall,
                cpu_seconds=one.at.cpu - began.cpu,
                weights=_save(source | one.state, given.folder / f"finished-{number}.safetensors"),
            )
            for number, one in enumerate(made.finished)
        ),
    ).write(given.folder)


def _save(state: State, file: Path) -> str:
    """Write weights; the file's name."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(whole, file)
    return file.name


def rate_of(method: str, usual: float) -> float:
    """The learning rate that a method's name asks for after an ``@``, else the usual one."""
    return float(method.partition("@")[2] or usual)


def seed_everything(seed: int) -> None:
    """Seed the generators that training libraries draw from."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- it is the libraries that use it
    torch.manual_seed(seed)


def timm_model(task: Task, source: State) -> Any:
    """The source model, as a user of timm holds it.

    In the memory layout that is fastest here, as Acclimate's is: what is compared is the
    methods.
    """
    import timm

    model = timm.create_model(task.architecture, num_classes=len(task.labels))
    model.load_state_dict(source)
    return model.to(memory_format=torch.channels_last).to(task.device)
