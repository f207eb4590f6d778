"""What tells whether two images are the same, or nearly."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def content_digest(pixels: NDArray[np.uint8]) -> str:
    """The hex sha256 over the shape and the bytes of upright RGB pixels, uint8 [H, W, 3].

    The same picture has the same digest in every lossless format; a JPEG saved anew has
    another, see ``perceptual_hash``.
    """
    digest = hashlib.sha256("x".join(map(str, pixels.shape)).encode() + b"\n")
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """64 bits (0 <= hash < 2**64) that survive scaling, re-encoding and mild retouching.

    pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", 3.2.1): the signs of the 8 x 8 lowest frequencies of the 32 x 32 grey
    image about their median. Two images are near-duplicates when few bits differ:
    ``(a ^ b).bit_count()``.
    """
    grey = Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.BOX)
    basis = _cosines()
    spectrum = basis @ np.asarray(grey, np.float64) @ basis.T  # [8, 8]
    # Rounded, so that a flat image's zeros are zeros and not the last bit of a sum.
    low = spectrum.round(3).ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


@functools.cache
def _cosines() -> NDArray[np.float64]:
    """The first 8 rows of the 32-point DCT-II, float64 [8, 32]."""
    samples = np.arange(32, dtype=np.float64) + 0.5
    cosines: NDArray[np.float64] = np.cos(np.outer(np.arange(8), samples) * (np.pi / 32))
    return cosines
