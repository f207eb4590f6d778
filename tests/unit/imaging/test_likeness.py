"""Copies of real photographs are found, and different pictures are not taken for copies."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from acclimate_service.imaging import decode, perceptual_hash
from acclimate_service.imaging.likeness import DISTANCE, candidates, likeness, same, views

Pixels = NDArray[np.uint8]


def scene(seed: int, *, side: int = 160) -> Pixels:
    """A picture with large and small shapes, its own for each seed."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 5, 3)).astype(np.uint8)
    fine = generator.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    size = (side, side)
    pictures = [
        np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC), np.float64)
        for grid in (coarse, fine)
    ]
    return (0.75 * pictures[0] + 0.25 * pictures[1]).clip(0, 255).astype(np.uint8)


def is_copy(one: Pixels, other: Pixels) -> bool:
    distance = (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()
    return same(distance, likeness(views(one), views(other)))


def saved(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    dx, dy = round(share * image.width), round(share * image.height)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "nothing": lambda i: i,
    "jpeg": lambda i: saved(i, 40),
    "half": lambda i: i.resize((i.width // 2, i.height // 2)),
    "crop": lambda i: cropped(i, 0.02),
    "darker": lambda i: ImageEnhance.Brightness(i).enhance(0.7),
    "contrast": lambda i: ImageEnhance.Contrast(i).enhance(1.2),
    "all": lambda i: ImageEnhance.Brightness(
        saved(cropped(i, 0.02).resize((i.width // 2, i.height // 2)), 60)
    ).enhance(0.9),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_known_for_what_it_is(change: str) -> None:
    found = []
    for seed in range(20):
        original = scene(seed)
        copy = np.ascontiguousarray(CHANGES[change](Image.fromarray(original)))
        found.append(is_copy(original, copy))
    assert sum(found) >= 18


def test_different_pictures_are_no_copies() -> None:
    pictures = [scene(seed) for seed in range(40)]
    hashes, seen = [perceptual_hash(p) for p in pictures], [views(p) for p in pictures]
    for i in range(len(pictures)):
        for j in range(i):
            distance = (hashes[i] ^ hashes[j]).bit_count()
            assert not same(distance, likeness(seen[i], seen[j]))


def test_pictures_whose_hashes_agree_are_compared_before_they_are_called_copies() -> None:
    """Of handwritten digits many share a hash; the small pictures tell them apart."""
    assert same(0, 1.0)
    assert not same(0, 0.6)
    assert not same(DISTANCE + 1, 1.0)


def test_flat_pictures_are_compared_without_dividing_by_nothing() -> None:
    black, grey = (np.full((64, 64, 3), level, np.uint8) for level in (0, 128))
    assert likeness(views(black), views(grey)) == pytest.approx(0)


def test_candidates_are_the_nearest_hashes_and_no_others() -> None:
    generator = np.random.default_rng(0)
    others = generator.integers(0, 2**63, 3000).astype(np.uint64)
    hashes = generator.integers(0, 2**63, 700).astype(np.uint64)
    hashes[[5, 600]] = others[17] ^ np.uint64(0b111), others[17]
    others[18] = others[17] ^ np.uint64(1)
    found = {place: (near.tolist(), far.tolist()) for place, near, far in candidates(
        hashes, others, most=2)}  # fmt: skip
    assert found[5] == ([18, 17], [2, 3])
    assert found[600] == ([17, 18], [0, 1])
    expected = {
        i
        for i, one in enumerate(hashes.tolist())
        if min((one ^ int(other)).bit_count() for other in others.tolist()) <= DISTANCE
    }
    assert set(found) == expected


def test_photographs_of_two_cameras_are_no_copies_of_each_other(photos: Path) -> None:
    """A twentieth of all pairs of amazon and webcam: none may collide."""
    sets = [
        [decode(path.read_bytes()) for path in sorted((photos / name).glob("*/*.jpg"))[::4]]
        for name in ("amazon", "webcam")
    ]
    hashes = [np.array([perceptual_hash(p) for p in some], np.uint64) for some in sets]
    for place, near, distances in candidates(*hashes, most=16):
        seen = views(sets[0][place])
        for other, distance in zip(near.tolist(), distances.tolist(), strict=True):
            assert not same(distance, likeness(seen, views(sets[1][other])))
