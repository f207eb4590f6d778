"""Large JPEGs that are decoded small: by which rule, how exactly, and what never is."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.unit.imaging.test_decoding import encoded

from acclimate_service.domain.model import Preprocessing
from acclimate_service.imaging import (
    Augmentation,
    Box,
    Picture,
    centre_box,
    content_digest,
    decode,
    decode_prepared,
    opened,
    prepare,
    prepare_view,
    scale_for,
)
from acclimate_service.imaging.header import Header

FULL, SCALED = Preprocessing(size=32), Preprocessing(size=32, decoding="scaled")


def waves(height: int, width: int) -> NDArray[np.uint8]:
    """A picture in which a shift of a few pixels shows, and a scale of 8 loses nothing."""
    y, x = np.mgrid[:height, :width]
    planes = (np.sin(x / 15), np.sin(y / 17), np.sin((x + 2 * y) / 40))
    return np.stack([127 + 100 * plane for plane in planes], -1).astype(np.uint8)


def turned(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(pixels), "JPEG", quality=95, exif=exif)


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [
        (320, 240, 1),
        (640, 480, 1),
        (1280, 720, 1),
        (1920, 1080, 2),
        (1080, 1920, 2),
        (3840, 2160, 4),
        (6000, 4000, 4),
        (6000, 4096, 8),
        (16383, 300, 1),
    ],
)
def test_what_cameras_give_is_decoded_this_small_for_224_pixels(
    width: int, height: int, scale: int
) -> None:
    asked = Preprocessing(size=224, decoding="scaled")
    box = centre_box(width, height, asked)
    assert scale_for(box, asked) == scale
    for never in ({"decoding": "full"}, {"interpolation": "box"}):
        assert scale_for(box, asked.model_copy(update=never)) == 1


@given(
    across=st.floats(0.1, 20_000),
    down=st.floats(0.1, 20_000),
    left=st.floats(0, 5000),
    size=st.integers(16, 1024),
)
def test_twice_the_samples_are_left_in_both_directions_and_no_more_than_it_takes(
    across: float, down: float, left: float, size: int
) -> None:
    box = Box(left, left, left + across, left + down)
    shorter = min(box.right - box.left, box.bottom - box.top)
    scale = scale_for(box, Preprocessing(size=size, decoding="scaled"))
    assert scale in (1, 2, 4, 8)
    assert scale == 1 or shorter / scale >= 2 * size
    assert scale == 8 or shorter / (2 * scale) < 2 * size


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_a_scaled_jpeg_is_what_pillow_drafts(
    mode: str, options: dict[str, object], scale: int
) -> None:
    file = encoded(Image.fromarray(waves(331, 417)).convert(mode), "JPEG", **options)
    drafted = Image.open(io.BytesIO(file))
    drafted.draft(None, (417 // scale, 331 // scale))
    assert drafted.size == (-(-417 // scale), -(-331 // scale))
    assert np.array_equal(opened(file).pixels(scale), np.asarray(drafted.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(321, 393), (522, 609)])  # parts of the last block are over
def test_scaled_and_full_show_the_same_part_however_the_camera_was_held(
    shape: tuple[int, int], orientation: int
) -> None:
    file = turned(waves(*shape), orientation)
    picture = opened(file)
    box = centre_box(*picture.size, SCALED)
    assert scale_for(box, SCALED) in (4, 8)
    difference = prepare(picture, SCALED).astype(int) - prepare(picture, FULL)
    assert abs(difference).max() <= 6
    for seed in range(5):
        full, scaled = (
            prepare_view(picture, how, rng=np.random.default_rng(seed), augment=Augmentation())
            for how in (FULL, SCALED)
        )
        assert abs(full.astype(int) - scaled).max() <= 6


def test_the_waves_would_show_a_part_that_is_shifted() -> None:
    picture = opened(turned(waves(521, 393), 3))
    right = prepare(picture, FULL).astype(int)
    box = centre_box(*picture.size, FULL)
    shifted = Image.fromarray(picture.pixels()).crop(
        (round(box.left) + 7, round(box.top), round(box.right) + 7, round(box.bottom))
    )
    other = np.asarray(shifted.resize((32, 32), Image.Resampling.BILINEAR))
    assert abs(right - other).max() > 30


def test_an_image_that_is_not_large_is_the_same_to_the_bit_either_way() -> None:
    file = turned(waves(140, 140), 6)
    assert np.array_equal(decode_prepared(file, SCALED), decode_prepared(file, FULL))


@pytest.mark.parametrize("codec", ["PNG", "WEBP"])
def test_other_formats_are_decoded_in_full(codec: str) -> None:
    file = encoded(Image.fromarray(waves(600, 600)), codec, lossless=True)
    assert np.array_equal(decode_prepared(file, SCALED), decode_prepared(file, FULL))


def test_what_tells_images_apart_is_of_all_of_their_pixels() -> None:
    file = turned(waves(600, 600), 1)
    assert not np.array_equal(decode_prepared(file, SCALED), decode_prepared(file, FULL))
    assert content_digest(decode(file)) == content_digest(opened(file).pixels(1))
    assert decode(file).shape == (600, 600, 3)


def asked_for(show: Callable[[Picture], object]) -> list[int]:
    """The scales at which a picture of 1920 x 1080 is decoded to be shown."""
    asked: list[int] = []

    def stored(scale: int) -> NDArray[np.uint8]:
        asked.append(scale)
        return np.zeros((-(-1080 // scale), -(-1920 // scale), 3), np.uint8)

    header = Header(format="JPEG", width=1920, height=1080, orientation=1)
    show(Picture(header=header, stored=stored, scalable=True))
    return asked


def test_each_view_decodes_once_and_a_small_part_finer_than_the_whole() -> None:
    how = Preprocessing(size=120, crop=1.0, decoding="scaled")
    small = Augmentation(area=(0.05, 0.05), ratio=(1.0, 1.0))
    rng = np.random.default_rng(0)
    assert asked_for(lambda picture: prepare(picture, how)) == [4]
    assert asked_for(lambda p: prepare_view(p, how, rng=rng, augment=small)) == [1]
    assert asked_for(lambda p: prepare_view(p, how, rng=rng, augment=Augmentation())) in ([2], [4])
    in_full = how.model_copy(update={"decoding": "full"})
    assert asked_for(lambda picture: prepare(picture, in_full)) == [1]
