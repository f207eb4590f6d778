"""The frame of every entrant's process: read the task, adapt, write the weights and the effort."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from benchmarks.contest.task import ADAPTED_WEIGHTS, SOURCE_WEIGHTS, Effort, Task, read_task
from torch import Tensor

State = dict[str, Tensor]
Adaptation = Callable[[Task, str, State], tuple[State, str]]


def peak_mib() -> int:
    """The most memory that this process ever had resident.

    Not ``ru_maxrss``, which a child inherits from the process that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def enter(adaptation: Adaptation, libraries: Sequence[str]) -> None:
    """Run one entrant from the command line.

    Args:
        adaptation: makes adapted weights, and a word on how, of a task, a method's name
            and the source model's weights, all under timm's names.
        libraries: whose versions to report.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("method")
    given = parser.parse_args()
    task = read_task(given.folder)
    torch.set_num_threads(task.threads)
    seed_everything(task.seed)
    began, spent = time.monotonic(), _cpu_seconds()
    source = safetensors.torch.load_file(given.folder / SOURCE_WEIGHTS)
    state, detail = adaptation(task, given.method, source)
    safetensors.torch.save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
        given.folder / ADAPTED_WEIGHTS,
    )
    Effort(
        seconds=time.monotonic() - began,
        cpu_seconds=_cpu_seconds() - spent,
        peak_mib=peak_mib(),
        detail=detail,
        versions={name: importlib.metadata.version(name) for name in ("torch", "timm", *libraries)},
    ).write(given.folder)


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


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
