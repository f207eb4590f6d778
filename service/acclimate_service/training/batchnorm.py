"""BatchNorm's statistics where they follow other images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.training.dataset import Order
from acclimate_service.training.network import Network
from acclimate_service.training.strategies import BatchNorm, Strategy


def check_steps(strategy: Strategy, order: Order) -> None:
    """See that BatchNorm finds a variance in the steps that it is to follow.

    Raises:
        InvalidSpec: each is of one image.
    """
    seen = {
        BatchNorm.FROZEN: math.inf,
        BatchNorm.RECALIBRATED: order.fresh,
        BatchNorm.UPDATED: order.fresh + order.replayed,
    }[strategy.batch_norm]
    if seen < 2:
        raise InvalidSpec(
            f"{strategy.name} lets BatchNorm follow the new images, of which a step shows one at a "
            "time: ask for a larger batch_size, give more images, or leave BatchNorm as it is",
            strategy=strategy.name,
        )


@torch.no_grad()
def recalibrate(network: Network, stages: Sequence[int], activations: Iterable[Tensor]) -> None:
    """Estimate the statistics of these stages on batches of activations at the first of them.

    AdaBN (Li et al., arXiv:1603.04779): a running average over the batches, from none.
    One of a single image, of which there may be no variance, is passed over.
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
        if len(x) > 1:
            network.forward_from(stages[0], x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
