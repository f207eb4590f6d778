"""The network's input: the reference arithmetic, and one path for training and serving."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from acclimate_service.domain.model import Preprocessing
from acclimate_service.imaging import (
    Augmentation,
    decode,
    decode_prepared,
    prepare,
    prepare_view,
    sample_box,
)

PHOTOS = Path(
    os.environ.get(
        "ACCLIMATE_TEST_PHOTOS",
        Path(__file__).parents[3].parent / "shared" / "data" / "office-caltech",
    )
)
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


def reference(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """torchvision's Resize and CenterCrop on a PIL image, written out."""
    height, width, _ = pixels.shape
    size, short = preprocessing.size, round(preprocessing.size / preprocessing.crop)
    scaled = (
        (short, int(short * height / width))
        if width <= height
        else (int(short * width / height), short)
    )
    image = Image.fromarray(pixels).resize(scaled, FILTERS[preprocessing.interpolation])
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape", [(300, 300), (375, 500), (641, 427), (80, 66), (1281, 1920)])
def test_it_agrees_with_resize_and_centre_crop(shape: tuple[int, int], interpolation: str) -> None:
    preprocessing = Preprocessing(size=96, interpolation=interpolation)
    height, width = shape
    coarse = Image.fromarray(noise(height // 8, width // 8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    difference = prepare(pixels, preprocessing).astype(int) - reference(pixels, preprocessing)
    # Offsets within a pixel are single precision; a box filter, whose edge is hard, takes
    # or leaves a whole pixel by it.
    assert abs(difference).mean() < (0.02 if interpolation != "box" else 1)
    if interpolation != "box":
        assert abs(difference).max() <= 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 9000), (9000, 1), (2, 3), (16, 16)])
@pytest.mark.parametrize("crop", [0.11, 0.875, 1.0])
def test_every_shape_of_image_gives_the_input_s_shape(shape: tuple[int, int], crop: float) -> None:
    preprocessing = Preprocessing(size=224, crop=crop)
    found = prepare(noise(*shape), preprocessing)
    assert found.shape == (224, 224, 3)
    assert found.dtype == np.uint8
    assert found.flags.writeable


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    size=st.integers(16, 96),
    crop=st.floats(0.11, 1),
    interpolation=st.sampled_from(sorted(FILTERS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_grey_image_stays_grey_whatever_is_cut_out_of_it(
    shape: tuple[int, int], size: int, crop: float, interpolation: str, seed: int
) -> None:
    preprocessing = Preprocessing(size=size, crop=crop, interpolation=interpolation)
    grey = np.full((*shape, 3), 119, np.uint8)
    expected = np.full((size, size, 3), 119, np.uint8)
    assert np.array_equal(prepare(grey, preprocessing), expected)
    rng, augment = np.random.default_rng(seed), Augmentation(area=(0.01, 1.0))
    view = prepare_view(grey, preprocessing, rng=rng, augment=augment)
    assert np.array_equal(view, expected)


def test_serving_and_training_see_the_same_bits() -> None:
    photos = sorted(PHOTOS.glob("*/*/*.jpg"))[::31][:40]
    if not photos:
        pytest.skip(f"no photographs in {PHOTOS}")
    preprocessing = Preprocessing(size=224)
    for photo in photos:
        file = photo.read_bytes()
        trained = prepare(decode(file), preprocessing)
        assert np.array_equal(decode_prepared(file, preprocessing), trained), photo.name


def test_the_same_picture_in_another_lossless_format_is_the_same_input() -> None:
    preprocessing = Preprocessing(size=64)
    inputs = []
    for codec in ("PNG", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(noise(90, 120)).save(file, codec, lossless=True)
        inputs.append(decode_prepared(file.getvalue(), preprocessing))
    assert np.array_equal(inputs[0], inputs[1])


def test_a_view_depends_on_its_seed_alone() -> None:
    preprocessing, augment = Preprocessing(size=32), Augmentation()
    pixels = noise(60, 80)

    def view(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return prepare_view(pixels, preprocessing, rng=rng, augment=augment)

    assert np.array_equal(view(1), view(1))
    assert not np.array_equal(view(1), view(2))


def test_no_view_is_mirrored() -> None:
    ramp = np.repeat(np.arange(128, dtype=np.uint8)[None, :, None], 96, 0).repeat(3, 2)
    preprocessing = Preprocessing(size=32)

    for seed in range(40):
        rng = np.random.default_rng(seed)
        view = prepare_view(ramp, preprocessing, rng=rng, augment=Augmentation())
        assert view[0, 0, 0] < view[0, -1, 0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (30, 40)])
def test_a_sampled_box_lies_within_the_image(shape: tuple[int, int]) -> None:
    height, width = shape
    rng = np.random.default_rng(3)
    for _ in range(300):
        box = sample_box(width, height, rng=rng, augment=Augmentation(area=(0.05, 1.0)))
        assert 0 <= box.left < box.right <= width
        assert 0 <= box.top < box.bottom <= height


def test_a_view_of_all_of_a_square_image_is_that_image_scaled() -> None:
    pixels = noise(64, 64)
    whole = Augmentation(area=(1.0, 1.0), ratio=(1.0, 1.0))
    rng = np.random.default_rng(0)
    view = prepare_view(pixels, Preprocessing(size=64), rng=rng, augment=whole)
    assert np.array_equal(view, pixels)
