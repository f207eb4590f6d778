from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.unit.training import tiny

from acclimate_service.domain.job import EventKind
from acclimate_service.training.dataset import MIRRORED, Listed
from acclimate_service.training.measure import Scores
from acclimate_service.training.mirroring import mirror_views, same_thing
from acclimate_service.training.trunk import Shown

EVEN, ODD = [12, 0, 12, 0], [0, 12, 0, 12]  # bars that stand, and bars that lie


def scores(right):
    margin = np.where(np.asarray(right, dtype=bool), 2.0, -2.0)
    return Scores(margin=margin, nll=np.log1p(np.exp(-margin)))


def decided(train, *, diary=None, **parts):
    net, stock = tiny.incumbent(), tiny.target_stock(train=train, **parts)
    run = tiny.run(on_event=diary or tiny.Diary())
    trunk = tiny.trunk(net, surroundings=run)
    mirror_views(trunk, stock, boundaries=[len(net.stages)], run=run)
    return trunk


def test_views_are_mirrored_where_a_mirrored_picture_keeps_its_label():
    diary = tiny.Diary()
    trunk = decided(tiny.Pictures(ODD, seed=3, dark=True), diary=diary)
    assert trunk.augmentation.flip
    (told,) = diary.messages(EventKind.DECISION)
    assert told.startswith("views are mirrored: of 50 source images the incumbent loses ")


def test_views_are_not_mirrored_where_that_makes_another_label_of_one():
    diary = tiny.Diary()
    trunk = decided(tiny.Pictures([1, 12, 0, 12], seed=3, dark=True), diary=diary)
    assert not trunk.augmentation.flip
    (told,) = diary.messages(EventKind.DECISION)
    assert told.startswith("views are not mirrored: of label 0 it knows 25 source images plain, ")


@pytest.mark.parametrize("source", [None, tiny.Pictures([25, 2, 25, 25], seed=5)])
def test_views_are_not_mirrored_where_nothing_tells(source):
    diary = tiny.Diary()
    parts = {"source_select": source, "replay": None}
    trunk = decided(tiny.Pictures(ODD, seed=3, dark=True), diary=diary, **parts)
    assert not trunk.augmentation.flip
    assert "source images" in diary.messages(EventKind.DECISION)[0]


def test_the_mirrored_view_is_the_plain_one_from_behind():
    pictures = tiny.Pictures(EVEN, seed=0)
    trunk, source = tiny.trunk(tiny.network()), Listed(pictures)
    views = [Shown.plain(source), Shown.all(source, [MIRRORED])]
    plain, mirrored = trunk.read(0, [[view] for view in views])
    assert torch.equal(mirrored, plain.flip(-1))
    assert not torch.equal(mirrored, plain)


def test_a_mirrored_row_is_not_taken_for_the_plain_one_in_the_cache():
    trunk, source = tiny.trunk(tiny.network()), Listed(tiny.Pictures(EVEN, seed=0))
    trunk.fill(Shown.plain(source), [2])
    plain, mirrored = trunk.read(2, [[Shown.all(source, [view])] for view in (0, MIRRORED)])
    assert not torch.equal(plain, mirrored)


def test_one_label_that_minds_is_enough():
    targets = np.repeat(np.arange(20), 10)
    plain = np.ones(200)
    mirrored = np.where(np.isin(targets, [3]), 0, plain)
    told = same_thing(scores(plain), scores(mirrored), targets, np.arange(20))
    assert told == (False, "of label 3 it knows 10 source images plain, 0 mirrored")
    assert (
        same_thing(scores(plain), scores(mirrored), targets, np.arange(3))[0] is False
    )  # all lost
    assert same_thing(scores(plain), scores(plain), targets, np.arange(20))[0] is True


def test_images_that_are_lost_and_won_by_chance_do_not_count():
    targets = np.repeat(np.arange(10), 20)
    plain, mirrored = np.ones(200), np.ones(200)
    plain[:80:10] = 0  # eight that only the mirrored ones have right
    mirrored[1:140:10] = 0  # and fourteen that only the plain ones have
    alike, why = same_thing(scores(plain), scores(mirrored), targets, np.arange(10))
    assert alike
    assert why.endswith("the incumbent loses 14 when they are mirrored and wins 8")
    mirrored[2:200:10] = 0
    assert not same_thing(scores(plain), scores(mirrored), targets, np.arange(10))[0]
