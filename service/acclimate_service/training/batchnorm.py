"""BatchNorm's statistics, estimated again on other images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from acclimate_service.training.network import Network


@torch.no_grad()
def recalibrate(network: Network, stages: Sequence[int], activations: Iterable[Tensor]) -> None:
    """Estimate the statistics of these stages on batches of activations at the first of them.

    AdaBN (Li et al., arXiv:1603.04779): a running average over the batches, from none.
    """
    norms = [
        module
        for index in stages
        for module in network.stages[index].modules()
        if isinstance(module, _BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    for x in activations:
        network.forward_from(stages[0], x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
