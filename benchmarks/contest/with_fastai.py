"""fastai's ``fine_tune`` with its defaults, as its documentation shows it.

``freeze`` for one epoch, then ``unfreeze`` for the others, one-cycle, base rate 2e-3,
discriminative rates by 100, fastai's own augmentation, BatchNorm training throughout.
"""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.contest.entry import Adapted, State, enter, seed_everything, timm_model
from benchmarks.contest.task import Task
from fastai.vision.all import (
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    ImageBlock,
    IndexSplitter,
    L,
    Learner,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    params,
)


def adapted(task: Task, method: str, source: State) -> Adapted:
    """Call ``fine_tune`` for the task's epochs."""
    learner = Learner(
        loaders(task),
        timm_model(task, source),
        loss_func=CrossEntropyLossFlat(),
        splitter=body_and_head,
        metrics=accuracy,
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(task.epochs)
    return Adapted(state=learner.model.state_dict(), detail=f"{method}({task.epochs})")


def loaders(task: Task) -> Any:
    """Its ``DataLoaders``, read from the files as its users' are, presized."""
    pictures = [*task.train, *(task.select or task.train)]  # it must have some to validate on
    labels = [task.labels[picture.label] for picture in pictures]
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=list(task.labels))),
        get_x=lambda index: pictures[index].path,
        get_y=lambda index: labels[index],
        splitter=IndexSplitter(list(range(len(task.train), len(pictures)))),
        item_tfms=Resize(task.shorter_side),
        batch_tfms=[
            *aug_transforms(size=task.size, min_scale=0.75, do_flip=task.flip),
            Normalize.from_stats(task.mean, task.std),
        ],
    )
    seed_everything(task.seed)
    # Training drops what is left of the last batch: a batch must not be all there is.
    batch = min(task.batch, len(task.train))
    return block.dataloaders(
        range(len(pictures)), bs=batch, num_workers=0, device=torch.device(task.device)
    )


def body_and_head(model: Any) -> Any:
    """Its two groups of parameters: what ``freeze`` freezes, and the head."""
    head = params(model.get_classifier())
    known = {id(parameter) for parameter in head}
    return L([p for p in model.parameters() if id(p) not in known], head)


if __name__ == "__main__":
    enter(adapted, ["fastai", "torchvision"])
