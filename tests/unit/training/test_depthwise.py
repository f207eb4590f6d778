"""A depthwise convolution computes the library's function and its gradients, in bands."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from acclimate_service.domain.model import Architecture
from acclimate_service.training import depthwise, roles
from acclimate_service.training.network import build

CHANNELS = 6


def _convolution(kernel: int | tuple[int, int], **more: object) -> nn.Conv2d:
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, CHANNELS, kernel, groups=CHANNELS, **more)  # type: ignore[arg-type]
    return conv.double()


def _answers_and_gradients(conv: nn.Conv2d, x: Tensor) -> dict[str, Tensor]:
    conv.zero_grad()
    x = x.clone().requires_grad_()
    y = conv(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    (y * weights).sum().backward()
    found = {"y": y.detach(), "x": x.grad, **{n: p.grad for n, p in conv.named_parameters()}}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (_convolution(5, padding=2), 10),
        (_convolution(5, padding=0, bias=False), 9),
        (_convolution(7, padding=3), 7),
        (_convolution(3, padding=1), 8),
        (_convolution(3, padding=1), 2),
        (_convolution(5, padding=2), 3),
        (_convolution(5, padding=2), 1),
        (_convolution(7, padding=3), 1),
        (_convolution(7, padding=3), 2),
        (_convolution((3, 5), padding=(1, 0)), 12),
        (_convolution((1, 9), padding=(0, 4)), 10),
    ],
    ids=str,
)
def test_answers_and_gradients_are_those_of_the_library(
    conv: nn.Conv2d, size: int, layout: torch.memory_format
) -> None:
    x = torch.randn(3, CHANNELS, size, size, dtype=torch.double).contiguous(memory_format=layout)
    banded = copy.deepcopy(conv)
    depthwise.band(banded)
    assert type(banded) is not type(conv)
    expected, found = _answers_and_gradients(conv, x), _answers_and_gradients(banded, x)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=name)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 6, 1, groups=6),
        nn.Conv2d(6, 6, 5),
        nn.Conv2d(6, 12, 5, groups=6),
        nn.Conv2d(6, 6, 5, groups=6, dilation=2),
        nn.Conv2d(6, 6, 5, groups=6, stride=2),
        nn.Conv2d(6, 6, 5, groups=6, padding="same"),
        nn.Conv2d(6, 6, 5, groups=6, padding=2, padding_mode="reflect"),
    ],
    ids=str,
)
def test_what_is_not_plainly_depthwise_stays_as_it_is(conv: nn.Conv2d) -> None:
    depthwise.band(conv)
    assert type(conv) is nn.Conv2d


def test_a_frozen_weight_has_no_gradient_and_the_input_has_it() -> None:
    conv = _convolution(5, padding=2)
    conv.requires_grad_(False)
    depthwise.band(conv)
    x = torch.randn(2, CHANNELS, 6, 6, dtype=torch.double, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is None


def test_a_networks_depthwise_convolutions_are_banded_and_given_back() -> None:
    network = build(Architecture(library="timm", name="tf_efficientnet_lite0"), labels=3, size=64)
    depth = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    plain = [m for m in depth if m.stride == (1, 1)]
    assert (len(depth), len(plain)) == (16, 12)
    assert {type(m).__name__ for m in plain} == {"_Folding_InBandsConv2d"}
    for module in plain:
        roles.leave(module)
    assert {type(m) for m in plain} == {nn.Conv2d}
