"""Avalanche's ``Replay`` and ``LwF``, the source being the experience before the target.

*avalanche-replay*: its memory holds the same replay images as everybody's; a batch is as
many new as remembered ones. *avalanche-lwf*: its teacher is the source model, alpha 1 and
temperature 2, its plugin's defaults. *+frozen-bn*: the same with BatchNorm frozen, which
the library does not do by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from avalanche.training.plugins import LwFPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.supervised import LwF, Replay
from benchmarks.contest.entry import Adapted, State, enter, rate_of, timm_model
from benchmarks.contest.script import Photos, keep_statistics, transforms
from benchmarks.contest.task import Pictures, Task
from torch import nn

RATE = 1e-2
MOMENTUM = 0.9
FROZEN = "+frozen-bn"


class FrozenStatistics(SupervisedPlugin):  # type: ignore[misc]  # it ships no types
    """BatchNorm as the source left it."""

    def before_training_iteration(self, strategy: Any, **_given: Any) -> None:
        """After the strategy has put its model in training mode."""
        keep_statistics(strategy.model)


def adapted(task: Task, method: str, source: State) -> Adapted:
    """Train on the target as on a second experience."""
    name, frozen, _ = method.partition(FROZEN)
    rate = rate_of(method, RATE)
    model = timm_model(task, source)
    stream = benchmark_from_datasets(
        train=[dataset(task, task.replay), dataset(task, task.train)]
    ).train_stream
    before, now = stream
    given = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM),
        "criterion": nn.CrossEntropyLoss(),
        "train_epochs": task.epochs,
        "evaluator": None,
        "device": task.device,
        "plugins": [FrozenStatistics()] if frozen else [],
    }
    if name.startswith("avalanche-replay"):
        half = max(1, task.batch // 2)
        strategy = Replay(**given, mem_size=len(task.replay), train_mb_size=half)
        plugin(strategy, ReplayPlugin).storage_policy.post_adapt(strategy, before)
    else:
        strategy = LwF(**given, alpha=1.0, temperature=2.0, train_mb_size=task.batch)
        plugin(strategy, LwFPlugin).lwf.post_adapt(strategy, before)
    strategy.train(now, num_workers=0)
    return Adapted(state=model.state_dict(), detail=f"SGD {rate:g}")


def dataset(task: Task, pictures: Pictures) -> Any:
    """Images as its own datasets, augmented; LwF asks for a task's label, the same for all."""
    view, _ = transforms(task)
    # Named as private, and yet what the library's own ready-made benchmarks call.
    return _make_taskaware_classification_dataset(Photos(pictures, view), task_labels=0)


def plugin(strategy: Any, kind: type) -> Any:
    """The strategy's own plugin, to be told what the source left."""
    return next(one for one in strategy.plugins if isinstance(one, kind))


if __name__ == "__main__":
    enter(adapted, ["avalanche-lib", "torchvision"])
