"""How the answers of a real network change when large JPEGs are decoded small.

EfficientNet-Lite0 with its packaged weights, for ``benchmarks/decoding.py``. Beside what
scaled decoding changes stands what a move of the camera by one of its pixels does, as a
measure of what a difference means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from benchmarks import standing
from numpy.typing import NDArray

from acclimate_service.domain.model import Architecture, Preprocessing, WeightsSource
from acclimate_service.domain.statistics import tango_upper
from acclimate_service.imaging import Box, Picture, centre_box, opened, prepare, resample, scale_for
from acclimate_service.training import weights
from acclimate_service.training.network import Network, build, normalise

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

FOLDS = 3
RIDGE = 30.0  # of the heads


def network_at(size: int) -> Network:
    """EfficientNet-Lite0 with its packaged weights, for images of *size* pixels a side."""
    network = build(
        Architecture(library="timm", name="tf_efficientnet_lite0"), labels=1000, size=size
    )
    source = WeightsSource(kind="PACKAGE", reference=standing.PACKAGE.reference)
    weights.load(network, source)
    return network.eval()


def scaled_of(preprocessing: Preprocessing) -> Preprocessing:
    """The same with scaled decoding."""
    return preprocessing.model_copy(update={"decoding": "scaled"})


def moved(picture: Picture, preprocessing: Preprocessing) -> Pixels:
    """The input as if the camera had looked one of its pixels further to the right."""
    box = centre_box(*picture.size, preprocessing)
    right = min(box.right + 1, picture.size[0])
    return resample(picture.pixels(), Box(box.left + 1, box.top, right, box.bottom), preprocessing)


def seen(network: Network, images: Sequence[Pixels]) -> tuple[Floats, Floats]:
    """The probabilities [N, 1000] and the embeddings [N, F] of prepared images."""
    probabilities, embeddings = [], []
    with torch.no_grad():
        for start in range(0, len(images), 32):
            batch = torch.from_numpy(np.stack(images[start : start + 32]))
            features = network.embed(normalise(batch, network.preprocessing))
            embeddings.append(features.double().numpy())
            probabilities.append(network.head(features).softmax(1).double().numpy())
    return np.concatenate(probabilities), np.concatenate(embeddings)


def answers(network: Network, files: Sequence[bytes], truth: Sequence[str] = ()) -> dict[str, Any]:
    """How the answers differ for files that are large for the network; the others are left out."""
    full = network.preprocessing
    scaled = scaled_of(full)
    pictures = [opened(file) for file in files]
    large = [
        place
        for place, picture in enumerate(pictures)
        if scale_for(centre_box(*picture.size, scaled), scaled) > 1
    ]
    pictures = [pictures[place] for place in large]
    ways = {
        "full": [prepare(picture, full) for picture in pictures],
        "scaled": [prepare(picture, scaled) for picture in pictures],
        "moved": [moved(picture, full) for picture in pictures],
    }
    found = {name: seen(network, images) for name, images in ways.items()}
    reference, _ = found["full"]
    told: dict[str, Any] = {"images": len(large)}
    for name in ("scaled", "moved"):
        other, _ = found[name]
        told[name] = {
            "same": float((reference.argmax(1) == other.argmax(1)).mean()),
            "most": float(abs(reference - other).max()),
        }
    if truth:
        names, labels = np.unique([truth[place] for place in large], return_inverse=True)
        told["labels"] = len(names)
        for name in ("scaled", "moved"):
            told[name]["heads"] = heads(found["full"][1], found[name][1], labels)
    return told


def heads(full: Floats, other: Floats, labels: NDArray[np.int64]) -> dict[str, Any]:
    """What heads answer rightly that are fitted to either kind of embeddings, and asked with it."""
    kinds = {"full": full, "other": other}
    right = {name: np.zeros(len(labels), bool) for name in kinds}
    same = np.zeros(len(labels), bool)
    fold = np.arange(len(labels)) % FOLDS
    for number in range(FOLDS):
        held = fold == number
        for name, embeddings in kinds.items():
            head = _fitted(embeddings[~held], labels[~held])
            right[name][held] = head(embeddings[held]) == labels[held]
            if name == "full":  # which is asked with the other kind as well
                same[held] = head(full[held]) == head(other[held])
    lost = int((right["full"] & ~right["other"]).sum())
    won = int((right["other"] & ~right["full"]).sum())
    return {
        "same": float(same.mean()),
        "accuracy": {name: float(found.mean()) for name, found in right.items()},
        "lost": lost,
        "won": won,
        "drop at most": tango_upper(lost, won, len(labels), 0.05),
    }


def _fitted(x: Floats, labels: NDArray[np.int64]) -> Callable[[Floats], NDArray[np.int64]]:
    """A linear head by ridge regression: embeddings [N, F] to labels [N]."""
    mean = x.mean(0)
    centred = x - mean
    wanted = np.eye(labels.max() + 1)[labels]
    level = wanted.mean(0)
    slope = np.linalg.solve(
        centred.T @ centred + RIDGE * np.eye(x.shape[1]), centred.T @ (wanted - level)
    )
    return lambda other: ((other - mean) @ slope + level).argmax(1)
