"""Whether the training passes of a network are compiled: where that pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A step of EfficientNet-Lite0's tail, batches of 64 at 224 pixels, on one H200
# (benchmarks/results/2026-11-26-gpu.md; `./run bench gpu_training` measures it again).
SECONDS = 15.8  # until the first compiled step is done
EAGER, COMPILED = 4328, 5990  # images a second

# Images from which what is saved on each has paid for that: about 250,000.
PAYS_FROM = 10_000 * round(SECONDS / (1 / EAGER - 1 / COMPILED) / 10_000)

Backend = str | Callable[..., Any]  # as torch.compile takes it


@dataclass(frozen=True, kw_only=True)
class Compiling:
    """What torch.compile is given, on which kind of device, and from how many images on.

    On a CPU it saves nothing that has been measured.
    """

    backend: Backend = "inductor"
    device: str = "cuda"
    pays_from: int = PAYS_FROM

    def decide(
        self, *, device: str, images: int, stages: int, gradual: bool
    ) -> tuple[bool, str] | None:
        """Whether to compile, and why; None: there is nothing to decide. Pure.

        What is known before the first step decides, so that an attempt that is resumed
        decides alike.

        Args:
            device: the kind that trains, such as ``cuda``.
            images: that all epochs will show, replayed ones included.
            stages: that move. The head alone is one multiplication.
            gradual: they begin to move one after the other.
        """
        if device != self.device or not stages:
            return None
        if gradual:
            return False, "each stage that begins to move would be compiled for anew"
        shown = f"{images:,} images are to be shown, and compiling pays from {self.pays_from:,} on"
        return images >= self.pays_from, shown
