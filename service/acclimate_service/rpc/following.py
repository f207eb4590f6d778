"""Keeping up with the store: who may come in, and which version answers under which name.

The two are followed apart. A version may take minutes to load, and in that time a revoked
token must not stay good, nor a store that went away be told as in reach.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import structlog

from acclimate_service.domain.errors import Overloaded, StoreUnavailable
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.denials import Denials
from acclimate_service.rpc.health import Health
from acclimate_service.rpc.keyring import Keyring
from acclimate_service.rpc.served import Served
from acclimate_service.store import Store

PROBE_SECONDS: Final = 5.0  # in which a store that is in reach answers


class Following:
    """The tasks that look into the store every *interval* seconds. Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        served: Served,
        keyring: Keyring,
        denials: Denials,
        health: Health,
        interval: float,
    ) -> None:
        self._store = store
        self._served = served
        self._keyring = keyring
        self._denials = denials
        self._health = health
        self._interval = interval
        self._probe = Lane("probe", threads=1, waiting=0)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin."""
        self._tasks = {asyncio.create_task(self._look()), asyncio.create_task(self._follow())}

    async def until(self, stopped: asyncio.Task[Any]) -> None:
        """Wait until *stopped* is done.

        Raises:
            Exception: what ended one of the tasks before.
        """
        await asyncio.wait({stopped, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> bool:
        """End, and say whether it had begun; a second time does nothing."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._probe.close()
        return bool(tasks)

    async def _look(self) -> None:
        """Learn who may come in, and say so when the store is gone or back."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self._answered(self._store.ping_rows)
                await self._keyring.catch_up()
                await self._denials.flush()
                # Last: what needs rows alone goes on while the files are out of reach.
                await self._answered(self._store.blobs.ping)
            except (StoreUnavailable, Overloaded, TimeoutError) as error:
                await self._health.set_stored(False, why=str(error) or "it does not answer")
            else:
                await self._health.set_stored(True)

    async def _follow(self) -> None:
        """Make the moves of aliases here, and follow rollouts, for as long as loading takes."""
        behind = False
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self._served.catch_up()
            except (StoreUnavailable, Overloaded) as error:
                if not behind:  # told once, like the store that is gone
                    log = structlog.get_logger(__name__)
                    log.warning("aliases not followed", reason=error.reason, message=str(error))
                behind = True
            else:
                behind = False

    async def _answered(self, ping: Callable[[], None]) -> None:
        """Have *ping* return within the time that the store has to answer."""
        async with asyncio.timeout(PROBE_SECONDS):
            await self._probe.run(ping)
