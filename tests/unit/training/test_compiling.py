"""torch.compile in training: when, and what becomes of a job where it fails.

On the CPU, with backends that compute as PyTorch does without compiling; what the real one
makes on a GPU is in tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.training import tiny
from torch._dynamo.backends.registry import lookup_backend

from acclimate_service.domain.job import EventKind
from acclimate_service.training.auto import adapt
from acclimate_service.training.candidate import Candidate, Effort
from acclimate_service.training.compiling import PAYS_FROM, Compiling
from acclimate_service.training.interpolate import Tolerance


class Backend:
    """Counts what it compiles, and breaks where it is told to."""

    def __init__(self, inner: str = "eager", *, breaks: Callable[..., Any] | None = None) -> None:
        self.sizes: list[int] = []
        self._inner = lookup_backend(inner)
        self._breaks = breaks

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        self.sizes.append(max(len(x) for x in inputs if x.ndim == 4 and not x.requires_grad))
        made = self._inner(graph, inputs)
        return made if self._breaks is None else self._breaks(made)


@pytest.fixture(autouse=True)
def _forget_what_others_compiled():
    torch.compiler.reset()


def learn(backend: Backend | None, strategy: str = "tail", **changes: Any) -> Candidate:
    policy = Compiling(device="cpu", pays_from=0, backend=backend) if backend else Compiling()
    return tiny.learn(strategy, compiling=policy, **changes)


def assert_same(one: Candidate, other: Candidate, *, atol: float = 0.0) -> None:
    assert one.state.keys() == other.state.keys()
    for name, tensor in one.state.items():
        assert torch.allclose(tensor, other.state[name], rtol=0, atol=atol), name


# ── when ─────────────────────────────────────────────────────────────────────


def test_it_pays_from_as_many_images_as_were_measured():
    assert PAYS_FROM == 250_000


@pytest.mark.parametrize(
    ("changes", "compiles"),
    [
        ({}, True),
        ({"images": PAYS_FROM - 1}, False),
        ({"gradual": True}, False),
        ({"stages": 0}, None),
        ({"device": "cpu"}, None),
    ],
)
def test_what_is_compiled_is_stages_on_cuda_over_enough_images(changes, compiles):
    given = {"device": "cuda", "images": PAYS_FROM, "stages": 4, "gradual": False} | changes
    decided = Compiling().decide(**given)
    assert (decided and decided[0]) is compiles


def test_replayed_images_count_and_the_numbers_are_told():
    backend, diary = Backend(), tiny.Diary()
    stock = tiny.target_stock()  # 8 steps of 8 new and 8 replayed images
    learn(backend, stock=stock, epochs=2, on_event=diary)
    assert "tail is compiled: 256 images are to be shown, and compiling pays from 0 on" in (
        diary.messages(EventKind.DECISION)
    )
    policy = Compiling(device="cpu", pays_from=257, backend=backend)
    tiny.learn("tail", stock=stock, epochs=2, on_event=diary, compiling=policy)
    assert any(
        said.startswith("tail is not compiled: 256 images")
        for said in diary.messages(EventKind.DECISION)
    )
    assert len(backend.sizes) == 1


def test_a_resumed_job_compiles_as_it_would_have():
    class Kept(dict):  # type: ignore[type-arg]
        def load(self, key):
            return self.get(key)

        def save(self, key, summary, state):
            self[key] = summary, state

    def adapted(kept: Kept) -> tuple[list[str], dict[str, torch.Tensor]]:
        diary, backend = tiny.Diary(), Backend()
        policy = Compiling(device="cpu", pays_from=0, backend=backend)
        here = tiny.run(compiling=policy, on_event=diary)
        net = tiny.incumbent()
        outcome = adapt(
            net, stock=tiny.target_stock(), trunk=tiny.trunk(net, surroundings=here),
            strategy="tail", effort=Effort(epochs=2, batch_size=16, rate=tiny.RATE),
            tolerance=Tolerance(), run=here, checkpoints=kept,
        )  # fmt: skip
        assert backend.sizes == [16]
        told = [said for said in diary.messages(EventKind.DECISION) if "compiled: 2" in said]
        return told, outcome.state

    kept = Kept()
    told, state = adapted(kept)
    died = Kept({key: value for key, value in kept.items() if key.startswith("0-")})
    told_again, state_again = adapted(died)
    assert len(told) == 1
    assert told == told_again
    assert all(torch.equal(tensor, state_again[name]) for name, tensor in state.items())


# ── compiled ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strategy", ["tail+lwf+held", "full+l2sp+bn-updated"])
def test_compiled_steps_end_where_plain_ones_do(strategy):
    backend = Backend("aot_eager")
    assert_same(learn(backend, strategy), learn(None, strategy), atol=1e-4)
    assert backend.sizes == [16]


def test_a_short_last_batch_is_not_compiled_for():
    stock = tiny.target_stock(per_label=19)  # 76 images, 8 a step: the tenth step has 4
    backend = Backend()
    assert_same(learn(backend, stock=stock), learn(None, stock=stock))
    assert backend.sizes == [16]


def test_the_networks_tensors_keep_the_librarys_names():
    net = tiny.incumbent()
    names, kinds = set(net.state_dict()), [type(module) for module in net.modules()]
    learn(Backend(), net=net)
    assert set(net.state_dict()) == names
    assert [type(module) for module in net.modules()] == kinds


def test_the_same_seed_gives_the_same_weights_compiled():
    one, again = (
        learn(Backend("aot_eager"), net=tiny.incumbent(dropout=0.3), seed=3) for _ in range(2)
    )
    assert_same(one, again)


def test_a_second_trial_over_the_same_stages_needs_no_second_compiling():
    backend, net = Backend(), tiny.incumbent()
    for strategy in ("tail", "tail+held"):
        learn(backend, strategy, net=net)
    assert backend.sizes == [16]


# ── where it fails ───────────────────────────────────────────────────────────


def no_compiler(_made: Any) -> Any:
    raise RuntimeError("Failed to find C compiler")


def no_memory(made: Any) -> Any:
    def run(*inputs: Any) -> Any:
        made(*inputs)  # has moved BatchNorm's statistics and drawn random numbers
        raise torch.OutOfMemoryError("no memory left")

    return run


def no_way_back(made: Any) -> Any:
    def broken(_grad: torch.Tensor) -> None:
        raise RuntimeError("no kernel for the way back")

    def run(*inputs: Any) -> Any:
        outputs = made(*inputs)
        outputs[0].register_hook(broken)
        return outputs

    return run


@pytest.mark.parametrize(
    ("breaks", "why"),
    [
        (no_compiler, "RuntimeError: Failed to find C compiler"),
        (no_memory, "OutOfMemoryError: no memory left"),
        (no_way_back, "RuntimeError: no kernel for the way back"),
    ],
)
def test_what_cannot_be_compiled_is_trained_as_if_it_had_never_been_tried(breaks, why):
    backend, diary = Backend(breaks=breaks), tiny.Diary()
    strategy = "tail+bn-updated"  # whose statistics a failed step could have moved
    failed = learn(backend, strategy, net=tiny.incumbent(dropout=0.3), on_event=diary)
    assert_same(failed, learn(None, strategy, net=tiny.incumbent(dropout=0.3)))
    (said,) = diary.messages(EventKind.WARNING)
    assert "goes on uncompiled, from the same weights" in said
    assert why in said
    assert failed.micro_batch == 16
    assert backend.sizes == [16]  # and is not tried again at the next step


def test_a_pass_that_cannot_be_compiled_whole_is_not_compiled_in_parts():
    net, backend, diary = tiny.incumbent(), Backend(), tiny.Diary()
    net.head.register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    learn(backend, net=net, on_event=diary)
    (said,) = diary.messages(EventKind.WARNING)
    assert "goes on uncompiled" in said
    assert backend.sizes == []


def test_it_is_compiled_for_what_fits_the_memory():
    def starving(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled() and len(inputs[0]) > 5:
            raise torch.OutOfMemoryError("no memory left")

    backend, net = Backend(), tiny.incumbent()
    net.head.register_forward_pre_hook(starving)
    parts = learn(backend, net=net)
    assert parts.micro_batch == 4
    assert backend.sizes == [4]
    assert_same(parts, learn(None), atol=2e-3)


def test_memory_that_runs_out_later_has_it_compiled_for_less():
    calls = []

    def late(made: Any) -> Any:
        def run(*inputs: Any) -> Any:
            calls.append(1)
            if len(calls) == 6:
                raise torch.OutOfMemoryError("no memory left")
            return made(*inputs)

        return run

    backend, diary = Backend(breaks=late), tiny.Diary()
    parts = learn(backend, on_event=diary)
    assert parts.micro_batch == 8
    assert backend.sizes == [16, 8]
    assert_same(parts, learn(None), atol=2e-3)
    compiled = [said for said in diary.messages(EventKind.DECISION) if "is compiled: the" in said]
    assert [said.split(":")[0] for said in compiled] == [
        "the pass of 16 images is compiled",
        "the pass of 8 images is compiled",
    ]
