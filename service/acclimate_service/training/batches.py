"""The batches of an epoch: activations at the trunk's boundary, in the order of showing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from acclimate_service.training.dataset import PLAIN, Order, Step, Stock
from acclimate_service.training.run import Run
from acclimate_service.training.trunk import Shown, Trunk


class Batches:
    """A stock's images as the tail sees them, step by step."""

    def __init__(
        self, stock: Stock, *, order: Order, trunk: Trunk, boundary: int, run: Run
    ) -> None:
        self._stock = stock
        self._order = order
        self._trunk = trunk
        self._boundary = boundary
        self._run = run

    def epoch(self, number: int) -> Iterator[tuple[Step, Tensor, Tensor]]:
        """The steps of one epoch, counted from 0: what each shows, and its labels, int64 [N].

        The new images' activations come before the replayed ones'.

        Raises:
            Cancelled: the job was asked to stop.
        """
        steps = list(self._order.epoch(number))
        batches = self._trunk.read(self._boundary, map(self._parts, steps))
        for step, x in zip(steps, batches, strict=True):
            self._run.check()
            labels = torch.cat([part.labels() for part in self._parts(step)])
            yield step, x, labels.to(x.device)

    def fresh(self) -> Iterator[Tensor]:
        """The activations of one epoch's new images, without the replayed ones."""
        for step, x, _ in self.epoch(0):
            yield x[: len(step.train)]

    def _parts(self, step: Step) -> list[Shown]:
        parts = [Shown(source=self._stock.train, indices=step.train, views=step.views)]
        if len(step.replay) and self._stock.replay is not None:
            plain = np.full_like(step.replay, PLAIN)
            parts.append(Shown(source=self._stock.replay, indices=step.replay, views=plain))
        return parts
