"""Frozen BatchNorm within the convolution before it computes the same, in the same tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from acclimate_service.domain.model import Architecture
from acclimate_service.training.folding import fold, unfold
from acclimate_service.training.network import Network, build


@pytest.fixture(
    params=["timm/tf_efficientnet_lite0", "torchvision/resnet18", "torchvision/mobilenet_v3_small"]
)
def network(request: pytest.FixtureRequest) -> Network:
    library, _, name = request.param.partition("/")
    made = build(Architecture(library=library, name=name), labels=5, size=64)
    _randomise(made)
    return made.eval()


def _randomise(model: nn.Module) -> None:
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 1.5)


def _plain(network: Network) -> Network:
    twin = copy.deepcopy(network)
    unfold(twin)
    return twin


def _gradients(network: Network, x: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    functional.cross_entropy(network(x), torch.tensor([0, 1, 2])).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_every_norm_after_a_convolution_is_passed_through(network: Network) -> None:
    kinds = [type(m).__name__ for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert kinds
    assert all(kind.startswith("_Folded") for kind in kinds)
    library = [
        type(m) for m in _plain(network).modules() if isinstance(m, nn.BatchNorm2d | nn.Conv2d)
    ]
    assert not any(kind.__name__.startswith("_Fold") for kind in library)


def test_answers_and_gradients_are_those_of_the_library(network: Network) -> None:
    x = torch.randn(3, 3, 64, 64)
    plain = _plain(network)
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(x), rtol=1e-3, atol=1e-3)
    found, expected = _gradients(network, x), _gradients(plain, x)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        scale = float(wanted.abs().max())
        torch.testing.assert_close(found[name], wanted, rtol=1e-2, atol=1e-3 * scale + 1e-6)


def test_the_tensors_keep_their_names_and_places(network: Network) -> None:
    plain = _plain(network)
    assert list(network.state_dict()) == list(plain.state_dict())
    network.load_state_dict({name: t + 1 for name, t in plain.state_dict().items()})
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name] + 1)


def test_a_norm_in_training_follows_the_images_as_ever(network: Network) -> None:
    plain = _plain(network)
    x = torch.randn(3, 3, 64, 64)
    for one in (network, plain):
        one.freeze_below(0, batchnorm_updates=True)
        one.train()
        torch.manual_seed(1)
        one(x)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_a_copy_reads_its_own_norms(network: Network) -> None:
    twin = copy.deepcopy(network)
    x = torch.randn(1, 3, 64, 64)
    before = network(x)
    _randomise(twin)
    for norm in twin.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.constant_(norm.weight, 3.0)
    assert torch.equal(network(x), before)
    assert not torch.allclose(twin(x), before)


class _ReadTwice(nn.Module):
    """A convolution that is read past its norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        total: Tensor = self.norm(y) + y
        return total.mean(dim=(2, 3))


def test_a_convolution_that_something_else_reads_stays_as_it_is() -> None:
    model = _ReadTwice().eval()
    probe = torch.randn(1, 3, 8, 8)
    before = model(probe)
    fold(model, probe)
    assert type(model.conv) is nn.Conv2d
    assert torch.equal(model(probe), before)
