"""Milliseconds an image, forward and with gradients, by memory layout and image size.

    ./run bench layout

Two threads that wait passively, as the trainer's do; the best of four batches of 32.
"""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read once, when torch is imported

import time

import torch

from acclimate_service.domain.model import Architecture
from acclimate_service.training.network import Network, build

BATCH = 32
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def milliseconds(network: Network, x: torch.Tensor, *, gradients: bool) -> float:
    """The best time of one image."""
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        with torch.set_grad_enabled(gradients):
            logits = network(x)
            if gradients:
                logits.sum().backward()
        best = min(best, time.perf_counter() - began)
    return best / BATCH * 1000


def main() -> None:
    """Print the table."""
    torch.set_num_threads(2)
    print(f"{'pixels':>8}  {'layout':14}{'forward':>9}{'gradients':>11}")
    for size in (64, 96, 128, 160):
        architecture = Architecture(library="timm", name="tf_efficientnet_lite0")
        network = build(architecture, labels=10, size=size)
        network.freeze_below(0)
        for name, layout in LAYOUTS.items():
            network.to(memory_format=layout)
            x = torch.randn(BATCH, 3, size, size).contiguous(memory_format=layout)
            plain, full = (milliseconds(network, x, gradients=g) for g in (False, True))
            print(f"{size:8}  {name:14}{plain:9.2f}{full:11.2f}")


if __name__ == "__main__":
    main()
