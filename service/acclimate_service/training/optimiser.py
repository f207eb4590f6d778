"""AdamW with a rate for each depth, a pull to the starting point, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from acclimate_service.training.network import Network
from acclimate_service.training.strategies import Strategy

State = dict[str, Tensor]  # under the library's names, float tensors on the CPU


def snapshot(network: Network, stages: Iterable[int]) -> State:
    """Copies of the tensors of these stages and of the head, on the CPU."""
    depths = network.depths()
    wanted = {*stages, len(network.stages)}
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
        if depths[name] in wanted
    }


def restore(network: Network, state: State) -> None:
    """Copy tensors into the network; those that *state* does not name stay."""
    own = network.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def rate_factor(progress: float, strategy: Strategy) -> float:
    """The share of the full rate at *progress* in [0, 1]: linear warm-up, then a cosine."""
    if progress < strategy.warmup:
        return (progress + 1e-3) / (strategy.warmup + 1e-3)
    if not strategy.cosine:
        return 1.0
    rest = (progress - strategy.warmup) / max(1e-9, 1 - strategy.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))


class Optimiser:
    """Moves the trained stages and the head of one network."""

    def __init__(self, network: Network, strategy: Strategy, *, damping: float = 1.0) -> None:
        self.strategy = strategy
        self.damping = damping
        head = len(network.stages)
        trained = strategy.trained(network)
        groups = []
        for depth in (*trained, head):
            below = head - 1 - depth
            rate = strategy.head_rate
            if depth < head:
                rate = strategy.tail_rate * strategy.layer_decay**below
            for decayed in (True, False):
                # Norms and biases are not decayed: it only shrinks the features' scale.
                parameters = [p for p in network.stage_parameters(depth) if (p.ndim > 1) is decayed]
                decay = strategy.weight_decay if decayed else 0.0
                if parameters:
                    groups.append(
                        {"params": parameters, "full": rate, "lr": rate, "weight_decay": decay}
                    )
        self.parameters: list[Tensor] = [p for g in groups for p in g["params"]]  # type: ignore[attr-defined]
        self._adam = torch.optim.AdamW(groups, fused=True)
        self._anchors = [p.detach().clone() for p in self.parameters] if strategy.l2sp else []
        self._average = [p.detach().clone() for p in self.parameters] if strategy.ema else []
        self._kept: list[Tensor] = []
        self._steps = 0

    def gradient_norm(self) -> Tensor:
        """The norm of all gradients, after which they are clipped to the strategy's largest."""
        return nn.utils.clip_grad_norm_(self.parameters, self.strategy.clip)

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Move the weights by one step, at the rate for *progress* in [0, 1]."""
        factor = rate_factor(progress, self.strategy) * self.damping
        for group in self._adam.param_groups:
            group["lr"] = group["full"] * factor
        self._adam.step()
        self._steps += 1
        if self._anchors:
            # L2-SP, decoupled as AdamW's decay is: theta += l2sp * factor * (theta_0 - theta)
            pull = min(1.0, self.strategy.l2sp * factor)
            torch._foreach_lerp_(self.parameters, self._anchors, pull)
        if self._average:
            # Short at first, so that the start is not remembered for long.
            decay = min(self.strategy.ema, (1 + self._steps) / (10 + self._steps))
            torch._foreach_lerp_(self._average, self.parameters, 1 - decay)

    @torch.no_grad()
    def average_in(self) -> None:
        """Put the averaged weights into the network, to be measured or kept."""
        if self._average:
            self._kept = [p.detach().clone() for p in self.parameters]
            torch._foreach_copy_(self.parameters, self._average)

    @torch.no_grad()
    def average_out(self) -> None:
        """Take the averaged weights out again, to train on."""
        if self._kept:
            torch._foreach_copy_(self.parameters, self._kept)
            self._kept = []
