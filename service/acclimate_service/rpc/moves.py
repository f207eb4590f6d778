"""The moves of aliases that were made in the store, made here as well.

Models are followed side by side, a few at once, so that one whose version takes minutes
to load holds up no other. The moves of one model are made one after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterable

import structlog

from acclimate_service.domain.errors import AliasNotFound, Overloaded, ServiceError
from acclimate_service.domain.model import PRODUCTION
from acclimate_service.domain.names import AliasName, VersionName
from acclimate_service.inference.loading import Turns
from acclimate_service.rpc import loads
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.loads import Loads
from acclimate_service.rpc.metrics import Metrics
from acclimate_service.rpc.pointers import Pointers
from acclimate_service.store import Store

EAGER_SECONDS = 5.0  # for which a server that starts loads before it answers


class Moves:
    """What was read of moves, and is made of them. Belongs to one event loop.

    The store is called in *lane*.
    """

    def __init__(
        self, store: Store, *, lane: Lane, loads: Loads, pointers: Pointers, metrics: Metrics
    ) -> None:
        self._store = store
        self._lane = lane
        self._loads = loads
        self._pointers = pointers
        self._metrics = metrics
        self._marker: int | None = None  # the last move in the store that was read
        self._due: dict[str, set[AliasName]] = {}  # by model
        self._again: dict[AliasName, float] = {}  # what failed, and when to try once more
        self._at_work: dict[str, asyncio.Task[None]] = {}  # by model
        self._turns = Turns()
        self._eager_until = 0.0  # of ``time.monotonic``: how long a start loads
        self._early: set[asyncio.Task[None]] = set()  # loads that a start began
        self._begun = asyncio.Event()

    # ── what is due ──────────────────────────────────────────────────────────

    async def begin(self) -> None:
        """Have every alias point where it should, and load what there is room and time for.

        Raises:
            StoreUnavailable: the store is out of reach.
        """
        self._eager_until = time.monotonic() + EAGER_SECONDS
        moved = await self._read()
        production = {alias for alias in moved if alias.alias == PRODUCTION}
        for wave in (production, moved - production):  # of little room, production has the first
            self._start(wave)
            await asyncio.gather(*self._at_work.values())
        self._begun.set()

    async def look(self) -> None:
        """Read what was moved since the last time, and start to follow it.

        Raises:
            StoreUnavailable: the store is out of reach, or was for one of the moves that were
                started before: they are made at a later look.
            Exception: what else following raised.
        """
        await self._tell_turned()
        moved = await self._read()
        now = time.monotonic()
        again = [alias for alias, at in self._again.items() if at <= now]
        self._again |= dict.fromkeys(again, math.inf)  # until it has failed once more
        for task in self._start({*moved, *again}):
            task.result()

    def try_again(self, alias: AliasName) -> None:
        """Follow an alias once more after ``RETRY_SECONDS``, or when it was to be anyway."""
        self._again.setdefault(alias, time.monotonic() + loads.RETRY_SECONDS)

    async def find(self, alias: AliasName) -> str | None:
        """Where an alias points that is not known here: one made since the last look.

        Waits for a server that starts, which does not know of all yet, and for its first load.

        Raises:
            Overloaded: enough requests wait for it already.
            StoreUnavailable: the store is out of reach.
        """
        with self._loads.waiting(alias), contextlib.suppress(AliasNotFound):
            await self._begun.wait()
            await self._lane.run(self._store.registry.get_alias, alias)
            await self._follow(alias)
        return self._pointers.at(alias)

    async def serve(self, alias: AliasName, name: VersionName) -> None:
        """Have a version answer under *alias*: loaded first, unless nothing answers yet.

        Of many domains on one trunk a server that starts loads none before it is asked for,
        and of the others what it has room and time for.
        """
        if self._pointers.at(alias) is None:
            version = await self._lane.run(self._store.registry.get_version, name)
            tail = self._loads.shares(version) and alias.alias != PRODUCTION
            if tail or not self._begun.is_set():
                await self._pointers.point(alias, version, cold=True)
                if not tail:
                    await self._load_eagerly(alias, name)
                return
        with await self._loads.load(name) as handle:
            await self._pointers.point(alias, handle.details)

    async def close(self) -> None:
        """Follow no further."""
        tasks = [*self._at_work.values(), *self._early]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ── following ────────────────────────────────────────────────────────────

    async def _read(self) -> set[AliasName]:
        """What was moved since the last time."""
        moved, self._marker = await self._lane.run(self._store.registry.aliases_moved, self._marker)
        return set(moved)

    def _start(self, aliases: Iterable[AliasName]) -> list[asyncio.Task[None]]:
        """Have aliases followed, and those that are due since before; the tasks that are over."""
        for alias in aliases:
            self._due.setdefault(alias.model, set()).add(alias)
        over = [self._at_work.pop(model) for model, task in [*self._at_work.items()] if task.done()]
        # They take turns in this order: production comes first, over all models.
        for model in sorted(self._due.keys() - self._at_work.keys(), key=self._urgency):
            self._at_work[model] = asyncio.create_task(self._follow_model(model))
        return over

    async def _follow_model(self, model: str) -> None:
        give_back = await self._turns.take()
        try:
            due = self._due[model]  # to which more may be added meanwhile
            while due:
                alias = min(due, key=_production_first)
                due.remove(alias)
                try:
                    await self._follow(alias)
                except BaseException:
                    due.add(alias)
                    raise
            del self._due[model]
        finally:
            give_back()

    async def _follow(self, alias: AliasName) -> None:
        async with self._pointers.locks.of(alias.model):
            if alias.model in self._pointers.unloaded:
                self._again.pop(alias, None)
                return
            try:
                # Where it points now, not where the move went: it may have moved on.
                current = await self._lane.run(self._store.registry.get_alias, alias)
            except AliasNotFound:
                self._again.pop(alias, None)
                await self._pointers.unpoint(alias)
            else:
                await self._reach(alias, current.version)

    async def _reach(self, alias: AliasName, version: VersionName) -> None:
        """Have the alias point at *version*, or try again later."""
        there = self._pointers.at(alias) == str(version)
        if not there or self._loads.failed(version):
            try:
                await self.serve(alias, version)
            except Exception as error:  # noqa: BLE001  what one breaks with must not end all
                await self._not_reached(alias, version, error)
                return
        self._again.pop(alias, None)

    async def _tell_turned(self) -> None:
        """Have health tell of what failed, or no longer does, for whoever it was loaded."""
        for alias, version in self._pointers.to(self._loads.turned()).items():
            if self._loads.failed(version):
                self.try_again(alias)
            await self._pointers.tell_health(alias)

    async def _load_eagerly(self, alias: AliasName, name: VersionName) -> None:
        """Wait for a load for as long as a server that starts may; it goes on after that."""
        seconds = self._eager_until - time.monotonic()
        if seconds > 0:
            task = asyncio.create_task(self._load_early(alias, name))
            self._early.add(task)
            task.add_done_callback(self._early.discard)
            await asyncio.wait({task}, timeout=seconds)

    async def _load_early(self, alias: AliasName, name: VersionName) -> None:
        """Load what no request asked for yet, if there is room."""
        try:
            (await self._loads.load(name, modest=True)).release()
        except Overloaded:
            return  # its first request finds room
        except Exception as error:  # noqa: BLE001  what one breaks with must not end all
            if self._pointers.at(alias) == str(name):  # else it was moved or deleted meanwhile
                await self._not_reached(alias, name, error)

    async def _not_reached(self, alias: AliasName, version: VersionName, error: Exception) -> None:
        """Tell that a version did not load, and whoever asks, where no other answers."""
        self._again[alias] = time.monotonic() + loads.RETRY_SECONDS
        self._pointers.point_at_failed(alias, version)
        serving = self._pointers.at(alias)
        self._metrics.swaps.labels("failed").inc()
        structlog.get_logger(__name__).error(
            "alias not followed",
            alias=str(alias),
            version=str(version),
            serving="nothing" if serving == str(version) else serving,
            reason=error.reason if isinstance(error, ServiceError) else "INTERNAL",
            message=str(error),
            exc_info=None if isinstance(error, ServiceError) else error,
        )
        await self._pointers.tell_health(alias)

    def _urgency(self, model: str) -> tuple[bool, AliasName]:
        return min(map(_production_first, self._due[model]))


def _production_first(alias: AliasName) -> tuple[bool, AliasName]:
    return alias.alias != PRODUCTION, alias
