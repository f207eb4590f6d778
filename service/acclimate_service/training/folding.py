"""Frozen BatchNorm computed within the convolution before it.

A BatchNorm whose statistics stand still is a scale and a shift of each channel, and so
is a convolution's weight:

    BN(w * x) = (s w) * x + (beta - mean s),   s = gamma / sqrt(var + eps)

Folded so, its passes over the activations, forwards and backwards, are saved: a fifth of
the time on a CPU (benchmarks/layout.py). The tensors stay the library's own, with their
names; the gradients are those of the same function.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import structlog
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from acclimate_service.training import roles

log = structlog.get_logger(__name__)

_AGREEMENT = 1e-4  # of the largest output


class _Folding(nn.Conv2d):
    """Mixed into a convolution's own class: computes the frozen norm after it, too."""

    norm_after: tuple[nn.BatchNorm2d]  # in a tuple, or it would be registered a second time

    def forward(self, x: Tensor) -> Tensor:
        (norm,) = self.norm_after
        if norm.training:
            return super().forward(x)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * scale
        own: Mapping[str, Any] = self._parameters
        if own["bias"] is not None:
            bias = bias + own["bias"] * scale
        # As torch.func.functional_call does it: whatever the class makes of its weight.
        folded = {**own, "weight": own["weight"] * scale.view(-1, 1, 1, 1), "bias": bias}
        self.__dict__["_parameters"] = folded
        try:
            return super().forward(x)
        finally:
            self.__dict__["_parameters"] = own


class _Folded(nn.BatchNorm2d):
    """Mixed into a norm's own class: computed already, unless it is in training."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        return self.act(self.drop(x)) if isinstance(self, BatchNormAct2d) else x


def fold(model: nn.Module, probe: Tensor) -> None:
    """Let every convolution of *model* compute the frozen BatchNorm that follows it.

    What follows what is seen as the *probe* [N, 3, S, S] passes. A model of which this
    would not be true, since something else reads a convolution too, stays as it is.
    """
    pairs = _pairs(model, probe)
    if not pairs:
        return
    if _agree(model, pairs, probe):
        _join(model, pairs)
    else:
        log.warning("BatchNorm not folded", why="the model would compute something else")


def unfold(model: nn.Module) -> None:
    """Undo :func:`fold`, as an exporter needs it."""
    for module in model.modules():
        roles.leave(module)
        module.__dict__.pop("norm_after", None)


def _pairs(model: nn.Module, probe: Tensor) -> dict[str, str]:
    """The norm that reads each convolution's output, both by name."""
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # holds the outputs, so that ids are theirs
    calls: Counter[nn.Module] = Counter()
    found: dict[nn.Module, nn.Module] = {}

    def convolved(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] += 1
        made[id(output)] = module, output

    def normed(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        if id(inputs[0]) in made:
            found[made[id(inputs[0])][0]] = module

    handles = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(convolved))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.affine:
            handles.append(module.register_forward_pre_hook(normed))
    try:
        with torch.no_grad():
            model(probe)
    finally:
        for handle in handles:
            handle.remove()
    return {
        names[conv]: names[norm] for conv, norm in found.items() if calls[conv] == calls[norm] == 1
    }


def _agree(model: nn.Module, pairs: Mapping[str, str], probe: Tensor) -> bool:
    """Whether a copy computes the same folded, whatever its norms hold."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in pairs.values():
            norm = twin.get_submodule(name)
            for tensor in (norm.weight, norm.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)  # type: ignore[operator]
            for tensor in (norm.bias, norm.running_mean):
                tensor.uniform_(-0.1, 0.1, generator=generator)  # type: ignore[operator]
        expected = twin(probe)
        _join(twin, pairs)
        found = twin(probe)
    return bool((expected - found).abs().max() <= _AGREEMENT * expected.abs().max())


def _join(model: nn.Module, pairs: Mapping[str, str]) -> None:
    for conv_name, norm_name in pairs.items():
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        conv.__dict__["norm_after"] = (norm,)
        roles.take(conv, _Folding)
        roles.take(norm, _Folded)
