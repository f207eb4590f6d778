from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.unit.training import tiny

from acclimate_service.training.interpolate import (
    Blend,
    Point,
    Tolerance,
    blend,
    choose,
    merit,
    mix,
    past_the_best,
)
from acclimate_service.training.measure import Change, stand


def change(gain=0.0, *, images=200, lost=0, won=0, nll_rise=0.0, error=0.005):
    return Change(
        images=images, lost=lost, won=won or round(gain * images), nll_rise=nll_rise,
        nll_error=0.0, soft_drop=-gain, soft_error=error,
    )  # fmt: skip


def point(alpha, *, gain, drop=0.0, source=True, nll_rise=0.0):
    return Point(
        alpha=alpha,
        target=change(gain),
        target_accuracy=0.5 + gain,
        target_nll=1.0,
        source=change(-drop, lost=round(200 * drop), nll_rise=nll_rise) if source else None,
    )


def test_the_ends_of_the_line_are_exact():
    one, two = tiny.incumbent_state(), tiny.learn("full").state
    assert all(torch.equal(t, one[n]) for n, t in mix(one, two, 0.0).items())
    assert all(torch.equal(t, two[n]) for n, t in mix(one, two, 1.0).items())


def test_between_the_ends_lies_the_mean_and_no_negative_variance():
    one, two = tiny.incumbent_state(), tiny.learn("naive").state
    half = mix(one, two, 0.5)
    assert torch.allclose(half["fc.weight"], (one["fc.weight"] + two["fc.weight"]) / 2)
    assert half["stem.1.running_var"].min() > 0
    assert half["stem.1.num_batches_tracked"] == two["stem.1.num_batches_tracked"]


def test_the_gain_decides_where_the_source_stays_whole():
    curve = [point(a, gain=a * 0.1) for a in (0.0, 0.5, 1.0)]
    assert choose(curve, Tolerance())[0] == 1.0


def test_a_step_back_is_taken_where_the_end_forgets():
    curve = [point(0.0, gain=0), point(0.5, gain=0.08), point(1.0, gain=0.1, drop=0.05)]
    alpha, reason = choose(curve, Tolerance())
    assert alpha == 0.5
    assert "likely to stay within the limit" in reason


@pytest.mark.parametrize(("drop", "taken"), [(0.012, 1.0), (0.016, 0.5)])
def test_a_drop_that_is_likelier_to_pass_than_it_looks_counts_in_full(drop, taken):
    curve = [point(0.0, gain=0), point(0.5, gain=0.08), point(1.0, gain=0.1, drop=drop)]
    assert Tolerance().chance(curve[-1].source) < 0.5
    assert choose(curve, Tolerance())[0] == taken


def test_equal_points_go_to_the_smaller_step():
    curve = [point(0.0, gain=0), point(0.5, gain=0.1), point(1.0, gain=0.101)]
    assert choose(curve, Tolerance())[0] == 0.5


def test_where_no_image_tells_points_apart_the_loss_says_how_far_to_go():
    gains = {0.0: 0.0, 0.4: 0.1, 0.6: 0.101, 0.8: 0.101, 1.0: 0.101}
    losses = {0.0: 2.0, 0.4: 0.9, 0.6: 0.51, 0.8: 0.505, 1.0: 0.8}
    curve = [dataclasses.replace(point(a, gain=gains[a]), target_nll=losses[a]) for a in gains]
    assert choose(curve, Tolerance())[0] == 0.6


@pytest.mark.parametrize("images", [1, 3])
def test_one_image_more_is_no_reason_to_stop_short_of_a_lower_loss(images):
    gains = {0.0: 0.0, 0.4: 0.1 + images / 200, 0.8: 0.1, 1.0: 0.1}
    losses = {0.0: 2.0, 0.4: 0.26, 0.8: 0.17, 1.0: 0.15}
    curve = [dataclasses.replace(point(a, gain=gains[a]), target_nll=losses[a]) for a in gains]
    assert choose(curve, Tolerance())[0] == (1.0 if images == 1 else 0.4)


@pytest.mark.parametrize("far", [0.4, 1.0])
def test_of_few_images_no_loss_is_low_enough_for_a_point_that_answers_worse(far):
    gains = {0.0: 0.0, 0.7: 0.02, far: -0.004}
    curve = [
        Point(
            alpha=alpha, target=change(gains[alpha], images=20), target_accuracy=None,
            target_nll=2.0 - alpha if alpha == 0.7 else 1.0, source=change(),
        )
        for alpha in sorted(gains)
    ]  # fmt: skip
    assert choose(curve, Tolerance())[0] == 0.7


def test_one_image_more_is_no_reason_to_go_back():
    curve = [point(0.0, gain=0), point(0.2, gain=0.096), point(1.0, gain=0.1)]
    assert choose(curve, Tolerance())[0] == 1.0


def test_a_small_safe_gain_is_not_given_for_a_lower_loss_that_costs_the_source():
    near = dataclasses.replace(point(0.1, gain=0.004), target_nll=1.9)
    far = dataclasses.replace(point(1.0, gain=0.9, drop=0.5, nll_rise=5.0), target_nll=0.1)
    curve = [dataclasses.replace(point(0.0, gain=0), target_nll=2.0), near, far]
    assert choose(curve, Tolerance())[0] == 0.1


def test_the_incumbent_stays_where_nothing_gains():
    curve = [point(0.0, gain=0), point(0.5, gain=-0.01), point(1.0, gain=-0.1)]
    alpha, reason = choose(curve, Tolerance())
    assert alpha == 0.0
    assert "no step" in reason


def test_a_loss_that_rises_bars_a_point_whose_accuracy_still_holds():
    assert merit(point(1.0, gain=0.1, nll_rise=0.2), Tolerance()) == 0
    assert merit(point(1.0, gain=0.1, nll_rise=0.02), Tolerance()) > 0


@pytest.mark.parametrize("source_drop", [0.0, 0.005, 0.01, 0.02, 0.05])
def test_the_chance_to_pass_falls_with_the_drop(source_drop):
    here, further = (
        Tolerance().chance(change(-drop, lost=round(200 * drop)))
        for drop in (source_drop, source_drop + 0.01)
    )
    assert 1 > here > further > 0


def test_more_select_images_make_the_same_drop_of_nothing_surer():
    few, many = (Tolerance().chance(change(images=n, error=0.05 / n**0.5)) for n in (30, 3000))
    assert few < 0.8
    assert many > 0.99


def test_without_source_images_the_step_is_cautious_and_says_so():
    curve = [point(a, gain=a * 0.1, source=False) for a in (0.0, 0.4, 0.5, 0.8, 1.0)]
    alpha, reason = choose(curve, Tolerance())
    assert alpha == 0.5
    assert "no source images" in reason


@pytest.mark.parametrize("images", [1, 4, 41, 60, 1000])
def test_without_target_images_a_harmless_step_is_taken_however_few_the_source_has(images):
    def blind(alpha, *, drop=0.0, error=0.0):
        source = change(-drop, images=images, lost=round(images * drop), error=error)
        return dataclasses.replace(
            point(alpha, gain=0), target=None, target_accuracy=None, target_nll=None, source=source
        )

    harmless = [blind(0.0), blind(0.2, error=0.002), blind(0.4, error=0.004), blind(1.0)]
    assert choose(harmless, Tolerance())[0] == 0.4
    harmful = [blind(0.0), blind(0.2, drop=0.2, error=0.1), blind(0.4, drop=1.0, error=0.1)]
    assert choose(harmful, Tolerance())[0] == 0.0


def test_without_target_images_the_step_is_cautious_and_says_so():
    curve = [
        dataclasses.replace(point(a, gain=0), target=None, target_accuracy=None)
        for a in (0.0, 0.4, 0.8)
    ]
    alpha, reason = choose(curve, Tolerance())
    assert alpha == 0.4
    assert "no target-select images" in reason


def test_shorter_steps_are_not_measured_once_the_gain_falls():
    curve = [point(0.0, gain=0), point(0.8, gain=0.25), point(1.0, gain=0.3)]
    assert past_the_best(curve, Tolerance())


def test_shorter_steps_are_measured_where_no_image_tells_the_last_ones_apart():
    curve = [point(0.0, gain=0), point(0.8, gain=0.299), point(1.0, gain=0.3)]
    assert not past_the_best(curve, Tolerance())


def test_shorter_steps_are_measured_where_the_longest_forgets():
    curve = [point(0.0, gain=0), *(point(a, gain=a - 0.7, drop=0.0145) for a in (0.8, 1.0))]
    assert merit(curve[1], Tolerance()) < merit(curve[2], Tolerance()) - 0.01
    assert not past_the_best(curve, Tolerance())


def test_the_candidate_alone_says_nothing_of_shorter_steps():
    assert not past_the_best([point(0.0, gain=0), point(1.0, gain=-0.3)], Tolerance())
    assert not past_the_best([point(0.0, gain=0)], Tolerance())


def test_a_line_is_measured_from_the_incumbent_to_the_candidate_and_comes_back():
    net = tiny.incumbent()
    stock, trunk, run = tiny.target_stock(), tiny.trunk(net), tiny.run()
    before = stand(trunk, stock, boundary=0, run=run)
    candidate = tiny.learn("tail", net=net, stock=stock, epochs=6)
    found = blend(
        net, candidate, origin=tiny.incumbent_state(), before=before, stock=stock, trunk=trunk,
        tolerance=Tolerance(), run=run,
    )  # fmt: skip
    assert found.curve[0].alpha == 0.0
    assert found.curve[0].target == change(images=60, error=0.0)
    assert found.curve[-1].alpha == 1.0
    assert found.chosen.target is not None
    assert found.chosen.target.drop < -0.3
    assert all(torch.equal(t, net.state_dict()[n]) for n, t in found.state.items())
    again = Blend.resumed(found.summary(), found.state)
    assert again.summary() == found.summary()
    assert again.chosen == found.chosen


@pytest.mark.parametrize("strategy", ["tail", "head"])
def test_a_tails_line_is_measured_as_far_back_as_it_pays_and_a_heads_whole(strategy):
    net = tiny.incumbent()
    stock, trunk, run = tiny.target_stock(), tiny.trunk(net), tiny.run()
    before = stand(trunk, stock, boundary=0, run=run)
    candidate = tiny.learn(strategy, net=net, stock=stock, epochs=6)
    safe = Tolerance(drop=1.0, nll=100.0)
    short, whole = (
        blend(
            net, one, origin=tiny.incumbent_state(), before=before, stock=stock, trunk=trunk,
            tolerance=safe, run=run,
        )
        for one in (candidate, dataclasses.replace(candidate, stages=()))
    )  # fmt: skip
    measured = {point.alpha: point for point in whole.curve}
    assert all(measured[point.alpha] == point for point in short.curve)
    assert {0.0, 0.2, 0.4, 0.6, 0.8, 1.0} < measured.keys()
    assert (len(short.curve) < len(whole.curve)) == (strategy == "tail")
    assert short.alpha == whole.alpha


def test_a_point_that_answers_no_number_is_never_taken():
    net = tiny.incumbent()
    stock = tiny.target_stock()
    trunk = tiny.trunk(net)
    before = stand(trunk, stock, boundary=0, run=tiny.run())
    candidate = tiny.learn("tail", epochs=1)
    broken = {name: t * float("nan") if t.is_floating_point() else t
              for name, t in candidate.state.items()}  # fmt: skip
    found = blend(
        net, dataclasses.replace(candidate, state=broken), origin=tiny.incumbent_state(),
        before=before, stock=stock, trunk=trunk, tolerance=Tolerance(), run=tiny.run(),
    )  # fmt: skip
    assert found.alpha == 0.0
    assert found.curve[-1].target_accuracy == 0.0
