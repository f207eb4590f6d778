"""Augmented views: what may differ between two pictures of the same thing.

A view is a pure function of the image's content, the view's number, the seed and
the augmentation, so the same view can be cached, computed again in a later job,
or streamed, and is the same picture each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acclimate_service import imaging
from acclimate_service.domain.model import Preprocessing
from acclimate_service.training.run import numpy_rng


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Ranges that a view's parameters are drawn from, uniformly.

    ``area`` and ``ratio`` bound the crop; the colour fields are largest relative
    changes. No view is mirrored: a mirrored digit, sign or word is another one.
    """

    name: str
    area: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    tint: float = 0.0


GENTLE = Augmentation(
    name="gentle",
    area=(0.5, 1.0),
    ratio=(5 / 6, 6 / 5),
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    tint=0.05,
)


@dataclass(frozen=True, kw_only=True)
class Recolouring:
    """The colour changes of one view. All are gains: 1 changes nothing."""

    brightness: float
    contrast: float
    saturation: float
    tint: tuple[float, float, float]


def crop(
    image: imaging.Showable,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
    *,
    content: str,
    view: int,
    seed: int,
) -> NDArray[np.uint8]:
    """The view's part of an image, resized to uint8 [S, S, 3]."""
    return imaging.prepare_view(
        image,
        preprocessing,
        rng=numpy_rng(seed, "crop", content, view),
        augment=imaging.Augmentation(area=augmentation.area, ratio=augmentation.ratio),
    )


def recolouring(augmentation: Augmentation, *, content: str, view: int, seed: int) -> Recolouring:
    """The colour changes of one view of one image."""
    gains = numpy_rng(seed, "colour", content, view).uniform(-1, 1, size=6)
    brightness, contrast, saturation, red, green, blue = map(float, gains)
    return Recolouring(
        brightness=1 + brightness * augmentation.brightness,
        contrast=1 + contrast * augmentation.contrast,
        saturation=1 + saturation * augmentation.saturation,
        tint=(
            1 + red * augmentation.tint,
            1 + green * augmentation.tint,
            1 + blue * augmentation.tint,
        ),
    )


def recolour(images: Tensor, changes: Sequence[Recolouring]) -> Tensor:
    """Change each image's colours, on the images' own device.

    Args:
        images: RGB float [N, S, S, 3] in [0, 255].
        changes: one for each image.

    Returns:
        float32 [N, S, S, 3] in [0, 255].
    """
    gains = torch.tensor([(c.brightness, c.contrast, c.saturation) for c in changes]).to(images)
    brightness, contrast, saturation = gains.view(-1, 3, 1, 1, 1).unbind(1)
    tint = torch.tensor([c.tint for c in changes]).to(images).view(-1, 1, 1, 3)
    x = images * (brightness * tint)
    grey = (x * x.new_tensor((0.299, 0.587, 0.114))).sum(dim=-1, keepdim=True)  # [N, S, S, 1]
    x = grey + (x - grey) * saturation
    mean = grey.mean(dim=(1, 2), keepdim=True)
    return (mean + (x - mean) * contrast).clamp_(0, 255)
