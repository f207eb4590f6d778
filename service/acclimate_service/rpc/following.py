"""Keeping up with the store: who may come in, and which version answers under which name.

They are followed apart, and so are the store's files. A candidate may take seconds to load and
a bucket half a minute to say no, and in that time a revoked token must not stay good, nor a
store that went away be told as in reach. Aliases are moved beside all that: see ``moves``.
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
        # A probe that hangs holds its thread, and only its own.
        self._rows = Lane("rows probe", threads=1, waiting=0)
        self._files = Lane("files probe", threads=1, waiting=0)
        self._files_away = ""  # why, if they are
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin."""
        followed = (self._look(), self._look_for_files(), self._follow())
        self._tasks = {asyncio.create_task(one) for one in followed}

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
        self._rows.close()
        self._files.close()
        return bool(tasks)

    async def _look(self) -> None:
        """Learn who may come in, and say so when the store is gone or back."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await _answered(self._rows, self._store.ping_rows)
                await self._keyring.catch_up()
                await self._denials.flush()
            except (StoreUnavailable, Overloaded, TimeoutError) as error:
                away = _said(error)
            else:
                away = self._files_away
            await self._health.set_stored(not away, why=away)

    async def _look_for_files(self) -> None:
        """See whether the store's files are in reach; what needs rows alone goes on meanwhile."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await _answered(self._files, self._store.blobs.ping)
            except (StoreUnavailable, Overloaded, TimeoutError) as error:
                self._files_away = _said(error)
            else:
                self._files_away = ""

    async def _follow(self) -> None:
        """Have the moves of aliases made here, and follow rollouts."""
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


async def _answered(lane: Lane, ping: Callable[[], None]) -> None:
    """Have *ping* return within the time that the store has to answer."""
    async with asyncio.timeout(PROBE_SECONDS):
        await lane.run(ping)


def _said(error: Exception) -> str:
    return str(error) or "it does not answer"
