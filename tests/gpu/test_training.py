"""The engine on a CUDA device: what differs there from the CPU."""

from __future__ import annotations

import time

import pytest
import torch
from tests.unit.training import tiny

from acclimate_service.domain.job import EventKind
from acclimate_service.domain.model import Architecture
from acclimate_service.training.auto import adapt
from acclimate_service.training.candidate import Candidate, Effort
from acclimate_service.training.compiling import Compiling
from acclimate_service.training.dataset import Listed
from acclimate_service.training.device import choose_device
from acclimate_service.training.finetune import tune
from acclimate_service.training.interpolate import Tolerance
from acclimate_service.training.measure import evaluate
from acclimate_service.training.network import build
from acclimate_service.training.objective import Objective
from acclimate_service.training.optimiser import Optimiser
from acclimate_service.training.run import Run
from acclimate_service.training.strategies import parse

pytestmark = pytest.mark.gpu


def on_device() -> torch.device:
    return choose_device("cuda", threads=2)


def tuned(seed: int = 0, *, rate: float = tiny.RATE, **surroundings: object) -> Candidate:
    run = tiny.run(seed, device=on_device(), **surroundings)
    net = tiny.incumbent().to(run.device)
    return tune(
        net, parse("tail"), start={}, stock=tiny.target_stock(),
        trunk=tiny.trunk(net, surroundings=run),
        effort=Effort(epochs=3, batch_size=16, rate=rate), run=run,
    )  # fmt: skip


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
    one, two = tuned().state, tuned().state
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_compiled_steps_learn_what_plain_ones_do_and_repeat_themselves() -> None:
    diary = tiny.Diary()
    policy = Compiling(pays_from=0)
    plain = tuned(rate=1)
    one, two = (tuned(rate=1, compiling=policy, on_event=diary) for _ in range(2))
    assert not diary.messages(EventKind.WARNING)  # it did not go on uncompiled
    assert sum("is compiled: the first" in m for m in diary.messages(EventKind.DECISION)) == 2
    assert all(torch.equal(tensor, two.state[name]) for name, tensor in one.state.items())
    assert one.state.keys() == plain.state.keys()
    for found, expected in zip(one.history, plain.history, strict=True):
        assert abs(found.train_loss - expected.train_loss) < 0.05  # bfloat16 has three digits
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=0.1)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto"])
def test_a_real_network_takes_the_same_steps_again_to_the_bit(name: str) -> None:
    device = on_device()
    torch.use_deterministic_algorithms(True)  # an operation that cannot raises
    images = torch.randn(24, 3, 160, 160, generator=torch.Generator().manual_seed(1)).to(device)
    labels = (torch.arange(24) % 4).to(device)

    def stepped() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        network = build(Architecture(library="timm", name=name), labels=4, size=160).to(device)
        strategy = parse("full")
        objective = Objective(
            network, strategy, teacher=None, boundary=0, micro_batch=24,
            run=Run(clock=time.monotonic, device=device),
        )  # fmt: skip
        network.freeze_below(0)
        network.train()
        optimiser = Optimiser(network, strategy)
        for _ in range(3):
            objective.gradients(images, labels, new=24, remembered=None)
            optimiser.gradient_norm()
            optimiser.step(0.3)
        return {key: value.clone() for key, value in network.state_dict().items()}

    one, two = stepped(), stepped()
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


def test_a_step_that_outgrows_its_share_of_the_memory_goes_through_in_parts() -> None:
    device = choose_device("cuda", threads=2)
    total = torch.cuda.get_device_properties(device).total_memory
    told: list[str] = []
    run = Run(
        clock=time.monotonic, device=device, on_event=lambda _kind, said, _facts: told.append(said)
    )
    network = build(Architecture(library="timm", name="resnet18"), labels=4, size=224).to(device)
    network.freeze_below(0)
    network.train()
    objective = Objective(
        network, parse("full"), teacher=None, boundary=0, micro_batch=256, run=run
    )
    images, labels = (
        torch.randn(256, 3, 224, 224, device=device),
        torch.arange(256, device=device) % 4,
    )
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2e9 / total, device)
    try:
        loss, _ = objective.gradients(images, labels, new=256, remembered=None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert loss == pytest.approx(1.4, abs=0.8)
    assert objective.micro_batch < 256
    assert told
    assert all("out of memory" in message for message in told)
