"""One small member of each family is cut, and the cut is checked against the library's model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import convnext, swin_transformer, vision_transformer

from acclimate_service.domain.errors import InvalidSpec, UnsupportedArchitecture
from acclimate_service.domain.model import Architecture
from acclimate_service.training import network as network_module
from acclimate_service.training.cuts import MAX_DEPTH
from acclimate_service.training.network import Network, Stage, build

FAMILIES = {  # a member of each family, and an image size that keeps it quick
    "torchvision/resnet18": 64,
    "torchvision/mobilenet_v3_small": 64,
    "torchvision/efficientnet_b0": 64,
    "torchvision/convnext_tiny": 32,
    "torchvision/regnet_y_400mf": 64,
    "torchvision/vit_b_16": 32,
    "torchvision/swin_t": 64,
    "timm/tf_efficientnet_lite0": 64,
    "timm/mobilenetv4_conv_small": 64,
    "timm/convnext_atto": 32,
    "timm/vit_tiny_patch16_224": 32,
    "timm/resnet18": 64,
    "timm/swin_tiny_patch4_window7_224": 56,
    "timm/regnety_002": 64,
}


def architecture(text: str) -> Architecture:
    library, _, name = text.partition("/")
    return Architecture.model_validate({"library": library, "name": name})


def small(text: str = "torchvision/resnet18") -> Network:
    return copy.deepcopy(_drawn(text))


@functools.cache
def _drawn(text: str) -> Network:
    # To draw and to check the weights takes ten times as long as to copy them.
    torch.manual_seed(0)
    return build(architecture(text), labels=5, size=FAMILIES[text])


def images_for(network: Network, count: int = 2) -> Tensor:
    size = network.preprocessing.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """torchvision's largest families with a hundredth of the weights: a cut asks for no width."""
    vit, swin = vision_transformer._vision_transformer, swin_transformer._swin_transformer
    conv, Block = convnext._convnext, convnext.CNBlockConfig  # noqa: N806  a class

    def narrow_vit(**given: Any) -> Any:
        return vit(**given | {"num_heads": 3, "hidden_dim": 48, "mlp_dim": 96})

    def narrow_swin(**given: Any) -> Any:
        return swin(**given | {"embed_dim": 24, "num_heads": [1, 2, 4, 8]})

    def narrow_conv(blocks: list[Any], *rest: Any, **given: Any) -> Any:
        quarters = [
            Block(b.input_channels // 4, b.out_channels and b.out_channels // 4, b.num_layers)
            for b in blocks
        ]
        return conv(quarters, *rest, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision_transformer, "_vision_transformer", narrow_vit)
        patch.setattr(swin_transformer, "_swin_transformer", narrow_swin)
        patch.setattr(convnext, "_convnext", narrow_conv)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest, narrow: None) -> Network:  # noqa: ARG001  patches
    network = small(request.param)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("gamma", "layer_scale")):
                parameter.fill_(0.5)  # begins at 1e-6, where a block hardly does anything
    return network.eval()


# ── every family ─────────────────────────────────────────────────────────────


def test_stages_and_head_hold_every_parameter_and_buffer_exactly_once(network: Network) -> None:
    parts = [*network.stages, network.head]
    held = [id(t) for part in parts for t in (*part.parameters(), *part.buffers())]
    whole = [id(t) for t in (*network.model.parameters(), *network.model.buffers())]
    assert len(held) == len(set(held))
    assert set(held) == set(whole)


def test_the_library_model_runs_its_modules_in_the_order_of_the_stages(network: Network) -> None:
    places = {
        id(module): index
        for index, part in enumerate((*network.stages, network.head))
        for module in part.modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    order: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: order.append(places[id(module)]))
        for module in network.model.modules()
        if id(module) in places
    ]
    with torch.no_grad():
        network.model(images_for(network))
    for hook in hooks:
        hook.remove()
    assert order == sorted(order)
    assert set(order) >= set(places.values()) - {0}


