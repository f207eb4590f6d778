"""Which part of an image is shown: the centre, or a random part of it for training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from acclimate_service.domain.model import Preprocessing


class Box(NamedTuple):
    """A part of an image, in pixels from its upper left corner; fractions are meant."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training view may differ from the centre crop.

    ``area`` is the share of the image that a view shows and ``ratio`` its width by
    height before it is squared, both as (least, most). No view is mirrored: a mirrored
    digit is another digit.
    """

    area: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


def centre_box(width: int, height: int, preprocessing: Preprocessing) -> Box:
    """The part of a *width* x *height* image that the centre crop shows.

    The arithmetic is torchvision's (``Resize`` then ``CenterCrop``: whole sizes, whole
    offsets), carried back to the coordinates of the original image.
    """
    size = preprocessing.size
    short = round(size / preprocessing.crop)
    scaled_width = short if width <= height else int(short * width / height)
    scaled_height = short if height <= width else int(short * height / width)
    left, top = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
    x, y = width / scaled_width, height / scaled_height
    right, bottom = min((left + size) * x, width), min((top + size) * y, height)
    return Box(left * x, top * y, right, bottom)


def sample_box(width: int, height: int, *, rng: np.random.Generator, augment: Augmentation) -> Box:
    """A random part of a *width* x *height* image: Inception's crop (arXiv:1409.4842, 6).

    A shape that does not fit is narrowed to fit, so exactly four numbers are drawn
    whatever the image is, and a view depends on its seed alone.
    """
    area = rng.uniform(*augment.area) * width * height
    narrow, wide = augment.ratio
    ratio = math.exp(rng.uniform(math.log(narrow), math.log(wide)))
    across = min(math.sqrt(area * ratio), width)
    down = min(math.sqrt(area / ratio), height)
    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
    return Box(left, top, min(left + across, width), min(top + down, height))
