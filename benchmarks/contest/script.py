"""What people write themselves, in plain PyTorch: the naive script, and LP-FT with its care.

*naive*: everything moves, Adam at 1e-3, BatchNorm follows, only the new images, the last
epoch is taken.

*lpft*: linear probe, then everything at a low rate (Kumar et al., ICLR 2022,
arXiv:2202.10054), with all that its careful user adds: source images in every batch,
BatchNorm frozen, AdamW with warm-up and cosine, the best epoch by select images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from benchmarks.contest.entry import Adapted, State, enter, rate_of, timm_model
from benchmarks.contest.task import Pictures, Task
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

NAIVE_RATE = 1e-3
PROBE_RATE = 2e-3
PROBE_EPOCHS = 4  # for each epoch of the task's: a probe on kept features costs nothing
LPFT_RATE = 1e-4


class Photos(Dataset[tuple[Tensor, int]]):
    """Image files, decoded once and kept; ``targets`` as torchvision's datasets have them."""

    def __init__(self, pictures: Pictures, transform: Any) -> None:
        opened = (Image.open(picture.path) for picture in pictures)
        self.images = [ImageOps.exif_transpose(image).convert("RGB") for image in opened]
        self.targets = [picture.label for picture in pictures]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.targets[index]


def transforms(task: Task) -> tuple[Any, Any]:
    """Training's views, as varied as Acclimate's own, and the centre crop."""
    last = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(task.mean), list(task.std)),
    ]
    flip = [v2.RandomHorizontalFlip()] if task.flip else []
    view = [
        v2.RandomResizedCrop(task.size, scale=(0.5, 1.0), ratio=(5 / 6, 6 / 5)),
        *flip,
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ]
    centre = [v2.Resize(task.shorter_side), v2.CenterCrop(task.size)]
    return v2.Compose([*view, *last]), v2.Compose([*centre, *last])


def adapted(task: Task, method: str, source: State) -> Adapted:
    """Fine-tune by one of the two."""
    model = timm_model(task, source)
    if method.startswith("naive"):
        detail = naive(task, model, rate_of(method, NAIVE_RATE))
    else:
        detail = lpft(task, model, rate_of(method, LPFT_RATE))
    return Adapted(state=model.state_dict(), detail=detail)


def naive(task: Task, model: nn.Module, rate: float) -> str:
    """The usual script."""
    view, _ = transforms(task)
    loader = DataLoader(Photos(task.train, view), batch_size=task.batch, shuffle=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for _ in range(task.epochs):
        for images, labels in moved(loader, task.device):
            descend(optimiser, nn.functional.cross_entropy(model(images), labels))
    return f"epoch {task.epochs}"


def lpft(task: Task, model: Any, rate: float) -> str:
    """Probe, then fine-tune, half of every batch being source images."""
    view, centre = transforms(task)
    half = max(1, task.batch // 2)
    new, old = Photos(task.train, view), Photos(task.replay, view)
    select = Photos(task.select, centre)
    probe(task, model, [Photos(task.train, centre), Photos(task.replay, centre)])
    fresh = DataLoader(new, batch_size=half, shuffle=True)
    steps = task.epochs * len(fresh)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: warm_cosine(step / steps, warmup=0.1)
    )
    best, best_epoch, best_state = right(model, select), 0, copy.deepcopy(model.state_dict())
    for epoch in range(1, task.epochs + 1):
        keep_statistics(model)
        pairs = zip(moved(fresh, task.device), endless(old, half, task.device), strict=False)
        for (images, labels), (shown, known) in pairs:
            logits = model(torch.cat([images, shown]))
            descend(optimiser, nn.functional.cross_entropy(logits, torch.cat([labels, known])))
            schedule.step()
        if (reached := right(model, select)) >= best:
            best, best_epoch, best_state = reached, epoch, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    return f"epoch {best_epoch}"


def probe(task: Task, model: Any, sets: list[Photos]) -> None:
    """Train the head alone on features computed once, both domains weighing the same."""
    model.eval()
    features, labels = [], []
    with torch.no_grad():
        loaders = [moved(DataLoader(one, batch_size=64), task.device) for one in sets]
        for images, targets in (batch for loader in loaders for batch in loader):
            features.append(model.forward_head(model.forward_features(images), pre_logits=True))
            labels.append(targets)
    x, y = torch.cat(features), torch.cat(labels)
    weight = torch.cat([torch.full((len(one),), 1 / max(1, len(one))) for one in sets])
    head = model.get_classifier()
    optimiser = torch.optim.AdamW(head.parameters(), lr=PROBE_RATE, weight_decay=0.01)
    steps = PROBE_EPOCHS * task.epochs * max(1, len(sets[0]) // (task.batch // 2))
    for _ in range(steps):
        drawn = torch.multinomial(weight, task.batch, replacement=True).to(x.device)
        descend(optimiser, nn.functional.cross_entropy(head(x[drawn]), y[drawn]))


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of a loss."""
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def endless(photos: Photos, batch: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches for ever, shuffled anew each time round; none of no images."""
    loader = DataLoader(photos, batch_size=batch, shuffle=True)
    while True:
        yield from moved(loader, device)


def moved(loader: Any, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """A loader's batches of images and labels, on the device."""
    for images, labels in loader:
        yield images.to(device), labels.to(device)


def keep_statistics(model: nn.Module) -> None:
    """Training mode for all but BatchNorm."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@torch.no_grad()
def right(model: nn.Module, photos: Photos) -> float:
    """The share of right answers; 0 of no images."""
    model.eval()
    device = str(next(model.parameters()).device)
    hits = sum(
        int((model(images).argmax(dim=1) == labels).sum())
        for images, labels in moved(DataLoader(photos, batch_size=64), device)
    )
    return hits / max(1, len(photos))


def warm_cosine(progress: float, *, warmup: float) -> float:
    """The rate's factor at a share of the steps: up in a line, down in half a cosine."""
    if progress < warmup:
        return (progress + 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


if __name__ == "__main__":
    enter(adapted, ["torchvision"])
