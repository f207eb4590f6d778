"""Which version answers under which name, and the only place where that changes.

A version is loaded and warmed before an alias moves to it, so a move never costs a
request; one that cannot be loaded leaves the old one serving. Requests that resolved
a name before a move finish on the version they resolved.

Other replicas, and workers that promote what the guard accepted, move aliases in the
store alone: ``catch_up`` reads those moves and makes them here.

What an alias points at need not be loaded: a server that starts loads what there is room
and time for, and the pool unloads what was unused longest. The next request loads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TypeVar, Unpack

import numpy as np
import structlog

from acclimate_service.domain.errors import (
    AliasNotFound,
    DomainNotServed,
    NoIncumbent,
    NotReady,
    Overloaded,
    RolloutRunning,
    ServiceError,
    VersionInUse,
)
from acclimate_service.domain.model import PRODUCTION, Alias, ModelVersion, Precision
from acclimate_service.domain.names import AliasName, ModelName, VersionName
from acclimate_service.inference.answer import Answer
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.handle import Handle
from acclimate_service.inference.pool import Pool, Urgency
from acclimate_service.rpc.bounds import Lane, Locks
from acclimate_service.rpc.drifts import Drifts
from acclimate_service.rpc.health import Health
from acclimate_service.rpc.metrics import Metrics
from acclimate_service.rpc.opening import Opening
from acclimate_service.rpc.targets import target_of
from acclimate_service.rpc.trials import Asked, Trials
from acclimate_service.store import Store

T = TypeVar("T")

EAGER_SECONDS = 5.0  # for which a server that starts loads before it answers
RETRY_SECONDS = 30.0  # between two attempts at a version that would not load


class Served:
    """The names that are answered, over the versions in *pool*. Belongs to one event loop.

    The store is called in *lane*; sessions are made as *execution* says, of the file in
    *precision* where the guard accepted one of the version, else of its fp32 file.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool[ModelVersion],
        *,
        execution: Execution,
        precision: Precision = "fp32",
        lane: Lane,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._pool = pool
        self._opening = Opening(store, execution=execution, precision=precision)
        self._lane = lane
        self._health = health
        self._metrics = metrics
        self._locks = Locks()  # order a model's moves, so that a slow one overtakes no later one
        self._marker: int | None = None  # the last move in the store that was looked at
        self._tried = asyncio.Event()  # once every alias was
        self._eager_until = 0.0  # of ``time.monotonic``: how long a start loads
        self._behind: dict[AliasName, float] = {}  # where loading failed, and when to retry
        self._failing: set[str] = set()  # what production points at and would not load
        self._unloaded: set[str] = set()  # models that are not to be answered here
        self.trials = Trials(store, pool, lane=lane, load=self._load, fits=self._fits)
        self.drifts = Drifts(store, lane=lane, drawn=np.random.default_rng())

    @property
    def pool(self) -> Pool[ModelVersion]:
        """The loaded versions, by the names of versions and aliases."""
        return self._pool

    # ── asking ───────────────────────────────────────────────────────────────

    async def hold(self, name: str, *, domain: str = "") -> Handle[ModelVersion]:
        """Hold the version that answers under a name; what is not in memory is loaded.

        See :func:`target_of` for what the name and the *domain* stand for.

        Raises:
            InvalidName: it is none of the three, or, with a domain, no model's.
            DomainNotServed: the model serves no version for the domain.
            AliasNotFound: nothing is served under this alias.
            NotReady: the model was unloaded from this server.
            VersionNotFound, VersionUnloadable: there is no such version to load.
            Overloaded: requests hold all the memory for versions.
        """
        target = target_of(name, domain)
        if target.model in self._unloaded:
            raise NotReady(
                f"models/{target.model} was unloaded from this server; load it again, or move one "
                "of its aliases",
                name=name,
            )
        if isinstance(target, VersionName):
            return await self._load(target, prompt=True)
        try:
            return self._pool.acquire(str(target))
        except NotReady:
            cold = self._pool.pointed_at(str(target)) or await self._lately(target)
            if cold is None:
                unserved = DomainNotServed(name, domain) if domain else AliasNotFound(str(target))
                raise unserved from None
            return await self._load_again(target, VersionName.parse(cold))

    async def answer(self, name: str, asked: Asked[T], *, domain: str = "") -> T:
        """The reply to a request, by whichever version answers it: see :class:`Trials`.

        Raises:
            ServiceError: as :meth:`hold`, or what answering raises.
        """
        with await self.hold(name, domain=domain) as handle:
            target = target_of(name, domain)
            if isinstance(target, VersionName):
                return asked.write(handle, await asked.ask(handle, False))

            def write(by: Handle[ModelVersion], answer: Answer) -> T:
                self.drifts.observe(by.version, answer)
                return asked.write(by, answer)

            told = replace(asked, write=write)
            return await self.trials.answer(str(target), handle, told)

    def answers(self, name: str) -> bool:
        """Whether what an alias or a version names answers here.

        An alias's version does unless it failed to load; another, if it is loaded.
        """
        version = self._pool.pointed_at(name)
        if version is not None:
            return version not in self._failing
        with contextlib.suppress(NotReady):
            self._pool.acquire(name).release()
            return True
        return False

    # ── moving ───────────────────────────────────────────────────────────────

    async def promote(
        self,
        alias: AliasName,
        version: VersionName,
        *,
        expect: VersionName | None,
        who: str,
        why: str,
    ) -> Alias:
        """Load and warm *version*, then move the alias to it, in the store and here.

        Raises:
            VersionNotFound: there is no such version.
            VersionUnloadable: it does not load; the alias stays where it is.
            AliasMoved: *expect* is given and the alias points elsewhere.
        """
        async with self._locks.of(alias.model):
            with await self._load(version) as handle:
                moved = await self._lane.run(
                    self._store.registry.set_alias, alias, version, expect=expect, who=who, why=why
                )
                await self._point(alias, handle.details)
            return moved

    async def rollback(self, alias: AliasName, *, who: str, why: str) -> Alias:
        """Load where the alias pointed before, then move it back.

        Raises:
            AliasNotFound: there is no such alias.
            NoIncumbent: it was never elsewhere.
            VersionUnloadable: what it pointed at does not load any more.
            AliasMoved: somebody moved it meanwhile.
        """
        async with self._locks.of(alias.model):
            now = await self._lane.run(self._store.registry.get_alias, alias)
            if now.previous is None:
                raise NoIncumbent(f"{alias} has nowhere to go back to; set it with SetAlias")
            with await self._load(now.previous) as handle:
                moved = await self._lane.run(
                    self._store.registry.rollback, alias, expect=now.version, who=who, why=why
                )
                await self._point(alias, handle.details)
            return moved

    async def drop(self, alias: AliasName, *, who: str, why: str) -> None:
        """Delete the alias; nothing is answered under it any more.

        Raises:
            AliasNotFound: there is no such alias.
        """
        async with self._locks.of(alias.model):
            await self._lane.run(self._store.registry.delete_alias, alias, who=who, why=why)
            await self._unpoint(alias)

    async def delete(self, version: VersionName) -> None:
        """Delete a version; once its last request has ended it is unloaded.

        Raises:
            VersionNotFound: there is no such version.
            VersionInUse: an alias, a job or another version needs it.
        """
        await self._lane.run(self._store.registry.delete_version, version)
        self._failing.discard(str(version))
        # In use here, an alias left it in the store, and is about to here: it is dropped then.
        with contextlib.suppress(VersionInUse):
            await self._pool.unload(str(version))

    # ── on this server alone ──────────────────────────────────────────────────

    async def load(self, model: ModelName) -> None:
        """Answer for the model here: its aliases as they stand, or else its newest version.

        No alias is moved: a version that none points at only answers to its own name.

        Raises:
            NotFound: there is no such model.
            NoIncumbent: it has no version yet.
            VersionUnloadable: what an alias points at does not load.
        """
        async with self._locks.of(model.model):
            await self._lane.run(self._store.registry.get_model, model)
            aliases = await self._lane.run(self._store.registry.list_aliases, model)
            for alias in aliases:
                await self._serve(alias.name, alias.version)
            if not aliases:
                page = await self._lane.run(self._store.registry.list_versions, model)
                if not page.items:
                    raise NoIncumbent(f"{model} has no version that could be loaded")
                (await self._load(page.items[0].name)).release()
            self._unloaded.discard(model.model)

    async def unload(self, model: ModelName) -> None:
        """Stop answering for the model here, after its last request; the store stays as it is.

        Raises:
            NotFound: there is no such model.
            RolloutRunning: one of its aliases has a rollout, whose candidate answers too.
        """
        await self._lane.run(self._store.registry.get_model, model)
        mine = f"{model}/"
        async with self._locks.of(model.model):
            if (rollout := self.trials.of(model)) is not None:
                raise RolloutRunning(str(rollout))
            self._unloaded.add(model.model)
            for alias in self._pool.aliases():
                if alias.startswith(mine):
                    await self._unpoint(AliasName.parse(alias))
        # Not under the lock: their last requests may take long, and other models share it.
        for resident in self._pool.resident():
            if resident.version.startswith(mine):
                with contextlib.suppress(VersionInUse):  # it was loaded again meanwhile
                    await self._pool.unload(resident.version)

    # ── following ────────────────────────────────────────────────────────────

    async def catch_up(self) -> None:
        """Make every move here that was made in the store since the last time.

        A version that does not load keeps the old one serving, is logged, and is tried again
        after ``RETRY_SECONDS``; so is what a request found would not load again.

        Raises:
            StoreUnavailable: the store is out of reach; what is served stays.
        """
        if not self._tried.is_set():
            self._eager_until = time.monotonic() + EAGER_SECONDS
        moved, last = await self._lane.run(self._store.registry.aliases_moved, self._marker)
        due = sorted(alias for alias, at in self._behind.items() if at <= time.monotonic())
        for alias in sorted({*moved, *due}, key=lambda a: (a.alias != PRODUCTION, a)):
            await self._follow(alias)
        self._marker = last
        self._tried.set()
        await self.trials.catch_up()

    async def _lately(self, alias: AliasName) -> str | None:
        """Where an alias points that is not known here: one made since the last look."""
        await self._tried.wait()  # a server that starts does not know of all yet
        with contextlib.suppress(AliasNotFound):
            await self._lane.run(self._store.registry.get_alias, alias)
            await self._follow(alias)
        return self._pool.pointed_at(str(alias))

    async def _follow(self, alias: AliasName) -> None:
        async with self._locks.of(alias.model):
            if alias.model in self._unloaded:
                return
            try:
                # Where it points now, not where the move went: it may have moved on.
                current = await self._lane.run(self._store.registry.get_alias, alias)
            except AliasNotFound:
                await self._unpoint(alias)
                return
            serving = self._pool.pointed_at(str(alias))
            if serving == str(current.version) and alias not in self._behind:
                return
            try:
                await self._serve(alias, current.version)
            except Exception as error:  # noqa: BLE001  what one breaks with must not end all
                self._behind[alias] = time.monotonic() + RETRY_SECONDS
                self._metrics.swaps.labels("failed").inc()
                structlog.get_logger(__name__).error(
                    "alias not followed",
                    alias=str(alias),
                    version=str(current.version),
                    serving=serving or "nothing",
                    reason=error.reason if isinstance(error, ServiceError) else "INTERNAL",
                    message=str(error),
                    exc_info=None if isinstance(error, ServiceError) else error,
                )
                await self._tell_health(alias)

    # ── inside ───────────────────────────────────────────────────────────────

    async def _serve(self, alias: AliasName, name: VersionName) -> None:
        """Have a version answer under *alias*: loaded first, unless nothing answers yet.

        Of many domains on one trunk a server that starts loads none before it is asked for,
        and of the others what it has room and time for.
        """
        if self._pool.pointed_at(str(alias)) is None:
            version = await self._lane.run(self._store.registry.get_version, name)
            footprint = self._opening.footprint(version)
            tail = footprint.trunk and alias.alias != PRODUCTION
            eager = time.monotonic() < self._eager_until and self._pool.fits(footprint)
            if tail or not (self._tried.is_set() or eager):
                await self._point(alias, version, cold=True)
                return
        with await self._load(name) as handle:
            await self._point(alias, handle.details)

    async def _load(self, name: VersionName, **how: Unpack[Urgency]) -> Handle[ModelVersion]:
        with contextlib.suppress(NotReady):
            return self._pool.acquire(str(name))
        version = await self._lane.run(self._store.registry.get_version, name)
        return await self._pool.ensure(
            str(name),
            lambda: self._opening.open(version),
            footprint=self._opening.footprint(version),
            **how,
        )

    async def _fits(self, name: VersionName) -> bool:
        """Whether a version would fit beside all that is in memory."""
        version = await self._lane.run(self._store.registry.get_version, name)
        return self._pool.fits(self._opening.footprint(version))

    async def _load_again(self, alias: AliasName, name: VersionName) -> Handle[ModelVersion]:
        """Load what *alias* points at, for a request; health tells why not, if that lasts."""
        try:
            handle = await self._load(name, prompt=True)
        except ServiceError as error:
            if alias.alias == PRODUCTION and not isinstance(error, Overloaded):
                self._failing.add(str(name))
                self._behind.setdefault(alias, time.monotonic() + RETRY_SECONDS)
                await self._tell_health(alias)
            raise
        if str(name) in self._failing:
            self._failing.discard(str(name))
            await self._tell_health(alias)
        return handle

    async def _point(self, alias: AliasName, version: ModelVersion, *, cold: bool = False) -> None:
        self._pool.point(str(alias), str(version.name), cold=cold)
        self._behind.pop(alias, None)
        self._failing.discard(str(version.name))
        self._unloaded.discard(alias.model)
        self._metrics.swaps.labels("served").inc()
        structlog.get_logger(__name__).info(
            "alias served", alias=str(alias), version=str(version.name), loaded=not cold
        )
        await self._tell_health(alias)

    async def _unpoint(self, alias: AliasName) -> None:
        self._pool.unpoint(str(alias))
        self._behind.pop(alias, None)
        await self._tell_health(alias)

    async def _tell_health(self, alias: AliasName) -> None:
        if alias.alias == PRODUCTION:
            await self._health.set_model(ModelName(alias.model), self.answers(str(alias)))
