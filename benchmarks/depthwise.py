"""Milliseconds of a depthwise convolution and its gradients: the library's, and in bands.

    ./run bench depthwise

Batches of 32 in channels last, on one thread; the two ways take turns, and what counts is
the median of nine. See ``training/depthwise.py``.
"""

from __future__ import annotations

import copy
import time

import torch
from torch import nn

from acclimate_service.training import depthwise

BATCH = 32
ROUNDS = 9
# Channels, pixels a side, kernel: of EfficientNet-Lite0 at 160 pixels and at 64, of ConvNeXt
# at 160.
SHAPES = (
    (480, 10, 5),
    (672, 10, 5),
    (1152, 5, 5),
    (672, 4, 5),
    (1152, 2, 5),
    (384, 10, 7),
    (480, 10, 3),
    (1152, 2, 3),
)


def milliseconds(conv: nn.Conv2d, x: torch.Tensor) -> float:
    """CPU time of one pass and its gradients, those of the input included."""
    conv.zero_grad()
    began = time.process_time()
    y = conv(x)
    y.backward(y.detach())  # any gradient that is laid out as it would be
    return (time.process_time() - began) * 1000


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| channels | pixels | kernel | library ms | in bands ms | times |")
    print("|---|---|---|---|---|---|")
    for channels, side, kernel in SHAPES:
        library = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        library.to(memory_format=torch.channels_last)
        banded = copy.deepcopy(library)
        depthwise.band(banded)
        x = torch.randn(BATCH, channels, side, side)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        rounds = [(milliseconds(library, x), milliseconds(banded, x)) for _ in range(ROUNDS)]
        slow, fast = (sorted(times)[ROUNDS // 2] for times in zip(*rounds, strict=True))
        print(
            f"| {channels} | {side} | {kernel} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
