"""Screening on made-up features: clusters, some of whose labels are wrong."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from acclimate_service.domain import probe as probe_module
from acclimate_service.domain.probe import FOLDS, Probe, Space
from acclimate_service.domain.screening import LEAST, Sample, Screening, screen

CLASSES, WIDTH = 8, 40
CENTRES = np.random.default_rng(9).normal(size=(CLASSES, WIDTH))

Bools = npt.NDArray[np.bool_]


def batch(
    each: int = 25,
    *,
    sure: float = 3.0,
    incumbent: str = "right",
    seed: int = 0,
) -> Sample:
    """Images around their label's centre, and what an incumbent says of them.

    The incumbent is mostly ``right``, ``useless``, or names ``one`` label for everything.
    """
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(CLASSES), each))
    features = CENTRES[labels] + 0.8 * generator.normal(size=(len(labels), WIDTH))
    logits = generator.normal(size=(len(labels), CLASSES))
    if incumbent == "right":
        logits[np.arange(len(labels)), labels] += sure
    elif incumbent == "one":
        logits[:, 2] += 6
    return Sample(features=features, labels=labels, logits=logits)


def flipped(sample: Sample, share: float, seed: int = 1) -> tuple[Sample, Bools]:
    """The sample with that share of labels moved to another class; and which."""
    generator = np.random.default_rng(seed)
    wrong = np.zeros(len(sample), np.bool_)
    wrong[generator.choice(len(sample), round(share * len(sample)), replace=False)] = True
    moved = (sample.labels + generator.integers(1, CLASSES, len(sample))) % CLASSES
    return replace(sample, labels=np.where(wrong, moved, sample.labels)), wrong


def accused(found: Screening, sample: Sample) -> Bools:
    marked = np.zeros(len(sample), np.bool_)
    marked[[one.index for one in found.train]] = True
    return marked


@pytest.mark.parametrize("incumbent", ["right", "useless", "one", "absent"])
def test_clean_labels_are_left_alone_whatever_the_incumbent_thinks(incumbent: str) -> None:
    sample = batch(incumbent=incumbent)
    if incumbent == "absent":
        sample = replace(sample, logits=None)
    found = screen(sample, classes=CLASSES)
    assert accused(found, sample).mean() <= 0.02


@pytest.mark.parametrize(("share", "least"), [(0.1, 0.6), (0.3, 0.6)])
@pytest.mark.parametrize("incumbent", ["right", "absent"])
def test_most_wrong_labels_are_found_and_few_right_ones_accused(
    share: float, least: float, incumbent: str
) -> None:
    sample, wrong = flipped(batch(), share)
    if incumbent == "absent":
        sample = replace(sample, logits=None)
    marked = accused(screen(sample, classes=CLASSES), sample)
    assert marked[wrong].mean() >= least
    assert marked[~wrong].mean() <= 0.04


def test_what_is_suggested_is_what_the_image_shows() -> None:
    truth = batch()
    sample, wrong = flipped(truth, 0.2)
    found = [one for one in screen(sample, classes=CLASSES).train if wrong[one.index]]
    right = [one.suggested == truth.labels[one.index] for one in found]
    assert np.mean(right) >= 0.95
    assert all(0 < one.confidence <= 1 for one in found)


def test_an_incumbent_that_holds_with_the_label_acquits() -> None:
    """The control for the second witness: it agrees with every wrong label."""
    sample, wrong = flipped(batch(incumbent="useless"), 0.2)
    assert sample.logits is not None
    believing = sample.logits.copy()
    believing[np.arange(len(sample)), sample.labels] += 8
    alone = accused(screen(replace(sample, logits=None), classes=CLASSES), sample)
    both = accused(screen(replace(sample, logits=believing), classes=CLASSES), sample)
    assert alone[wrong].mean() >= 0.5
    assert not both.any()


def test_a_hard_class_is_not_accused_wholesale() -> None:
    """Two classes that overlap so much that the probe often takes one for the other."""
    sample = batch(40)
    blurred = sample.features.copy()
    both = np.isin(sample.labels, (0, 1))
    middle = (CENTRES[0] + CENTRES[1]) / 2
    blurred[both] = middle + 0.3 * (blurred[both] - middle)
    blurred[both] += 0.8 * np.random.default_rng(5).normal(size=(both.sum(), WIDTH))
    hard = replace(sample, features=blurred, logits=None)
    assert accused(screen(hard, classes=CLASSES), hard)[both].mean() <= 0.15


def test_labels_that_the_incumbent_does_not_know_are_screened_by_neighbours() -> None:
    sample, wrong = flipped(batch(), 0.2)
    assert sample.logits is not None
    partly = replace(sample, logits=sample.logits[:, :3])
    marked = accused(screen(partly, classes=CLASSES), sample)
    assert marked[wrong].mean() >= 0.5
    assert marked[~wrong].mean() <= 0.04


def test_held_out_labels_are_screened_without_being_learned() -> None:
    held, wrong = flipped(batch(15, seed=3), 0.3)
    clean = batch()
    found = screen(clean, (held,), classes=CLASSES)
    marked = np.zeros(len(held), np.bool_)
    marked[[one.index for one in found.held_out[0]]] = True
    assert marked[wrong].mean() >= 0.7
    assert marked[~wrong].mean() <= 0.04
    assert found.train == screen(clean, classes=CLASSES).train


def test_too_few_images_are_not_screened_and_a_rare_label_is_not_accused() -> None:
    few = batch(2)
    assert len(few) < LEAST
    assert screen(few, (few,), classes=CLASSES) == Screening(held_out=((),))
    common = batch(20)
    rare = np.flatnonzero(common.labels == 5)[:-3]
    kept = np.setdiff1d(np.arange(len(common)), rare)
    assert common.logits is not None
    logits = common.logits[kept]
    logits[:, 5] -= 10  # the incumbent would never call anything a 5
    sample = Sample(features=common.features[kept], labels=common.labels[kept], logits=logits)
    marked = accused(screen(sample, classes=CLASSES), sample)
    assert not marked[sample.labels == 5].any()


def test_the_same_images_are_screened_alike_each_time() -> None:
    sample, _ = flipped(batch(), 0.2)
    assert screen(sample, classes=CLASSES) == screen(sample, classes=CLASSES)


def test_a_probe_is_asked_only_about_images_it_was_not_fitted_to() -> None:
    """With labels drawn at random it must not do better than chance; in sample it would."""
    sample = batch(30, incumbent="useless")
    drawn = np.random.default_rng(4).permutation(sample.labels)
    points = Space.of(sample.features).project(sample.features)
    probe = Probe.cross_fitted(points, drawn, classes=CLASSES)
    assert probe.agreement <= 2.5 / CLASSES
    asked = np.concatenate([places for places, _ in probe.out_of_fold()])
    assert sorted(asked.tolist()) == list(range(len(sample)))
    for _, said in probe.out_of_fold():
        assert said.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert FOLDS <= 10


def test_many_labels_are_screened_in_parts_of_which_nothing_depends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No array of all images by all labels is ever made: of a large job it fills a memory."""
    classes, each = 400, 8
    generator = np.random.default_rng(3)
    labels = np.repeat(np.arange(classes), each)
    features = generator.normal(size=(classes, 24))[labels]
    sample = Sample(
        features=features + 0.2 * generator.normal(size=features.shape),
        labels=np.where(np.arange(len(labels)) % 97 == 0, (labels + 1) % classes, labels),
    )
    at_once = screen(sample, (sample,), classes=classes)
    monkeypatch.setattr(probe_module, "_SCORES_AT_ONCE", 1)
    tracemalloc.start()
    try:
        steps: list[None] = []
        in_parts = screen(sample, (sample,), classes=classes, step=lambda: steps.append(None))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert at_once.train
    assert in_parts == at_once
    assert most < len(labels) * classes * np.dtype(np.float32).itemsize
    assert len(steps) >= len(labels) // 64


def test_features_of_one_point_only_accuse_nobody() -> None:
    flat = replace(batch(), features=np.ones((200, WIDTH)))
    assert screen(flat, classes=CLASSES).train == ()
