from __future__ import annotations

import math

import pytest

from acclimate_service.training.diagnosis import (
    SETTLED,
    Epoch,
    Failure,
    Stability,
    forgetting,
    overfitting,
    underfitting,
)
from acclimate_service.training.measure import Change


def epochs(train, select=None, nll=None):
    count = len(train)
    return [
        Epoch(
            epoch=i + 1, steps=8, seconds=1.0, train_loss=1.0, train_accuracy=train[i],
            gradient_norm=1.0, select_accuracy=(select or [None] * count)[i],
            select_nll=(nll or [None] * count)[i],
        )
        for i in range(count)
    ]  # fmt: skip


def test_overfitting_is_a_gap_and_a_select_loss_that_turned():
    finding = overfitting(epochs([0.6, 0.9, 1.0], [0.6, 0.62, 0.6], [1.0, 0.9, 1.3]))
    assert finding is not None
    assert finding.failure is Failure.OVERFITTING
    assert "rose by 0.40 nats" in finding.evidence


@pytest.mark.parametrize(
    ("train", "select", "nll"),
    [
        ([0.6, 0.9, 1.0], [0.6, 0.7, 0.7], [1.0, 0.9, 0.9]),  # a gap, but nothing got worse
        ([0.6, 0.8, 0.8], [0.6, 0.7, 0.7], [1.0, 0.9, 1.3]),  # worse, but no gap
        ([1.0], [0.5], [1.0]),  # one epoch shows no turn
    ],
)
def test_either_sign_alone_is_not_overfitting(train, select, nll):
    assert overfitting(epochs(train, select, nll)) is None


def test_underfitting_is_a_plateau_under_the_head_only_ceiling():
    finding = underfitting(epochs([0.5, 0.6, 0.61, 0.62], [0.5, 0.5, 0.5, 0.5]), ceiling=0.55)
    assert finding is not None
    assert finding.failure is Failure.UNDERFITTING
    assert "levelled off at 62.0%" in finding.evidence


def test_views_that_are_harder_than_the_held_out_images_are_no_underfitting():
    assert underfitting(epochs([0.8, 0.9, 0.91, 0.91], [0.97] * 4), ceiling=0.98) is None


@pytest.mark.parametrize(
    ("train", "ceiling"),
    [
        ([0.5, 0.6, 0.61, 0.62], 0.45),  # better than the head alone
        ([0.5, 0.9, 0.98, 0.99], 0.55),  # the images seen are fitted
        ([0.2, 0.3, 0.4, 0.5], 0.55),  # still climbing
    ],
)
def test_no_plateau_no_underfitting(train, ceiling):
    assert underfitting(epochs(train, [0.5] * 4), ceiling=ceiling) is None


def test_forgetting_is_a_drop_beyond_the_limit_with_its_counts():
    lost = Change(
        images=100, lost=5, won=1, nll_rise=0.2, nll_error=0.1, soft_drop=0.04, soft_error=0.01
    )
    finding = forgetting(lost, limit=0.01, alpha=0.6)
    assert finding is not None
    assert "5 of 100 source images lost and 1 won" in finding.evidence
    assert finding.response == "blended back towards the incumbent"
    assert forgetting(lost, limit=0.05, alpha=0.6) is None
    whole = forgetting(lost, limit=0.01, alpha=1.0)
    assert whole is not None
    assert whole.response.startswith("taken whole")


@pytest.mark.parametrize(
    ("loss", "norm", "said"),
    [
        (math.nan, 1.0, "loss nan"),
        (1.0, math.inf, "norm inf"),
        (9.0, 1.0, "9 times its recent median"),
        (1.0, 99.0, "gradient norm 99.0"),
    ],
)
def test_instability_is_no_number_or_a_spike(loss, norm, said):
    stability = Stability()
    assert all(stability.observe(1.0, 1.0) is None for _ in range(SETTLED))
    assert said in (stability.observe(loss, norm) or "")


def test_a_first_step_cannot_spike():
    assert Stability().observe(50.0, 500.0) is None