def test_running_the_stages_one_after_another_equals_the_model(network: Network) -> None:
    x = images_for(network)
    with torch.no_grad():
        expected = network.model(x)
        for stage in network.stages:
            x = stage(x)
        assert x.shape == (2, network.features)
        torch.testing.assert_close(network.head(x), expected, atol=1e-5, rtol=1e-4)


def test_stages_read_each_parameter_from_the_model_and_nowhere_else(network: Network) -> None:
    # Tracing swaps the model's parameters for stand-ins: a stage that kept its own
    # reference would export the old value as a nameless constant.
    others = {name: 1.5 * tensor + 0.01 for name, tensor in network.model.named_parameters()}
    x = images_for(network)
    with torch.no_grad():
        expected = functional_call(network.model, others, (x,))
        found = functional_call(network, {f"model.{n}": t for n, t in others.items()}, (x,))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_trunk_and_tail_meet_at_every_boundary(network: Network) -> None:
    x = images_for(network)
    with torch.no_grad():
        whole = network(x)
        for boundary in range(len(network.stages) + 1):
            trunk = network.forward_until(boundary, x)
            assert len(trunk) == len(x)
            torch.testing.assert_close(network.forward_from(boundary, trunk), whole)


def test_no_stage_is_deeper_than_allowed_nor_empty(network: Network) -> None:
    for stage in network.stages[1:-1]:
        assert 1 <= len(stage.steps) <= MAX_DEPTH
    assert network.stage_names[0] == "stem"
    assert network.stage_names[1] == "block0"
    assert network.stage_names[-1] == "neck"


def test_frozen_stages_keep_their_batchnorm_statistics_and_weights(network: Network) -> None:
    moving = copy.deepcopy(network)
    boundary = len(moving.stages) - 2
    moving.freeze_below(boundary, batchnorm_updates=True)
    moving.train()
    before = {name: t.clone() for name, t in moving.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in moving.parameters() if p.requires_grad], lr=0.1)
    moving(images_for(moving, 4) + 1).square().mean().backward()
    optimizer.step()

    depths = moving.depths()
    moved = {name for name, t in moving.state_dict().items() if not torch.equal(t, before[name])}
    assert moved
    assert all(depths[name] >= boundary for name in moved)
    assert not any(module.training for s in moving.stages[:boundary] for module in s.modules())


def test_a_copy_is_a_network_of_its_own(network: Network) -> None:
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    x = images_for(network)
    with torch.no_grad():
        assert not twin(x).any()
        assert network(x).any()
        torch.testing.assert_close(network(x), network.model(x), atol=1e-5, rtol=1e-4)


# ── training and heads ───────────────────────────────────────────────────────


def test_train_does_not_wake_what_is_frozen() -> None:
    network = small("timm/tf_efficientnet_lite0")
    network.freeze_below(3)
    network.train()
    assert [stage.training for stage in network.stages] == [False] * 3 + [True] * 6
    assert network.head.training
    network.eval()
    assert not any(module.training for module in network.modules())


def test_batchnorm_statistics_stay_everywhere_unless_asked_for() -> None:
    network = small().train()
    before = network.state_dict()["bn1.running_mean"].clone()
    network(images_for(network, 4))
    assert torch.equal(network.state_dict()["bn1.running_mean"], before)
    network.freeze_below(0, batchnorm_updates=True)
    network.train()
    network(images_for(network, 4))
    assert not torch.equal(network.state_dict()["bn1.running_mean"], before)


def test_freezing_everything_leaves_the_head() -> None:
    network = small()
    network.freeze_below(network.boundary("head"))
    trainable = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trainable == ["model.fc.weight", "model.fc.bias"]


def test_thawing_restores_what_was_frozen() -> None:
    network = small()
    network.freeze_below(len(network.stages))
    network.freeze_below(0)
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("boundary", [-1, 7])
def test_a_boundary_outside_the_network_is_refused(boundary: int) -> None:
    with pytest.raises(InvalidSpec, match="not in 0"):
        small().freeze_below(boundary)


def test_an_unknown_stage_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidSpec, match="stem, block0, block1, block2, block3, neck, head"):
        small().boundary("block9")


