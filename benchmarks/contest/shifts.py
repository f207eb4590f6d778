"""What another camera does to the same world: pure functions of the picture and its content.

Each is strong enough to cost a good classifier much of its accuracy, and leaves a person
able to name what is shown.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from acclimate_service.training.run import numpy_rng

Pixels = NDArray[np.uint8]


def blur(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Out of focus: a Gaussian of 2 % to 4 % of the shorter side."""
    radius = rng.uniform(0.02, 0.04) * min(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noise(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A sensor at high gain: Gaussian noise of 40 to 80 grey levels in each sample."""
    return _clipped(image + rng.normal(0, rng.uniform(40, 80), image.shape))


def low_light(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A tenth of the light, counted photon by photon, the picture left dark."""
    photons = rng.poisson(image * rng.uniform(0.05, 0.15))
    return _clipped(photons * 1.5)


def rotation(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Hung askew: turned by 30 to 60 degrees either way, the corners black."""
    angle = rng.uniform(30, 60) * rng.choice([-1, 1])
    return np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR))


def colour_cast(image: Pixels, rng: np.random.Generator) -> Pixels:
    """No white balance: blue nearly lost, green weakened, a warm veil over all."""
    gains = np.array([1.0, 0.7, 0.25]) * rng.uniform(0.9, 1.1, 3)
    return _clipped(0.75 * image * gains + np.array([60, 30, 0]))


SHIFTS: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "blur": blur,
    "noise": noise,
    "low-light": low_light,
    "rotation": rotation,
    "colour-cast": colour_cast,
}


def shifted(name: str, image: Pixels, content: str) -> Pixels:
    """The picture of this content as the camera of this name takes it."""
    return SHIFTS[name](image, numpy_rng("shift", name, content))


def _clipped(values: NDArray[np.floating] | NDArray[np.integer]) -> Pixels:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
