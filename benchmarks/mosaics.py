"""Photographs of any size, with the detail of real ones: mosaics of photographs as they are.

A small photograph made larger has no fine detail, which is what decoding small could lose.
Pasted beside each other at their own size they keep it. It measures nothing itself.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROW = 400  # pixels: about a photograph of a webcam
QUALITY = 88


def photographs(folder: Path) -> list[Path]:
    """The JPEGs in the subfolders of *folder*, which are their labels."""
    found = sorted(folder.glob("*/*.jpg"))
    if not found:
        raise SystemExit(f"no photographs in the subfolders of {folder}; name one: --photos FOLDER")
    return found


def mosaic(photos: Sequence[Path], width: int, height: int, *, rng: np.random.Generator) -> bytes:
    """A JPEG of width x height pixels of random *photos*, in rows."""
    whole = Image.new("RGB", (width, height))
    for top in range(0, height, ROW):
        left = 0
        while left < width:
            with Image.open(photos[int(rng.integers(len(photos)))]) as photo:
                whole.paste(photo.convert("RGB"), (left, top))
                left += photo.width
    file = io.BytesIO()
    whole.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
