from __future__ import annotations

import asyncio
import queue

import pytest

from acclimate_service.inference import huge_pages, loading
from acclimate_service.inference.loading import Loading

SECONDS = 20.0


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> queue.SimpleQueue[int]:
    """What was loaded when memory was put onto huge pages, each time that it was."""
    found: queue.SimpleQueue[int] = queue.SimpleQueue()
    monkeypatch.setattr(loading, "QUIET_SECONDS", 0.5)
    monkeypatch.setattr(loading, "GATHER_SECONDS", 0.1)
    return found


def test_memory_goes_onto_huge_pages_once_nothing_was_loaded_for_a_while_and_then_again(
    gathered: queue.SimpleQueue[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    monkeypatch.setattr(huge_pages, "gather", lambda: gathered.put(len(loads)))

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
    monkeypatch.setattr(huge_pages, "gather", lambda: gathered.put(0))
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
