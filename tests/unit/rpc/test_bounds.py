from __future__ import annotations

import asyncio
import threading

import pytest

from acclimate_service.domain.errors import Overloaded
from acclimate_service.rpc.bounds import Gate, Lane


def test_a_gate_refuses_the_one_too_many_and_takes_the_next_after_a_leave() -> None:
    gate = Gate("the pen", limit=2)
    with gate.enter():
        with gate.enter(), pytest.raises(Overloaded, match="the pen is full"), gate.enter():
            pass
        with gate.enter():
            assert gate.inside == 2
    assert gate.inside == 0


def test_a_gate_is_left_when_what_is_inside_fails() -> None:
    gate = Gate("the pen", limit=1)
    with pytest.raises(KeyError), gate.enter():
        raise KeyError
    assert gate.inside == 0


def test_a_lane_refuses_what_neither_runs_nor_fits_its_queue() -> None:
    async def scene() -> list[bool | BaseException]:
        lane = Lane("work", threads=1, waiting=1)
        hold = threading.Event()
        calls = [asyncio.create_task(lane.run(hold.wait, 5)) for _ in range(3)]
        await asyncio.sleep(0.05)
        hold.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        lane.close()
        return results

    first, second, third = asyncio.run(scene())
    assert (first, second) == (True, True)
    assert isinstance(third, Overloaded)


def test_a_waiting_call_whose_caller_left_is_never_run() -> None:
    async def scene() -> tuple[list[str], int]:
        lane = Lane("work", threads=1, waiting=4)
        ran: list[str] = []
        hold = threading.Event()
        first = asyncio.create_task(lane.run(hold.wait, 5))
        await asyncio.sleep(0.02)
        abandoned = asyncio.create_task(lane.run(ran.append, "abandoned"))
        await asyncio.sleep(0.02)
        abandoned.cancel()
        await asyncio.gather(abandoned, return_exceptions=True)
        hold.set()
        await first
        await lane.run(ran.append, "kept")
        lane.close()
        await asyncio.sleep(0.02)
        return ran, lane._gate.inside

    assert asyncio.run(scene()) == (["kept"], 0)


def test_an_error_on_the_thread_is_the_callers() -> None:
    async def scene() -> None:
        lane = Lane("work", threads=1, waiting=1)
        try:
            with pytest.raises(ZeroDivisionError):
                await lane.run(lambda: 1 / 0)
        finally:
            lane.close()

    asyncio.run(scene())
