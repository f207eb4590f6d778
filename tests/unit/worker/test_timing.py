"""Timing: what else runs on the machine must not decide against a candidate."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import pytest
from onnx import TensorProto, helper

from acclimate_service.domain.ceilings import costs
from acclimate_service.domain.evidence import Evidence, FileFacts, Paired
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.verdict import Decision
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution
from acclimate_service.worker.timing import (
    ALONE,
    SITTINGS,
    clock_of,
    equalled,
    milliseconds,
    same_work,
)

IMAGE = np.zeros((4, 4, 3), np.uint8)


class Machine:
    """A clock, and neighbours that take it over for a while now and then."""

    def __init__(self, seed: int, *, busy: float) -> None:
        self._generator = np.random.default_rng(seed)
        self._busy = busy
        self._slow = False
        self.now = 0.0

    def spend(self, seconds: float) -> None:
        if self._generator.random() < 0.3:
            self._slow = self._generator.random() < self._busy
        noise = 1 + 0.1 * self._generator.random()
        self.now += seconds * noise * (self._generator.uniform(3, 8) if self._slow else 1)


class Timed:
    """A file that needs so many seconds for an image."""

    def __init__(self, machine: Machine, seconds: float) -> None:
        self._machine, self._seconds = machine, seconds

    def run(self, *_: Any) -> None:
        self._machine.spend(self._seconds)


def ratio(seed: int, *, busy: float, slower: float) -> float:
    """Candidate over incumbent, as measured on a machine that is busy for that share of time."""
    machine = Machine(seed, busy=busy)
    files = [cast("Classifier", Timed(machine, s)) for s in (0.010, 0.010 * slower)]
    old, new = milliseconds(files, IMAGE, clock=lambda: machine.now)
    return new / old


@pytest.mark.parametrize("busy", [0.0, 0.3, 0.6])
def test_a_busy_machine_does_not_make_an_equal_file_slower(busy: float) -> None:
    worst = max(ratio(seed, busy=busy, slower=1.0) for seed in range(200))
    assert worst <= GuardPolicy.preset("strict").latency_ratio_limit


@pytest.mark.parametrize("busy", [0.0, 0.3, 0.6])
def test_a_file_that_is_three_times_slower_is_seen_on_a_busy_machine(busy: float) -> None:
    least = min(ratio(seed, busy=busy, slower=3.0) for seed in range(200))
    assert least > GuardPolicy().latency_ratio_limit


class Neighbour:
    """A clock, and another program that takes nine tenths of the machine until it has ended.

    It takes them from the one file only, as a barrier for each of many nodes does.
    """

    def __init__(self, runs: float) -> None:
        self.now, self.runs, self.rests = 0.0, runs, 0

    def file(self, seconds: float, *, suffers: bool) -> Classifier:
        return cast("Classifier", Beside(self, seconds, suffers=suffers))

    def rest(self, seconds: float) -> None:
        self.now += seconds
        self.rests += 1


class Beside:
    """A file that needs so many seconds for an image, ten times as many beside a neighbour."""

    def __init__(self, machine: Neighbour, seconds: float, *, suffers: bool) -> None:
        self._machine, self._seconds, self._suffers = machine, seconds, suffers

    def run(self, *_: Any) -> None:
        busy = self._suffers and self._machine.now < self._machine.runs
        self._machine.now += self._seconds * (10 if busy else 1)


def beside(neighbour: Neighbour, *, slower: float) -> float:
    """Variant over fp32, as measured while a neighbour runs."""
    files = [
        neighbour.file(0.010, suffers=False),
        neighbour.file(0.010 * slower, suffers=True),
    ]
    fp32, variant = milliseconds(
        files, IMAGE, ratio=2.0, clock=lambda: neighbour.now, rest=neighbour.rest
    )
    return variant / fp32


def test_who_was_too_slow_is_measured_again_before_it_is_refused() -> None:
    whole_sitting = Neighbour(runs=5.0)
    assert beside(whole_sitting, slower=0.6) == pytest.approx(0.6)
    assert whole_sitting.rests == 1


def test_who_is_fast_enough_is_measured_once() -> None:
    nobody = Neighbour(runs=0.0)
    assert beside(nobody, slower=1.9) == pytest.approx(1.9)
    assert nobody.rests == 0


def test_who_is_too_slow_is_so_at_every_sitting() -> None:
    nobody = Neighbour(runs=0.0)
    assert beside(nobody, slower=2.1) == pytest.approx(2.1)
    assert nobody.rests == SITTINGS - 1


def test_a_neighbour_who_does_not_leave_is_not_waited_for_for_ever() -> None:
    staying = Neighbour(runs=1e9)
    assert beside(staying, slower=0.6) == pytest.approx(6)
    assert staying.rests == SITTINGS - 1


class Run:
    def __init__(self, execution: Execution) -> None:
        self.execution = execution


@pytest.mark.parametrize(
    ("execution", "clock"),
    [
        (ALONE, time.thread_time),
        (Execution.for_throughput(8), time.thread_time),  # called from one thread
        (Execution.for_latency(8), time.perf_counter),
        (Execution.for_gpu(), time.perf_counter),
    ],
)
def test_who_works_alone_is_timed_by_a_clock_that_stands_while_others_have_the_core(
    execution: Execution, clock: Any
) -> None:
    assert clock_of([cast("Classifier", Run(ALONE)), cast("Classifier", Run(execution))]) is clock


def file(*operators: str, weight: float = 1.0) -> bytes:
    """An ONNX file with these operators, one after the other, and one weight."""
    names = [f"x{place}" for place in range(len(operators) + 1)]
    nodes = [
        helper.make_node(operator, [names[place], "w"], [names[place + 1]])
        for place, operator in enumerate(operators)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
        for name in (names[0], names[-1])
    ]
    weights = [helper.make_tensor("w", TensorProto.FLOAT, [1], [weight])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    made: bytes = helper.make_model(graph).SerializeToString()
    return made


def test_files_of_one_graph_do_the_same_work_whatever_their_weights() -> None:
    assert same_work(file("Mul", "Add"), file("Mul", "Add", weight=2.0))
    assert not same_work(file("Mul", "Add"), file("Mul", "Add", "Add"))
    assert not same_work(file("Mul"), file("Add"))


def test_the_same_work_takes_the_same_time() -> None:
    assert equalled([12.0, 31.0]) == [12.0, 12.0]
    assert equalled([None, None]) == [None, None]


def test_the_ratio_decides() -> None:
    nothing = np.zeros((0, 2))
    empty = Paired(name="t", labels=np.zeros(0, int), incumbent=nothing, candidate=nothing)

    def decision(milliseconds: float) -> Decision:
        evidence = Evidence(
            source=None,
            target=empty,
            incumbent_file=FileFacts(bytes=10, milliseconds=10),
            candidate_file=FileFacts(bytes=10, milliseconds=milliseconds),
        )
        return costs(GuardPolicy(), evidence)[1].decision

    assert decision(19) is Decision.ACCEPT
    assert decision(21) is Decision.REJECT
