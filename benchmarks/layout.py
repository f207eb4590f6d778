"""Milliseconds an image, forward and with gradients, by image size and way of computing.

    ./run bench layout

By memory layout, and as the library computes or as the engine does: each frozen BatchNorm
within the convolution before it (``training/folding.py``), depthwise gradients in bands
(``training/depthwise.py``). Two threads that wait passively, as the trainer's do;
the ways take turns, and what counts is the best of six batches of 32.
"""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read once, when torch is imported

import copy
import itertools
import time

import torch

from acclimate_service.domain.model import Architecture
from acclimate_service.training.folding import unfold
from acclimate_service.training.network import Network, build

BATCH = 32
ROUNDS = 6
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
COMPUTED_BY = ("library", "engine")


def milliseconds(network: Network, x: torch.Tensor, *, gradients: bool) -> float:
    """The time of one image."""
    began = time.perf_counter()
    with torch.set_grad_enabled(gradients):
        logits = network(x)
        if gradients:
            logits.sum().backward()
    return (time.perf_counter() - began) / BATCH * 1000


def main() -> None:
    """Print the table."""
    torch.set_num_threads(2)
    print(f"{'pixels':>8}  {'layout':14}{'computed by':12}{'forward':>9}{'gradients':>11}")
    for size in (64, 96, 128, 160):
        architecture = Architecture(library="timm", name="tf_efficientnet_lite0")
        engine = build(architecture, labels=10, size=size)
        engine.freeze_below(0)
        library = copy.deepcopy(engine)
        unfold(library)
        x = torch.randn(BATCH, 3, size, size)
        ways = {
            (layout, who): (
                copy.deepcopy(network).to(memory_format=LAYOUTS[layout]),
                x.contiguous(memory_format=LAYOUTS[layout]),
            )
            for layout, (who, network) in itertools.product(
                LAYOUTS, zip(COMPUTED_BY, (library, engine), strict=True)
            )
        }
        best = dict.fromkeys(itertools.product(ways, (False, True)), float("inf"))
        for _ in range(ROUNDS):
            for way, gradients in best:
                took = milliseconds(*ways[way], gradients=gradients)
                best[way, gradients] = min(best[way, gradients], took)
        for way in ways:
            layout, who = way
            print(f"{size:8}  {layout:14}{who:12}{best[way, False]:9.2f}{best[way, True]:11.2f}")


if __name__ == "__main__":
    main()
