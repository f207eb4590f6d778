"""An image file that was opened, and is decoded as large as it has to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acclimate_service.imaging.box import Box
from acclimate_service.imaging.header import Header
from acclimate_service.imaging.scaling import scaled_side

# EXIF 2.32, tag 0x0112: where row 0 and column 0 of what is stored lie.
_TURNED = frozenset({5, 6, 7, 8})
_FROM_THE_RIGHT = frozenset({2, 3, 6, 7})
_FROM_BELOW = frozenset({3, 4, 7, 8})


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An image whose header was found good; its pixels are decoded whenever they are asked for.

    ``stored`` decodes the file's pixels, before the camera's rotation is undone. It is asked
    for them at 1/1 of their size; if the format is ``scalable`` also at those of ``SCALES``.
    """

    header: Header
    stored: Callable[[int], NDArray[np.uint8]]
    scalable: bool

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image, in pixels."""
        stored = self.header.width, self.header.height
        return stored[::-1] if self.header.orientation in _TURNED else stored

    def pixels(self, scale: int = 1) -> NDArray[np.uint8]:
        """Upright RGB pixels at 1/*scale*, uint8 [H, W, 3], C-contiguous and writable.

        Raises:
            BadImage: the file is truncated or damaged.
        """
        pixels = self.stored(scale)
        orientation = self.header.orientation
        if orientation in _TURNED:
            pixels = pixels.swapaxes(0, 1)
        if orientation in _FROM_THE_RIGHT:
            pixels = pixels[:, ::-1]
        if orientation in _FROM_BELOW:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)

    def within(self, box: Box, scale: int) -> Box:
        """Where *box* lies among the pixels at 1/*scale*.

        Where a side is no multiple of the scale, a part of the last stored pixel lies
        beyond the image. Once that is turned upright, the part may come first.
        """
        width, height = self.size
        orientation = self.header.orientation
        x = scaled_side(width, scale) - width / scale if orientation in _FROM_THE_RIGHT else 0
        y = scaled_side(height, scale) - height / scale if orientation in _FROM_BELOW else 0
        return Box(
            box.left / scale + x, box.top / scale + y, box.right / scale + x, box.bottom / scale + y
        )
