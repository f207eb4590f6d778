from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from acclimate_service.domain.model import Preprocessing
from acclimate_service.training.augment import (
    GENTLE,
    Augmentation,
    crop,
    recolour,
    recolouring,
)

STRONG = Augmentation(
    name="strong",
    area=(0.25, 1.0),
    ratio=(3 / 4, 4 / 3),
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    tint=0.1,
)
PREPROCESSING = Preprocessing(size=16, crop=1.0)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)


def view(picture, augmentation=GENTLE, *, content="a", number=1, seed=0):
    return crop(picture, augmentation, PREPROCESSING, content=content, view=number, seed=seed)


def test_a_view_is_the_same_picture_each_time(picture):
    assert np.array_equal(view(picture), view(picture))


@pytest.mark.parametrize("other", [{"content": "b"}, {"number": 2}, {"seed": 1}])
def test_another_content_number_or_seed_is_another_view(picture, other):
    assert not np.array_equal(view(picture), view(picture, **other))


def test_gains_of_one_change_no_colour(picture):
    still = recolouring(Augmentation(name="whole"), content="a", view=1, seed=0)
    images = torch.from_numpy(picture[None]).float()
    assert torch.allclose(recolour(images, [still]), images, atol=1e-3)


def test_each_image_of_a_batch_changes_in_its_own_way(picture):
    images = torch.from_numpy(np.stack([picture, picture])).float()
    one, two = (recolouring(STRONG, content=c, view=1, seed=0) for c in "ab")
    both = recolour(images, [one, two])
    assert not torch.allclose(both[0], both[1])
    assert torch.allclose(both[1:], recolour(images[1:], [two]))


def test_colours_stay_within_what_a_camera_can_say():
    white = torch.full((1, 4, 4, 3), 255.0)
    bright = replace(recolouring(STRONG, content="a", view=1, seed=0), brightness=2.0)
    assert recolour(white, [bright]).max() <= 255
