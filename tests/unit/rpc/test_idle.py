from __future__ import annotations

import asyncio
import gc

import pytest

from acclimate_service.domain.errors import ServerStopping
from acclimate_service.rpc.idle import Idle


def test_a_wait_under_way_and_one_that_begins_later_are_both_broken_off() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        idle = Idle()
        waiting = asyncio.create_task(idle.wait(forever()))
        await asyncio.sleep(0)
        idle.stop()
        for wait in (waiting, idle.wait(forever())):
            with pytest.raises(ServerStopping):
                await wait

    asyncio.run(run())
    gc.collect()  # a coroutine that nobody awaited warns here, and warnings are errors
