from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import pytest

from acclimate_service.inference import huge_pages, loading
from acclimate_service.inference.loading import ABREAST, Loading

SECONDS = 20.0


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have memory put onto huge pages soon after a load."""
    monkeypatch.setattr(loading, "QUIET_SECONDS", 0.5)
    monkeypatch.setattr(loading, "GATHER_SECONDS", 0.1)


@pytest.fixture
def gathered() -> queue.SimpleQueue[int]:
    """What was loaded when memory was put onto huge pages, each time that it was."""
    return queue.SimpleQueue()


def test_memory_goes_onto_huge_pages_once_nothing_was_loaded_for_a_while_and_then_again(
    gathered: queue.SimpleQueue[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    monkeypatch.setattr(huge_pages, "gather", lambda going: gathered.put(len(loads)))

    async def live() -> list[int]:
        threads = Loading(nice=0)
        for number in range(3):
            await threads.run(lambda: loads.append(number), prompt=False)  # noqa: B023  awaited
            await asyncio.sleep(0.01)
        found = [await asyncio.to_thread(gathered.get, timeout=SECONDS) for _ in range(2)]
        await threads.close()
        return found

    assert asyncio.run(live()) == [3, 3]


def test_a_load_that_ends_after_the_end_has_nothing_put_onto_huge_pages(
    gathered: queue.SimpleQueue[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "gather", lambda going: gathered.put(0))
    monkeypatch.setattr(loading, "QUIET_SECONDS", 0.0)

    async def live() -> None:
        threads = Loading(nice=0)
        load = asyncio.create_task(threads.run(lambda: None, prompt=True))
        await asyncio.sleep(0)  # it is under way
        await threads.close()
        await load
        await asyncio.sleep(0.05)

    asyncio.run(live())
    assert gathered.empty()


def test_a_load_that_begins_meanwhile_stops_what_moves_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, stopped = threading.Event(), threading.Event()

    def gather(going: Callable[[], bool]) -> None:
        began.set()
        ends = time.monotonic() + SECONDS
        while going() and time.monotonic() < ends:
            time.sleep(0.01)
        if not going():
            stopped.set()

    monkeypatch.setattr(huge_pages, "gather", gather)
    monkeypatch.setattr(loading, "GATHER_SECONDS", SECONDS)

    async def live() -> None:
        threads = Loading(nice=0)
        await threads.run(lambda: None, prompt=False)
        assert await asyncio.to_thread(began.wait, SECONDS)
        # It sees to it while it runs: it ends only once the other has stopped.
        assert await threads.run(lambda: stopped.wait(SECONDS / 2), prompt=True)
        await threads.close()

    asyncio.run(live())


def test_while_memory_is_being_moved_no_second_round_queues_up_behind_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds: queue.SimpleQueue[int] = queue.SimpleQueue()
    go_on = threading.Event()

    def gather(_: Callable[[], bool]) -> None:
        rounds.put(1)
        assert go_on.wait(SECONDS)

    monkeypatch.setattr(huge_pages, "gather", gather)
    monkeypatch.setattr(loading, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(loading, "GATHER_SECONDS", 0.02)

    async def live() -> int:
        threads = Loading(nice=0)
        await threads.run(lambda: None, prompt=False)
        await asyncio.to_thread(rounds.get, timeout=SECONDS)
        await asyncio.sleep(0.3)
        waiting = threads._moving._work_queue.qsize()
        go_on.set()
        await asyncio.to_thread(rounds.get, timeout=SECONDS)  # it goes on after that
        await threads.close()
        return waiting

    assert asyncio.run(live()) == 0


@pytest.mark.parametrize("prompt", [False, True])
def test_loads_that_never_end_make_way_for_others_after_a_while(
    monkeypatch: pytest.MonkeyPatch, prompt: bool
) -> None:
    monkeypatch.setattr(loading, "HANGS_SECONDS", 0.2)
    may_end = threading.Event()

    async def live() -> tuple[str, int]:
        threads = Loading(nice=0)
        hanging = [
            asyncio.create_task(threads.run(lambda: may_end.wait(SECONDS), prompt=prompt))
            for _ in range(ABREAST)
        ]
        await asyncio.sleep(0)
        loaded = await asyncio.wait_for(threads.run(lambda: "the fifth", prompt=prompt), SECONDS)
        still = sum(not one.done() for one in hanging)
        may_end.set()
        await asyncio.gather(*hanging)
        await threads.close()
        return loaded, still

    assert asyncio.run(live()) == ("the fifth", ABREAST)


def test_no_more_load_at_once_than_there_are_turns_though_a_caller_stops_waiting() -> None:
    inside, most, may_end = 0, 0, threading.Event()
    lock = threading.Lock()

    def load() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        may_end.wait(SECONDS)
        with lock:
            inside -= 1

    async def live() -> None:
        threads = Loading(nice=0)
        loads = [asyncio.create_task(threads.run(load, prompt=False)) for _ in range(3 * ABREAST)]
        await asyncio.sleep(0.1)
        for gone in loads[:ABREAST]:
            gone.cancel()
        await asyncio.sleep(0.1)
        may_end.set()
        await asyncio.gather(*loads, return_exceptions=True)
        await threads.close()

    asyncio.run(live())
    assert most == ABREAST


def test_where_a_sandbox_refuses_other_priorities_versions_are_loaded_and_freed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: int) -> NoReturn:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    freed = threading.Event()

    async def live() -> str:
        threads = Loading(nice=10)
        loaded = await threads.run(lambda: "a version", prompt=False)
        threads.free(freed.set)
        await threads.close()
        return loaded

    assert asyncio.run(live()) == "a version"
    assert freed.is_set()
