"""ECE, NLL and their bootstrap intervals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.unit.domain.outcomes import answers, paired

from acclimate_service.domain.calibration import (
    Calibration,
    Estimate,
    calibration,
    expected_calibration_error,
    losses,
)
from acclimate_service.domain.checks import confidence
from acclimate_service.domain.evidence import Paired
from acclimate_service.domain.guard import Decision, GuardPolicy


def test_ece_is_the_gap_worked_out_by_hand() -> None:
    """Confidence 0.9 and 3 of 4 right: 0.15; confidence 0.6 and 1 of 1 right: 0.4."""
    labels = np.zeros(5, dtype=int)
    rows = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    assert expected_calibration_error(rows, labels) == pytest.approx(4 / 5 * 0.15 + 1 / 5 * 0.4)
    assert expected_calibration_error(rows[:0], labels[:0]) == 0


def test_nll_is_the_log_of_the_labels_probability_and_never_infinite() -> None:
    rows = np.array([[0.25, 0.75], [1.0, 0.0]])
    assert losses(rows, np.array([1, 1])) == pytest.approx([-np.log(0.75), -np.log(1e-7)])


def test_the_bootstrap_interval_of_a_mean_is_close_to_the_normal_one() -> None:
    found = calibration(paired(400, 30, 10))
    assert found is not None
    pairs = paired(400, 30, 10)
    rise = losses(pairs.candidate, pairs.labels) - losses(pairs.incumbent, pairs.labels)
    half = 1.645 * rise.std() / 20
    assert found.nll_rise.value == pytest.approx(rise.mean())
    assert found.nll_rise.low == pytest.approx(rise.mean() - half, abs=0.1 * half)
    assert found.nll_rise.high == pytest.approx(rise.mean() + half, abs=0.1 * half)


def test_the_same_seed_gives_the_same_interval_and_another_does_not() -> None:
    pairs = paired(200, 10, 5)
    assert calibration(pairs) == calibration(pairs, seed=0)
    assert calibration(pairs, seed=1) != calibration(pairs)


def test_every_number_is_that_of_its_own_file() -> None:
    pairs = paired(300, 20, 5, confidence=0.7)
    found = calibration(pairs)
    assert found is not None
    assert found.ece_before.value == pytest.approx(
        expected_calibration_error(pairs.incumbent, pairs.labels)
    )
    assert found.ece_after.value == pytest.approx(
        expected_calibration_error(pairs.candidate, pairs.labels)
    )
    assert found.nll_after.value == pytest.approx(losses(pairs.candidate, pairs.labels).mean())
    assert found.ece_rise.value == pytest.approx(found.ece_after.value - found.ece_before.value)


def test_images_of_a_class_the_incumbent_lacks_are_left_out() -> None:
    pairs = paired(100, 0, 0)
    labels = pairs.labels.copy()
    labels[:30] = 10
    wide = Paired(
        name="domains/webcam",
        labels=labels,
        incumbent=pairs.incumbent,
        candidate=answers(np.ones(100, dtype=bool), labels, 11),
    )
    found = calibration(wide)
    assert found is not None
    assert found.n == 70
    assert calibration(dataclasses.replace(wide, labels=np.full(100, 10))) is None


def test_files_that_answer_alike_do_not_differ() -> None:
    found = calibration(paired(50, 0, 0))
    assert found is not None
    assert found.nll_rise.low == found.nll_rise.value == found.nll_rise.high == 0


def test_a_rise_in_ece_is_harm_only_while_nll_has_not_fallen_beyond_doubt() -> None:
    risen = Estimate(value=0.12, low=0.11, high=0.13)
    for nll, wanted in (
        (Estimate(value=-1.3, low=-1.5, high=-1.1), Decision.ACCEPT),
        (Estimate(value=-0.1, low=-0.3, high=0.1), Decision.REJECT),
    ):
        found = Calibration(
            n=242,
            nll_before=risen,
            nll_after=risen,
            nll_rise=nll,
            ece_before=risen,
            ece_after=risen,
            ece_rise=risen,
        )
        assert confidence("target", found, GuardPolicy())[1].decision is wanted


def test_a_rise_a_hair_over_its_limit_asks_for_no_astronomic_number_of_images() -> None:
    none = Estimate(value=0.0, low=0.0, high=0.0)
    hair = Estimate(value=0.1 + 2e-16, low=0.05, high=0.15)
    assert hair.value > GuardPolicy().ece_rise_limit
    found = Calibration(
        n=100,
        nll_before=none,
        nll_after=none,
        nll_rise=none,
        ece_before=none,
        ece_after=none,
        ece_rise=hair,
    )
    ece = confidence("target", found, GuardPolicy())[1]
    assert ece.decision is Decision.INCONCLUSIVE
    assert ece.needed is None
    assert "no number of images would decide" in ece.message
