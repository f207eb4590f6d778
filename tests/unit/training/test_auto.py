from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tests.unit.training import tiny

from acclimate_service.domain.errors import TrainingDiverged
from acclimate_service.domain.job import EventKind, Phase
from acclimate_service.training import auto, trial
from acclimate_service.training.auto import adapt
from acclimate_service.training.candidate import Effort
from acclimate_service.training.dataset import Listed, prepare
from acclimate_service.training.diagnosis import Failure
from acclimate_service.training.finetune import tune
from acclimate_service.training.interpolate import Tolerance
from acclimate_service.training.measure import evaluate
from acclimate_service.training.strategies import STRATEGIES


class Shelf:
    """Checkpoints that go through JSON, as a store's would."""

    def __init__(self):
        self.kept = {}

    def load(self, key):
        found = self.kept.get(key)
        return None if found is None else (json.loads(found[0]), dict(found[1]))

    def save(self, key, summary, state):
        self.kept[key] = json.dumps(summary), {name: t.clone() for name, t in state.items()}


def run_engine(
    net=None, *, stock=None, strategy="auto", epochs=4, rate=tiny.RATE, diary=None, **changes
):
    net = net or tiny.incumbent()
    run = tiny.run(on_event=diary or tiny.Diary(), **changes.pop("run", {}))
    settings = {"tolerance": Tolerance(), **changes}
    return adapt(
        net,
        stock=stock or tiny.target_stock(),
        trunk=tiny.trunk(net, surroundings=run),
        strategy=strategy,
        effort=Effort(epochs=epochs, batch_size=16, rate=rate),
        run=run,
        **settings,
    )


def accuracy(net, pictures):
    return evaluate(tiny.trunk(net), Listed(pictures), boundary=0, run=tiny.run()).accuracy


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(t, two[n]) for n, t in one.items())


def test_auto_gains_on_the_target_and_keeps_the_source():
    net = tiny.incumbent()
    outcome = run_engine(net)
    assert outcome.trials[0].candidate.strategy == "head"
    assert accuracy(net, tiny.Pictures([20] * 4, seed=9, dark=True)) > 0.9
    assert accuracy(net, tiny.Pictures([20] * 4, seed=8)) > 0.95
    assert same(outcome.state, net.state_dict())


def test_auto_says_what_it_tries_and_takes_and_why():
    diary = tiny.Diary()
    outcome = run_engine(diary=diary)
    told = diary.messages(EventKind.DECISION)
    assert told[0] == "trying head: the least that can move"
    assert told[-1].startswith(f"took {outcome.trial.candidate.strategy} at ")
    assert "gain to expect on the target" in told[-1]


def test_no_more_stages_are_tried_once_the_head_alone_is_good_enough():
    same_camera = tiny.Pictures([10] * 4, seed=6)
    stock = tiny.target_stock(train=same_camera, select=tiny.Pictures([15] * 4, seed=7))
    diary = tiny.Diary()
    outcome = run_engine(stock=stock, diary=diary)
    assert len(outcome.trials) == 1
    assert outcome.trial.blend.alpha == 0  # nothing to gain: the incumbent itself
    why = "tries no more: the head alone is right on 60 of 60 select images"
    assert any(text.startswith(why) for text in diary.messages(EventKind.DECISION))


def test_what_only_harms_the_target_leaves_the_incumbent():
    wrong = tiny.Pictures([10] * 4, seed=6, flipped=1.0)
    stock = tiny.target_stock(train=wrong, select=tiny.Pictures([15] * 4, seed=7), replay=None)
    net = tiny.incumbent()
    run_engine(net, stock=stock, strategy="tail")
    assert same(net.state_dict(), tiny.incumbent_state())


def test_forgetting_is_named_and_answered_by_blending_back():
    diary = tiny.Diary()
    net = tiny.incumbent()
    stock = dataclasses.replace(tiny.target_stock(), replay=None)
    outcome = run_engine(net, stock=stock, strategy="full", epochs=8, diary=diary)
    last = outcome.trials[-1]
    assert last.failed(Failure.FORGETTING)
    assert last.blend.alpha < 1
    assert last.blend.chosen.source.drop <= 0.01
    assert any("forgetting: " in text for text in diary.messages(EventKind.WARNING))


