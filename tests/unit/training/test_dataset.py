from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tests.unit.training.tiny import LABELS, Pictures

from acclimate_service.domain.errors import InvalidSpec, NotEnoughExamples
from acclimate_service.training.dataset import MIN_STEPS, PLAIN, Listed, Order, prepare


def order(counts: list[int], **changes: object) -> Order:
    settings: dict[str, object] = {
        "train": Listed(Pictures(counts, seed=0)),
        "replay": Listed(Pictures([5] * LABELS, seed=1)),
        "batch_size": 8,
        "replay_share": 0.5,
        "balance": 0.0,
        "views": 3,
        "seed": 0,
    }
    return Order(**(settings | changes))  # type: ignore[arg-type]


def shown(of: Order, epoch: int = 0) -> list[int]:
    return [int(i) for step in of.epoch(epoch) for i in step.train]


def test_an_epoch_shows_every_new_image_once():
    assert sorted(shown(order([20] * LABELS))) == list(range(80))


def test_a_handful_of_images_still_makes_an_epoch_of_several_steps():
    few = order([1] * LABELS)
    steps = list(few.epoch(0))
    assert len(steps) == MIN_STEPS
    assert all(len(set(step.train.tolist())) == len(step.train) == 4 for step in steps)


def test_the_order_follows_from_seed_and_epoch_alone():
    assert shown(order([20] * LABELS), 3) == shown(order([20] * LABELS), 3)
    assert shown(order([20] * LABELS), 3) != shown(order([20] * LABELS), 4)
    assert shown(order([20] * LABELS), 3) != shown(order([20] * LABELS, seed=1), 3)


def test_half_of_each_step_is_replayed_when_asked():
    assert all(len(step.replay) == 4 for step in order([20] * LABELS).epoch(0))
    assert all(len(step.replay) == 0 for step in order([20] * LABELS, replay=None).epoch(0))


@pytest.mark.parametrize(("balance", "least"), [(0.5, 25), (1.0, 75)])
def test_balance_shows_a_rare_label_more_often_in_as_many_steps(balance, least):
    skewed = order([400, 4, 4, 4], balance=balance)
    labels = Counter(int(skewed.train.targets[i]) for i in shown(skewed))
    assert sum(labels.values()) == 412
    assert min(labels.values()) >= least


def test_every_view_is_used_and_the_plain_one_is_among_them():
    used = {int(v) for step in order([20] * LABELS).epoch(0) for v in step.views}
    assert used == {PLAIN, 1, 2}


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(NotEnoughExamples, match="training images"):
        prepare(Pictures([0] * LABELS, seed=0), labels=LABELS)


def test_a_label_outside_the_network_is_refused():
    with pytest.raises(InvalidSpec, match="3 outputs"):
        prepare(Pictures([2] * LABELS, seed=0), labels=3)


def test_select_images_are_set_aside_where_there_are_none():
    stock = prepare(Pictures([8] * LABELS, seed=0), labels=LABELS)
    assert stock.select is not None
    assert Counter(stock.select.labels) == dict.fromkeys(range(LABELS), 2)
    assert not set(stock.select.contents) & set(stock.train.contents)


def test_of_three_images_a_label_none_is_set_aside():
    stock = prepare(Pictures([3] * LABELS, seed=0), labels=LABELS)
    assert stock.select is None
    assert len(stock.train) == 3 * LABELS


def test_forgetting_is_measured_on_part_of_the_replay_where_no_source_holdout_is_given():
    stock = prepare(
        Pictures([8] * LABELS, seed=0), labels=LABELS, replay=Pictures([8] * LABELS, seed=1)
    )
    assert stock.source_select is not None
    assert stock.replay is not None
    assert not set(stock.source_select.contents) & set(stock.replay.contents)


def test_a_part_reads_its_own_pictures():
    whole = Listed(Pictures([2] * LABELS, seed=0))
    part = whole.part([5, 1])
    assert part.labels == (whole.labels[5], whole.labels[1])
    assert np.array_equal(np.asarray(part.read(0)), np.asarray(whole.read(5)))
