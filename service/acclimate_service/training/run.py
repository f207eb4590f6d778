"""What surrounds a training step: device, seed, clock, and the two callbacks of its caller."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pydantic
import torch

from acclimate_service.domain.job import EventKind
from acclimate_service.training.compiling import Compiling

Facts = Mapping[str, pydantic.JsonValue]


class Cancelled(Exception):
    """The job was asked to stop. The step that raises this leaves nothing behind."""


def _silent(kind: EventKind, message: str, facts: Facts) -> None:
    """Tell nobody."""


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the engine on one device.

    ``clock`` counts seconds from any start; ``deadline`` is a reading of it, after
    which no further epoch begins. ``readers`` threads decode images ahead of the
    device. ``compiling`` says where torch.compile is used. Two runs with the same seed
    on the same kind of device give the same weights.
    """

    clock: Callable[[], float]
    seed: int = 0
    device: torch.device = torch.device("cpu")
    readers: int = 1
    deadline: float | None = None
    compiling: Compiling = Compiling()
    on_event: Callable[[EventKind, str, Facts], None] = _silent
    cancelled: Callable[[], bool] = _never

    def check(self) -> None:
        """Stop here if asked to.

        Raises:
            Cancelled: the caller wants no more.
        """
        if self.cancelled():
            raise Cancelled

    def tell(self, kind: EventKind, message: str, **facts: pydantic.JsonValue) -> None:
        """Report one event: a sentence, and its facts for machines."""
        self.on_event(kind, message, facts)

    def seconds_left(self) -> float:
        """Seconds until the deadline; infinite without one."""
        return float("inf") if self.deadline is None else self.deadline - self.clock()

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.type == "cuda"


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on every part, the same on every machine."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_rng(*parts: object) -> np.random.Generator:
    """A NumPy generator seeded by :func:`seed_of` its parts."""
    return np.random.Generator(np.random.Philox(seed_of(*parts)))
