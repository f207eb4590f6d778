"""Pictures that a tiny network learns in a second, and that network's weights."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from acclimate import Client, Example, Preprocessing, Role

LABELS = ("first", "second", "third", "fourth")
SIDE = 32  # pixels
ARCHITECTURE = "timm/test_resnet"  # 370,000 weights


def bar(number: int, *, dark: bool = False) -> Example:
    """A noisy picture that no other *number* has; its label is where the bright bar lies."""
    label = number % len(LABELS)
    pixels = np.random.default_rng(number).integers(0, 90, (SIDE, SIDE, 3), np.uint8)
    width = SIDE // len(LABELS)
    pixels[:, label * width : (label + 1) * width] += 40 if dark else 150
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Example(image=file.getvalue(), label=LABELS[label], id=f"bar-{number}")


def bars(first: int, count: int, *, dark: bool = False) -> list[Example]:
    """*count* pictures, numbered from *first*."""
    return [bar(number, dark=dark) for number in range(first, first + count)]


def weights(folder: Path) -> Path:
    """A safetensors file of random weights for the architecture, made once for a folder."""
    path = folder / "weights.safetensors"
    if not path.exists():
        # Seconds of imports, so only here and not wherever a picture is drawn.
        import timm
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(0)
        network = timm.create_model(ARCHITECTURE.partition("/")[2], num_classes=len(LABELS))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return path


def furnish(client: Client, file: Path, *, model: str = "bars") -> None:
    """A source domain, another that is darker, and a model that waits for its first version."""
    for name, first, dark in (("bright", 0, False), ("dark", 100_000, True)):
        client.create_domain(name, LABELS)
        for role, images in (
            (Role.TRAIN, bars(first, 40, dark=dark)),
            (Role.HOLDOUT, bars(first + 1000, 80, dark=dark)),
        ):
            assert client.upload(name, images, role=role).accepted == len(images)
    register(client, file, model)


def register(client: Client, file: Path, model: str, *, labels: Sequence[str] = ()) -> str:
    """A model from the weights; the name of the job that makes its version, if it has labels."""
    _, job = client.register_model(
        model,
        ARCHITECTURE,
        weights=file,
        labels=labels,
        preprocessing=Preprocessing(size=SIDE, crop=1.0),
        source_domain="bright",
        promote_to="production" if labels else "",
        request_id=f"register-{model}",
    )
    return "" if job is None else job.name
