"""From an image to the network's input: the same for training, judging and serving."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acclimate_service.domain.model import Preprocessing
from acclimate_service.imaging.box import Augmentation, Box, centre_box, sample_box
from acclimate_service.imaging.decoding import opened
from acclimate_service.imaging.header import DEFAULT, Limits
from acclimate_service.imaging.picture import Picture
from acclimate_service.imaging.scaling import scale_for

# What can be shown: a picture, decoded as large as the part that is shown needs it, or
# upright RGB pixels [H, W, 3] that are there already.
Showable = Picture | NDArray[np.uint8]

_FILTERS = {  # and how many samples of the coarser grid each reaches to either side
    "bilinear": (Image.Resampling.BILINEAR, 1.0),
    "bicubic": (Image.Resampling.BICUBIC, 2.0),
    "box": (Image.Resampling.BOX, 0.5),
    "lanczos": (Image.Resampling.LANCZOS, 3.0),
}


def prepare(image: Showable, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The network's input of an image: uint8 [size, size, 3].

    The shorter side becomes ``round(size / crop)`` pixels, the longer one in proportion,
    and the centre ``size`` x ``size`` of that is kept.

    Raises:
        BadImage: the image is a picture whose pixels are truncated or damaged.
    """
    width, height = _size(image)
    return _shown(image, centre_box(width, height, preprocessing), preprocessing)


def prepare_view(
    image: Showable,
    preprocessing: Preprocessing,
    *,
    rng: np.random.Generator,
    augment: Augmentation,
) -> NDArray[np.uint8]:
    """A training view of an image: uint8 [size, size, 3], random as *rng* says.

    Raises:
        BadImage: see ``prepare``.
    """
    width, height = _size(image)
    box = sample_box(width, height, rng=rng, augment=augment)
    return _shown(image, box, preprocessing)


def decode_prepared(
    encoded: bytes, preprocessing: Preprocessing, limits: Limits = DEFAULT
) -> NDArray[np.uint8]:
    """``prepare(opened(encoded))``: what serving does with a file.

    Raises:
        BadImage: see ``decode``.
    """
    return prepare(opened(encoded, limits), preprocessing)


def _size(image: Showable) -> tuple[int, int]:
    """Width and height, in pixels."""
    return image.size if isinstance(image, Picture) else (image.shape[1], image.shape[0])


def _shown(image: Showable, box: Box, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The part *box* of an image as the network's input, of no more pixels than it takes."""
    if not isinstance(image, Picture):
        return resample(image, box, preprocessing)
    scale = scale_for(box, preprocessing) if image.scalable else 1
    return resample(image.pixels(scale), image.within(box, scale), preprocessing)


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
