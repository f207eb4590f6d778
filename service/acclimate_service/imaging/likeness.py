"""Near-copies: the same picture saved anew, scaled, a little cropped, brighter or darker.

A perceptual hash finds candidates among any number of images and errs both ways: a crop
by a few points of the side changes ten of its 64 bits, and two handwritten ones can share
all. So candidates are compared as small grey pictures, each against slight crops of the
other, and the best correlation decides.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Hashes = NDArray[np.uint64]
Views = NDArray[np.float32]

DISTANCE = 12  # bits of the perceptual hash within which two images are compared
LIKENESS = 0.98  # correlation from which they are one picture
# A brighter copy may be clipped, which moves the correlation more than the hash.
CLOSE, CLOSE_LIKENESS = 4, 0.9

_SIDE = 32  # pixels of the pictures compared
_BASE = 96  # that they are cut from
_KEPT = (0.97, 0.94, 0.9, 0.86)  # of the sides, by a crop
_PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
_ROWS = 256  # hashes compared with all others at once


def views(pixels: NDArray[np.uint8]) -> Views:
    """An image [H, W, 3] whole and slightly cropped: [1 + crops, 32 * 32], each of length 1."""
    grey = Image.fromarray(pixels).convert("L").resize((_BASE, _BASE), Image.Resampling.BOX)
    boxes = [(0.0, 0.0, 1.0), *((x * (1 - w), y * (1 - w), w) for w in _KEPT for x, y in _PLACES)]
    rows = []
    for left, top, width in boxes:
        right, bottom = left + width, top + width
        box = (_BASE * left, _BASE * top, _BASE * right, _BASE * bottom)
        small = grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=box)
        row = np.asarray(small, np.float32).ravel()
        row = row - row.mean()
        rows.append(row / max(float(np.linalg.norm(row)), 1e-3))
    return np.stack(rows)


def likeness(one: Views, other: Views) -> float:
    """The best correlation of either picture with the other's crops, in [-1, 1]."""
    return max(float((one @ other[0]).max()), float((other @ one[0]).max()))


def same(distance: int, like: float) -> bool:
    """Whether so few bits of the hashes differ, at this likeness, that it is one picture."""
    return (distance <= DISTANCE and like >= LIKENESS) or (
        distance <= CLOSE and like >= CLOSE_LIKENESS
    )


def candidates(
    hashes: Hashes, others: Hashes, *, most: int
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """For each hash that has any: its place, the nearest *most* of the *others*, the distances."""
    for start in range(0, len(hashes), _ROWS):
        part = hashes[start : start + _ROWS]
        distances = np.bitwise_count(part[:, None] ^ others[None, :])  # [256, M]
        for row in np.flatnonzero((distances <= DISTANCE).any(axis=1)):
            near = np.flatnonzero(distances[row] <= DISTANCE)
            near = near[np.argsort(distances[row, near], kind="stable")][:most]
            yield start + int(row), near, distances[row, near].astype(np.int64)