def test_underfitting_is_named_and_answered_by_more_stages(monkeypatch):
    # A tail that cannot move is the surest plateau.
    stuck = dataclasses.replace(STRATEGIES["tail"], tail_rate=0.0, head_rate=0.0)
    monkeypatch.setitem(STRATEGIES, "tail", stuck)
    diary = tiny.Diary()
    stock = tiny.target_stock(select=tiny.Pictures([15] * 4, seed=4, dark=True, flipped=0.3))
    hard = dataclasses.replace(stock, train=tiny.target_stock(
        train=tiny.Pictures([10] * 4, seed=3, dark=True, flipped=0.5)).train)  # fmt: skip
    outcome = run_engine(stock=hard, diary=diary)
    assert outcome.trials[1].failed(Failure.UNDERFITTING)
    assert outcome.trials[2].candidate.strategy == "deep"
    assert any(
        "trying deep: the tail was underfitting" in text
        for text in diary.messages(EventKind.DECISION)
    )


def test_a_tail_that_finds_nothing_better_is_measured_at_the_probes_point_alone(monkeypatch):
    stuck = dataclasses.replace(STRATEGIES["tail"], tail_rate=0.0, head_rate=0.0)
    monkeypatch.setitem(STRATEGIES, "tail", stuck)
    monkeypatch.setattr(trial, "GOOD_ENOUGH", 2.0)
    outcome = run_engine()
    head, tail = outcome.trials[:2]
    assert tail.candidate.best_epoch == 0
    assert {point.alpha for point in tail.blend.curve} == {0.0, head.blend.alpha}
    assert outcome.trial is head


def test_forgetting_that_costs_too_much_gain_is_answered_by_holding_harder(monkeypatch):
    reckless = dataclasses.replace(
        STRATEGIES["tail"], share=1.0, replay_share=0.0, tail_rate=2e-3, ema=0.0
    )
    monkeypatch.setitem(STRATEGIES, "tail", reckless)
    monkeypatch.setattr(trial, "GOOD_ENOUGH", 2.0)
    diary = tiny.Diary()
    outcome = run_engine(diary=diary, epochs=6)
    assert outcome.trials[1].failed(Failure.FORGETTING)
    assert outcome.trials[2].candidate.strategy == "tail+held"
    assert any("blending it back gave up" in text for text in diary.messages(EventKind.DECISION))


def test_overfitting_is_answered_by_fewer_stages(monkeypatch):
    eager = dataclasses.replace(
        STRATEGIES["tail"], share=1.0, replay_share=0.0, ema=0.0, label_smoothing=0.0, cosine=False
    )
    monkeypatch.setitem(STRATEGIES, "tail", eager)
    few_and_wrong = tiny.Pictures([6] * 4, seed=13, dark=True, flipped=0.6)
    careless = Tolerance(drop=1.0, nll=100.0)  # or forgetting would be answered first
    outcome = run_engine(
        stock=tiny.target_stock(train=few_and_wrong), epochs=16, tolerance=careless
    )
    assert outcome.trials[1].failed(Failure.OVERFITTING)
    assert outcome.trials[2].candidate.strategy == "late"


def diverging(*args, **kwargs):
    if args[1].name != "head":
        raise TrainingDiverged("it diverged")
    return tune(*args, **kwargs)


def test_auto_ends_with_the_head_where_the_tail_diverges(monkeypatch):
    monkeypatch.setattr(auto, "tune", diverging)
    monkeypatch.setattr(trial, "GOOD_ENOUGH", 2.0)
    diary = tiny.Diary()
    outcome = run_engine(diary=diary)
    assert [trial.candidate.strategy for trial in outcome.trials] == ["head"]
    assert "gave up tail: it diverged" in diary.messages(EventKind.WARNING)


def test_a_strategy_that_was_asked_for_fails_where_it_diverges(monkeypatch):
    monkeypatch.setattr(auto, "tune", diverging)
    with pytest.raises(TrainingDiverged):
        run_engine(strategy="tail")


