from __future__ import annotations

import pytest

from acclimate_service.domain.errors import RateExceeded
from acclimate_service.rpc.rates import CALLERS, Meter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def spent(meter: Meter, caller: str) -> int:
    """How many requests *caller* gets through at once."""
    for count in range(10_000):
        try:
            meter.spend(caller, 1)
        except RateExceeded:
            return count
    raise AssertionError("there is no limit")


def test_a_caller_has_two_seconds_at_once_and_then_the_rate() -> None:
    clock = Clock()
    meter = Meter("requests", 10, clock)
    assert spent(meter, "ada") == 20
    clock.now += 1.0
    assert spent(meter, "ada") == 10
    clock.now += 3600.0
    assert spent(meter, "ada") == 20


def test_callers_do_not_share() -> None:
    meter = Meter("requests", 1, Clock())
    assert (spent(meter, "ada"), spent(meter, "bob")) == (2, 2)


def test_who_waits_as_long_as_told_is_let_in() -> None:
    clock = Clock()
    meter = Meter("requests", 3, clock)
    spent(meter, "ada")
    with pytest.raises(RateExceeded) as refused:
        meter.spend("ada", 1)
    clock.now += refused.value.retry_after
    meter.spend("ada", 1)


def test_a_large_message_is_taken_whole_and_waited_for_afterwards() -> None:
    clock = Clock()
    meter = Meter("uploaded bytes", 1000, clock)
    assert meter.pace("ada", 12_000) == pytest.approx(10.0, abs=0.01)
    with pytest.raises(RateExceeded):
        meter.spend("ada", 0)
    clock.now += 10.1
    meter.spend("ada", 0)


def test_without_a_rate_there_is_no_limit() -> None:
    meter = Meter("requests", None)
    for _ in range(1000):
        meter.spend("ada", 1e9)


def test_memory_does_not_grow_with_the_number_of_callers() -> None:
    meter = Meter("requests", 1, Clock())
    for number in range(CALLERS + 100):
        meter.spend(str(number), 1)
    assert len(meter._buckets) == CALLERS
