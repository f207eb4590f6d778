"""The weight gradient of depthwise convolutions, in bands of columns.

Notation used for tensor shapes: N images, C channels, H by W pixels, a kernel of J rows
and K columns.

On a CPU torch computes it by oneDNN, which has a fast way for kernels of up to three
columns over maps of no fewer rows than theirs, and is up to 20 times slower for others:
in the tail of a network with 5x5 depthwise convolutions, a third of all time. But a column
of the gradient depends on no other one, so a wide kernel is a few narrow ones side by
side, each over the padded input from where it begins:

    dW[c, j, k] = sum over n, y, x of  G[n, c, y, x]  P[n, c, y + j, x + k]

with P the padded input and G the gradient of the output. It is the same sum, in another
order. Strided ones, of which a network has few, would gain nothing.
``benchmarks/depthwise.py`` times it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from acclimate_service.training import roles

BAND = 3  # columns

Pair = tuple[int, int]  # of rows, then of columns


class _Banded(torch.autograd.Function):
    """A depthwise convolution of stride 1 whose weight gradient is computed band by band."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.biased = padding, bias is not None
        return functional.conv2d(x, weight, bias, padding=padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x, _, _ = _backward(grad, x, weight, ctx.padding, wanted=(True, False, False))
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(grad, x, weight, ctx.padding)
        if ctx.biased and ctx.needs_input_grad[2]:
            of_bias = grad.sum(dim=(0, 2, 3))
        return of_x, of_weight, of_bias, None


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, padding: Pair) -> Tensor:
    """The gradient [C, 1, J, K] of a depthwise weight, from that of the output [N, C, H', W']."""
    rows, columns = weight.shape[2:]
    if columns <= BAND and grad.shape[2] >= rows:
        return _backward(grad, x, weight, padding, wanted=(False, True, False))[1]
    above, beside = padding
    bands = []
    for first in range(0, columns, BAND):
        narrow = weight[..., first : first + BAND]
        after = columns - first - narrow.shape[3]
        under = _placed(x, beside - first, beside - after, above)
        bands.append(_backward(grad, under, narrow, (0, 0), wanted=(False, True, False))[1])
    return torch.cat(bands, dim=3)


def _placed(x: Tensor, left: int, right: int, above: int) -> Tensor:
    """The input with so many columns of zeros on each side, or less columns where negative."""
    x = functional.pad(x, (max(0, left), max(0, right), above, above))
    return x[..., max(0, -left) : x.shape[3] - max(0, -right)]


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding: Pair, *, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the input, the weight and the bias, of those that are *wanted*."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, (1, 1), padding, (1, 1), False, (0, 0), len(weight), wanted
    )
    return found


class _InBands(nn.Conv2d):
    """Mixed into a depthwise convolution's own class."""

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.weight.requires_grad and x.device.type == "cpu"):
            return super().forward(x)
        convolved: Tensor = _Banded.apply(x, self.weight, self.bias, self.padding)
        return convolved


def band(model: nn.Module) -> None:
    """Let depthwise convolutions of *model* compute their weights' gradients in bands."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _is_plain(module):
            roles.take(module, _InBands)


def _is_plain(conv: nn.Conv2d) -> bool:
    return (
        type(conv) is nn.Conv2d  # another class may make something of its weight
        and conv.groups == conv.in_channels == conv.out_channels > 1
        and max(conv.kernel_size) > 1
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )
