"""The engine on a CUDA device: what differs there from the CPU."""

from __future__ import annotations

import pytest
import torch
from tests.unit.training import tiny

from acclimate_service.training.auto import adapt
from acclimate_service.training.candidate import Effort
from acclimate_service.training.dataset import Listed
from acclimate_service.training.finetune import tune
from acclimate_service.training.interpolate import Tolerance
from acclimate_service.training.measure import evaluate
from acclimate_service.training.optimiser import State
from acclimate_service.training.strategies import parse

pytestmark = pytest.mark.gpu


def on_device() -> torch.device:
    return torch.device("cuda:0")


def tuned(seed: int = 0) -> State:
    run = tiny.run(seed, device=on_device())
    net = tiny.incumbent().to(run.device)
    return tune(
        net, parse("tail"), start={}, stock=tiny.target_stock(),
        trunk=tiny.trunk(net, surroundings=run),
        effort=Effort(epochs=3, batch_size=16, rate=tiny.RATE), run=run,
    ).state  # fmt: skip


def test_auto_gains_on_the_target_and_keeps_the_source_in_bfloat16():
    run = tiny.run(device=on_device())
    net = tiny.incumbent().to(run.device)
    adapt(
        net, stock=tiny.target_stock(), trunk=tiny.trunk(net, surroundings=run), strategy="auto",
        effort=Effort(epochs=4, batch_size=16, rate=tiny.RATE), tolerance=Tolerance(), run=run,
    )  # fmt: skip
    trunk = tiny.trunk(net, surroundings=run)
    target, source = (
        evaluate(trunk, Listed(pictures), boundary=0, run=run).accuracy
        for pictures in (
            tiny.Pictures([20] * 4, seed=9, dark=True),
            tiny.Pictures([20] * 4, seed=8),
        )
    )
    assert target > 0.9
    assert source > 0.95


def test_the_trunk_is_computed_on_the_device_and_kept_in_float16_off_it():
    run = tiny.run(device=on_device())
    net = tiny.incumbent().to(run.device)
    source = Listed(tiny.Pictures([4] * 4, seed=0))
    trunk = tiny.trunk(net, surroundings=run)
    assert trunk.shelf(2).dtype == "float16"
    (scores,) = [evaluate(trunk, source, boundary=2, run=run)]
    on_cpu = tiny.incumbent()
    expected = evaluate(tiny.trunk(on_cpu), source, boundary=2, run=tiny.run())
    assert abs(scores.mean_nll - expected.mean_nll) < 0.05  # bfloat16 has three digits


def test_the_same_seed_gives_the_same_weights_on_one_kind_of_device():
    one, two = tuned(), tuned()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
