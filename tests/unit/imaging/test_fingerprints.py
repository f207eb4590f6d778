"""Digests tell content apart exactly; perceptual hashes tell pictures apart roughly."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from acclimate_service.imaging import content_digest, decode, perceptual_hash


def scene(seed: int, height: int = 240, width: int = 320) -> Image.Image:
    """A smooth random picture: what a photograph is to a low-frequency hash."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def test_the_digest_is_of_shape_and_bytes() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert content_digest(pixels) == content_digest(pixels.copy())
    assert content_digest(pixels) == content_digest(np.asfortranarray(pixels))
    assert content_digest(pixels) != content_digest(pixels.reshape(4, 2, 3))
    changed = pixels.copy()
    changed[-1, -1, -1] ^= 1
    assert content_digest(pixels) != content_digest(changed)


def test_the_digest_never_changes_between_releases() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert content_digest(pixels) == (
        "4d7bfec0e68dba4203f90131e20c88b58dd390660b408cc6208ee561e1874fb0"
    )


def retouched(image: Image.Image) -> dict[str, Image.Image]:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return {
        "saved at quality 40": Image.fromarray(decode(file.getvalue())),
        "half the size": image.resize((image.width // 2, image.height // 2)),
        "brighter": ImageEnhance.Brightness(image).enhance(1.2),
        "blurred": image.filter(ImageFilter.GaussianBlur(2)),
        "grey": image.convert("L").convert("RGB"),
    }


@pytest.mark.parametrize("seed", range(8))
def test_near_duplicates_are_within_ten_bits_and_others_are_not(seed: int) -> None:
    image = scene(seed)
    original = perceptual_hash(np.asarray(image))
    for change, other in retouched(image).items():
        distance = (original ^ perceptual_hash(np.asarray(other))).bit_count()
        assert distance <= 10, change
    stranger = perceptual_hash(np.asarray(scene(seed + 1000)))
    assert (original ^ stranger).bit_count() > 14


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (40, 40)])
def test_flat_images_have_one_hash_whatever_their_shade(shape: tuple[int, int]) -> None:
    hashes = {perceptual_hash(np.full((*shape, 3), shade, np.uint8)) for shade in (1, 77, 255)}
    assert len(hashes) == 1
    assert 0 <= hashes.pop() < 2**64
