"""Scoring, the same for every entrant: its weights, our preprocessing, images it never saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from benchmarks.contest.entry import timm_model
from benchmarks.contest.record import SHORT, Answers
from benchmarks.contest.task import Pictures, Task

from acclimate_service import imaging
from acclimate_service.domain.model import Preprocessing
from acclimate_service.training.network import normalise

BATCH = 64


class Scorer:
    """Answers of a task's network on verify images, which stay prepared between calls."""

    def __init__(self, task: Task) -> None:
        self._task = replace(task, device="cpu")  # where all methods are scored
        self._preprocessing = Preprocessing(
            size=task.size, crop=task.crop, mean=task.mean, std=task.std
        )
        self._prepared: dict[str, torch.Tensor] = {}

    def answers(self, weights: Path, *sets: Pictures) -> list[Answers]:
        """Which images of each set the network of these weights answers right.

        Raises:
            RuntimeError: the weights are not of this network.
        """
        model = timm_model(self._task, safetensors.torch.load_file(weights)).eval()
        return [self._of(model, pictures) for pictures in sets]

    @torch.no_grad()
    def _of(self, model: torch.nn.Module, pictures: Pictures) -> Answers:
        right: list[bool] = []
        for start in range(0, len(pictures), BATCH):
            some = pictures[start : start + BATCH]
            x = normalise(torch.stack([self._image(p.path) for p in some]), self._preprocessing)
            found = model(x.contiguous(memory_format=torch.channels_last)).argmax(dim=1).tolist()
            right += [answer == p.label for answer, p in zip(found, some, strict=True)]
        return Answers(images=tuple(p.content[:SHORT] for p in pictures), right=tuple(right))

    def _image(self, path: str) -> torch.Tensor:
        if path not in self._prepared:
            pixels = imaging.decode_prepared(Path(path).read_bytes(), self._preprocessing)
            self._prepared[path] = torch.from_numpy(pixels)
        return self._prepared[path]