def test_growing_the_head_leaves_the_old_logits_as_they_were() -> None:
    network = small().eval()
    x = images_for(network)
    with torch.no_grad():
        old_weight, old = network.head.weight.clone(), network(x)
        network.grow_head(2, generator=torch.Generator().manual_seed(0))
        assert network.labels == 7
        assert torch.equal(network.head.weight[:5], old_weight)
        torch.testing.assert_close(network(x)[:, :5], old, atol=1e-6, rtol=1e-6)


def test_grown_rows_differ_from_one_another_and_start_near_the_average() -> None:
    network = small()
    average = network.head.weight.mean(dim=0)
    network.grow_head(2)
    first, second = network.head.weight[5:]
    assert not torch.equal(first, second)
    assert (first - average).norm() < (network.head.weight[0] - average).norm()


def test_a_replaced_head_has_the_new_labels_and_trains() -> None:
    network = small("timm/convnext_atto")
    network.freeze_below(len(network.stages))
    network.replace_head(9, generator=torch.Generator().manual_seed(0))
    assert network.eval()(images_for(network)).shape == (2, 9)
    assert all(p.requires_grad for p in network.head.parameters())


def test_a_state_dict_has_the_librarys_names_and_goes_back_in() -> None:
    network, other = small(), small()
    assert "layer1.0.conv1.weight" in network.state_dict()
    other.replace_head(5)
    other.load_state_dict(network.state_dict())
    x = images_for(network)
    assert torch.equal(network.eval()(x), other.eval()(x))


def test_depths_follow_the_stages() -> None:
    depths = small().depths()
    assert depths["conv1.weight"] == 0
    assert depths["layer4.1.bn2.running_var"] == 4
    assert depths["fc.bias"] == 6


# ── refusals ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("torchvision/no_such_net", "no image classifier of torchvision"),
        ("torchvision/fcn_resnet50", "no image classifier of torchvision"),
        ("torchvision/squeezenet1_1", "no known cut"),
        ("timm/no_such_net", "no model of timm"),
        ("timm/tf_efficientnet_lte0", "near it are tf_efficientnet_lite0"),
        ("timm/resnet18.no_such_tag", "only resnet18.a1_in1k"),
        ("timm/densenet121", "no sequence of blocks"),
        ("timm/resnetv2_50", "not in a linear layer"),
    ],
)
def test_what_cannot_be_cut_is_refused(name: str, why: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=why):
        build(architecture(name), labels=5)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("torchvision/vit_b_16", 100),
        ("timm/vit_tiny_patch16_224", 100),
        ("torchvision/convnext_tiny", 16),
    ],
)
def test_an_impossible_image_size_is_refused(name: str, size: int) -> None:
    with pytest.raises(InvalidSpec, match=f"cannot take images of {size} pixels"):
        build(architecture(name), labels=5, size=size)


def test_a_cut_in_the_wrong_order_is_noticed() -> None:
    network = small()
    network.stages[1].steps = nn.ModuleList(reversed(network.stages[1].steps))
    with pytest.raises(UnsupportedArchitecture, match="another order"):
        network_module._check_cut(network.eval(), images_for(network, 1))


def test_a_cut_that_loses_a_function_between_the_layers_is_noticed() -> None:
    network = small()
    network.stages[0].steps = network.stages[0].steps[:2]  # without relu and pooling
    with pytest.raises(UnsupportedArchitecture, match="do not equal the model"):
        network_module._check_cut(network.eval(), images_for(network, 1))


def test_a_cut_that_leaves_a_module_out_is_noticed() -> None:
    network = small()
    network.stages = (*network.stages[:-2], Stage("block3", [nn.Identity()]), network.stages[-1])
    with pytest.raises(UnsupportedArchitecture, match="exactly once"):
        network_module._check_cut(network.eval(), images_for(network, 1))


def test_preprocessing_is_the_librarys_own_but_for_the_size() -> None:
    network = build(architecture("timm/tf_efficientnet_lite0"), labels=5, size=160)
    assert network.preprocessing.size == 160
    assert network.preprocessing.mean == (0.5, 0.5, 0.5)
    assert network.preprocessing.interpolation == "bicubic"
