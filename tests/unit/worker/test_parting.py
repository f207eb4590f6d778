"""A version's two halves answer as its whole file does, and siblings' trunks are one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from acclimate_service.domain.model import Architecture
from acclimate_service.training.export import patch, trace
from acclimate_service.training.network import Network, build
from acclimate_service.training.parts import Uncut, boundary, cut
from acclimate_service.worker import parting
from acclimate_service.worker.parting import part

LABELS = ("cat", "dog", "emu")
Images = npt.NDArray[np.uint8]
# Where an architecture is cut, and its size: residual sums right above the cut (ResNet's
# first block), a normalisation that is fused over it (ViT's neck), and neither.
ARCHITECTURES = (
    ("torchvision/resnet18", 32, "block0", "block0"),
    *(
        pytest.param(row, marks=pytest.mark.slow, id=row[0])
        for row in (
            ("timm/tf_efficientnet_lite0", 64, "block4", "block4"),
            ("timm/vit_tiny_patch16_224", 32, "block4", "block4"),
            ("timm/vit_tiny_patch16_224", 32, "neck", "block11"),
            ("timm/convnext_atto", 64, "block3", "block3"),
        )
    ),
)


def network(text: str, size: int) -> Network:
    torch.manual_seed(0)
    library, _, name = text.partition("/")
    architecture = Architecture.model_validate({"library": library, "name": name})
    built = build(architecture, labels=len(LABELS), size=size)
    nn.init.normal_(built.head.weight, std=0.5)
    return built.eval()


@functools.cache
def traced(text: str, size: int) -> tuple[Network, bytes]:
    """A network and its file, which takes seconds to trace: who changes one changes it back."""
    built = network(text, size)
    return built, trace(built, LABELS)


def moved(built: Network, stage: str, seed: int) -> None:
    """Change every weight of a stage, and of what lies above it, a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for index in range(built.boundary(stage), len(built.stages) + 1):
            for tensor in built.stage_parameters(index):
                tensor.add_(0.01 * torch.randn(tensor.shape, generator=generator))


def images(size: int, count: int = 3) -> Images:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def family(request: pytest.FixtureRequest) -> tuple[str, int, str, str, Network, bytes]:
    text, size, stage, expected = request.param
    return text, size, stage, expected, *traced(text, size)


def test_siblings_share_a_trunk_to_the_bit_and_their_halves_answer_as_the_whole(
    family: tuple[str, int, str, str, Network, bytes],
) -> None:
    _, size, stage, expected, built, parent = family
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    found = []
    for seed in (1, 2):
        built.load_state_dict(before)
        moved(built, stage, seed)
        content = patch(parent, built, LABELS)
        assert content is not None
        # It compares bits itself, on three images and all outputs.
        parted = part(content, built, images(size), parent=parent)
        assert parted.halves is not None, parted.why
        assert parted.stage == expected
        assert len(parted.halves.trunk) + len(parted.halves.tail) < 1.1 * len(content) + 100_000
        found.append(parted.halves)
    built.load_state_dict(before)
    assert found[0].trunk == found[1].trunk
    assert found[0].tail != found[1].tail


@pytest.fixture(scope="module")
def resnet() -> tuple[Network, bytes]:
    return traced("torchvision/resnet18", 32)


def test_a_first_version_is_cut_before_its_head(resnet: tuple[Network, bytes]) -> None:
    built, content = resnet
    assert part(content, built, images(32), parent=None).stage == "head"
    assert boundary(content, content, built) == len(built.stages)


@pytest.mark.slow
def test_another_number_of_labels_leaves_the_trunk_as_it_is(
    resnet: tuple[Network, bytes],
) -> None:
    built, content = resnet
    grown = network("torchvision/resnet18", 32)
    grown.load_state_dict(built.state_dict())
    grown.grow_head(1, generator=torch.Generator().manual_seed(0))
    wider = trace(grown.eval(), (*LABELS, "fox"))
    first = part(content, built, images(32), parent=None).halves
    second = part(wider, grown, images(32), parent=content).halves
    assert first is not None
    assert second is not None
    assert first.trunk == second.trunk


def test_a_cut_is_made_below_the_stage_that_is_named(resnet: tuple[Network, bytes]) -> None:
    built, content = resnet
    assert part(content, built, images(32), parent=content, below="block2").stage == "block2"


def test_where_the_halves_answer_otherwise_the_cut_goes_down(
    resnet: tuple[Network, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, content = resnet
    lost = build(built.architecture, labels=len(LABELS), size=32).eval()
    without = patch(content, lost, LABELS)
    real: Callable[..., object] = cut
    asked = []

    def other(file: bytes, network: Network, index: int, *, bridged: bool) -> object:
        asked.append((index, bridged))
        if index == 6:  # the head: as if its weights had got lost on the way
            assert without is not None
            file, network = without, lost
        return real(file, network, index, bridged=bridged)

    monkeypatch.setattr(parting, "cut", other)
    assert part(content, built, images(32), parent=None).stage == "neck"
    assert asked == [(6, False), (6, True), (5, False)]


def test_a_version_that_differs_from_its_first_stage_on_is_not_cut(
    resnet: tuple[Network, bytes],
) -> None:
    built, content = resnet
    fresh = network("torchvision/resnet18", 32)
    moved(fresh, "stem", 1)
    other = patch(content, fresh, LABELS)
    assert other is not None
    parted = part(other, fresh, images(32), parent=content)
    assert (parted.halves, parted.stage) == (None, "")
    assert "first stage" in parted.why
    with pytest.raises(Uncut):
        cut(content, built, 0)
