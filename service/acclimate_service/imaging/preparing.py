"""From upright pixels to the network's input: the same for training, judging and serving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acclimate_service.domain.model import Preprocessing
from acclimate_service.imaging.decoding import decode
from acclimate_service.imaging.header import DEFAULT, Limits

_FILTERS = {  # and how many samples of the coarser grid each reaches to either side
    "bilinear": (Image.Resampling.BILINEAR, 1.0),
    "bicubic": (Image.Resampling.BICUBIC, 2.0),
    "box": (Image.Resampling.BOX, 0.5),
    "lanczos": (Image.Resampling.LANCZOS, 3.0),
}


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
    height before it is squared, both as (least, most). ``flip`` mirrors every other
    view; it is off by default, because a mirrored digit is another digit.
    """

    area: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False


def prepare(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The network's input of upright RGB pixels [H, W, 3]: uint8 [size, size, 3].

    The shorter side becomes ``round(size / crop)`` pixels, the longer one in proportion,
    and the centre ``size`` x ``size`` of that is kept.
    """
    height, width, _ = pixels.shape
    return resample(pixels, centre_box(width, height, preprocessing), preprocessing)


def prepare_view(
    pixels: NDArray[np.uint8],
    preprocessing: Preprocessing,
    *,
    rng: np.random.Generator,
    augment: Augmentation,
) -> NDArray[np.uint8]:
    """A training view of upright RGB pixels: uint8 [size, size, 3], random as *rng* says."""
    height, width, _ = pixels.shape
    view = resample(pixels, sample_box(width, height, rng=rng, augment=augment), preprocessing)
    mirrored = augment.flip and rng.random() < 0.5
    return np.ascontiguousarray(view[:, ::-1]) if mirrored else view


def decode_prepared(
    encoded: bytes, preprocessing: Preprocessing, limits: Limits = DEFAULT
) -> NDArray[np.uint8]:
    """``prepare(decode(encoded))``: what serving does with a file.

    Raises:
        BadImage: see ``decode``.
    """
    return prepare(decode(encoded, limits), preprocessing)


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


def resample(
    pixels: NDArray[np.uint8], box: Box, preprocessing: Preprocessing
) -> NDArray[np.uint8]:
    """The part *box* of RGB pixels [H, W, 3], antialiased to uint8 [size, size, 3].

    Only that part is computed, so a 1 x 10000 image costs no more than another. Filters
    see beyond the box as far as the image goes, as if all of it had been resized and then
    cropped; the result differs from that by a grey level or two in a sample of a hundred.
    """
    size = preprocessing.size
    resampling, reach = _FILTERS[preprocessing.interpolation]
    height, width, _ = pixels.shape
    left, right = _seen(box.left, box.right, reach, size, width)
    top, bottom = _seen(box.top, box.bottom, reach, size, height)
    # Pillow copies what it is given, which costs a third of a resize: give it no more.
    seen = Image.fromarray(pixels[top:bottom, left:right])
    within = (box.left - left, box.top - top, box.right - left, box.bottom - top)
    return np.array(seen.resize((size, size), resampling, box=within))


def _seen(start: float, stop: float, reach: float, size: int, end: int) -> tuple[int, int]:
    """The whole pixels that a filter reads to make *size* samples of *start* to *stop*."""
    margin = reach * max((stop - start) / size, 1) + 1
    return max(math.floor(start - margin), 0), min(math.ceil(stop + margin), end)
