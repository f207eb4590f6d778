from __future__ import annotations

import asyncio

import pytest

from acclimate_service.rpc import brake
from acclimate_service.rpc.brake import HELD_BYTES, LONGEST, REFUSALS, Brake


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_who_is_refused_now_and_then_is_told_at_once() -> None:
    clock = Clock()
    held = Brake(clock)
    for _ in range(100):
        clock.now += 2 / REFUSALS
        assert held.seconds("ipv4:10.0.0.1") == 0


@pytest.mark.parametrize("clients", [1, 16])
def test_who_asks_again_after_each_refusal_is_refused_no_faster_than_the_rate(clients: int) -> None:
    clock = Clock()
    held = Brake(clock)
    told = [clock.now] * clients  # when each of them hears of its refusal
    count = 0
    while (now := min(told)) < 130.0:
        clock.now = now
        told[told.index(now)] = now + 0.001 + held.seconds("ipv4:10.0.0.1")
        count += 1
    assert count <= REFUSALS * (30 + 2) + clients


def test_nobody_is_held_for_long_nor_long_after_a_flood() -> None:
    clock = Clock()
    held = Brake(clock)
    assert max(held.seconds("ipv4:10.0.0.1") for _ in range(100_000)) == LONGEST
    clock.now += 2 * LONGEST
    assert held.seconds("ipv4:10.0.0.1") == 0


def test_others_are_not_held_for_it() -> None:
    held = Brake(Clock())
    assert any(held.seconds("ipv4:10.0.0.1") for _ in range(1000))
    assert held.seconds("ipv4:10.0.0.2") == 0


def test_what_is_held_is_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brake, "HELD", 3)

    async def still_held(size: int) -> int:
        held = Brake(Clock())
        for _ in range(1000):
            held.seconds("ipv4:10.0.0.1")
        calls = [asyncio.create_task(held.hold("ipv4:10.0.0.1", size)) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting = [call for call in calls if not call.done()]
        for call in waiting:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert held._held == held._bytes == 0
        return len(waiting)

    assert asyncio.run(still_held(10)) == 3
    assert asyncio.run(still_held(HELD_BYTES // 2)) == 2