def test_a_resumed_job_repeats_nothing_and_ends_the_same():
    checkpoints, first, second = Shelf(), tiny.Diary(), tiny.Diary()
    whole = run_engine(checkpoints=checkpoints, diary=first)
    again = run_engine(checkpoints=checkpoints, diary=second)
    assert first.messages(EventKind.EPOCH)
    assert not second.messages(EventKind.EPOCH)
    assert same(whole.state, again.state)
    assert (again.chosen, again.reason) == (whole.chosen, whole.reason)


def test_a_job_that_died_after_the_probe_ends_as_it_would_have():
    checkpoints = Shelf()
    whole = run_engine(checkpoints=checkpoints)
    for key in [key for key in checkpoints.kept if key.startswith("1-")]:
        del checkpoints.kept[key]
    assert same(run_engine(checkpoints=checkpoints).state, whole.state)


def test_the_phases_are_entered_in_order():
    entered = []
    run_engine(strategy="tail", enter=lambda phase, detail: entered.append((phase, detail)))
    assert entered == [
        (Phase.PREPARING, "trunk"),
        (Phase.PROBING, "head"),
        (Phase.BLENDING, "head"),
        (Phase.TUNING, "block1,neck"),
        (Phase.BLENDING, "tail"),
    ]


def test_without_any_source_image_auto_goes_half_the_way_and_says_so():
    stock = dataclasses.replace(tiny.target_stock(), replay=None, source_select=None)
    diary = tiny.Diary()
    outcome = run_engine(stock=stock, diary=diary)
    assert outcome.trial.blend.alpha <= 0.5
    assert any("no source images" in text for text in diary.messages(EventKind.DECISION))


def test_without_select_images_the_head_is_taken():
    stock = dataclasses.replace(
        tiny.target_stock(train=tiny.Pictures([3] * 4, seed=3, dark=True)), select=None
    )
    outcome = run_engine(stock=stock)
    assert outcome.trial.candidate.strategy == "head"
    assert outcome.trial.blend.alpha <= 0.5


def test_a_bootstrap_needs_no_incumbent():
    net = tiny.network()
    outcome = run_engine(
        net, stock=tiny.source_stock(), strategy="full", epochs=8, rate=1, bootstrap=True
    )
    assert accuracy(net, tiny.Pictures([20] * 4, seed=8)) > 0.9
    assert [trial.candidate.strategy for trial in outcome.trials] == ["head", "full"]
    assert outcome.trial.blend.alpha > 0.5  # nothing is there to be careful of


def test_new_labels_are_learnt_and_old_ones_kept():
    net = tiny.incumbent()
    net.grow_head(1, generator=torch.Generator().manual_seed(0))
    counts = [8, 8, 8, 8, 12]
    stock = prepare(
        tiny.Pictures(counts, seed=3, new=4),
        labels=5,
        select=tiny.Pictures(counts, seed=4, new=4),
        replay=tiny.Pictures([10] * 4, seed=1),
        source_select=tiny.Pictures([25] * 4, seed=5),
    )
    run_engine(net, stock=stock, strategy="tail", epochs=8)
    assert accuracy(net, tiny.Pictures([0, 0, 0, 0, 20], seed=9, new=4)) > 0.8
    assert accuracy(net, tiny.Pictures([20] * 4, seed=8)) > 0.95


@pytest.mark.parametrize("case", ["three", "imbalance", "missing", "noise"])
def test_auto_copes_with_poor_training_images(case):
    train = {
        "three": tiny.Pictures([3] * 4, seed=3, dark=True),
        "imbalance": tiny.Pictures([40, 3, 3, 3], seed=3, dark=True),
        "missing": tiny.Pictures([10, 10, 10, 0], seed=3, dark=True),
        "noise": tiny.Pictures([15] * 4, seed=3, dark=True, flipped=0.1),
    }[case]
    net = tiny.incumbent()
    before = accuracy(net, tiny.Pictures([20] * 4, seed=9, dark=True))
    run_engine(net, stock=tiny.target_stock(train=train))
    assert accuracy(net, tiny.Pictures([20] * 4, seed=9, dark=True)) >= before + 0.2
    assert accuracy(net, tiny.Pictures([20] * 4, seed=8)) > 0.95
