"""Which version answers under which name: what is asked, and what is moved here.

A version is loaded and warmed before an alias moves to it, so a move never costs a
request; one that cannot be loaded leaves the old one serving. Requests that resolved
a name before a move finish on the version they resolved.

Other replicas, and workers that promote what the guard accepted, move aliases in the
store alone: ``catch_up`` reads those moves and has them made here, see ``moves``.

What an alias points at need not be loaded: a server that starts loads what there is room
and time for, and the pool unloads what was unused longest. The next request loads it.
"""

from __future__ import annotations

import contextlib
from typing import TypeVar

import numpy as np

from acclimate_service.domain.errors import (
    AliasNotFound,
    DomainNotServed,
    NoIncumbent,
    NotReady,
    RolloutRunning,
    ServiceError,
    VersionInUse,
)
from acclimate_service.domain.model import Alias, ModelVersion, Precision
from acclimate_service.domain.names import AliasName, ModelName, VersionName
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.handle import Handle
from acclimate_service.inference.pool import Pool
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.drifts import Drifts
from acclimate_service.rpc.health import Health
from acclimate_service.rpc.loads import Loads
from acclimate_service.rpc.metrics import Metrics
from acclimate_service.rpc.moves import Moves
from acclimate_service.rpc.opening import Opening
from acclimate_service.rpc.pointers import Pointers
from acclimate_service.rpc.targets import Target, target_of
from acclimate_service.rpc.trials import Asked, Trials
from acclimate_service.rpc.whereabouts import Whereabouts
from acclimate_service.store import Store

T = TypeVar("T")


class Served:
    """The names that are answered, over the versions in *pool*. Belongs to one event loop.

    The store is called in *lane*; sessions are made as *execution* says, of the file in
    *precision* where the guard accepted one of the version, else of its fp32 file. At most
    *crowd* requests wait for one version to load.
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
        crowd: int,
    ) -> None:
        self._store = store
        self._pool = pool
        opening = Opening(store, execution=execution, precision=precision)
        self._loads = Loads(store, pool, opening=opening, lane=lane, crowd=crowd)
        self._lane = lane
        self._pointers = Pointers(pool, loads=self._loads, health=health, metrics=metrics)
        self._moves = Moves(
            store, lane=lane, loads=self._loads, pointers=self._pointers, metrics=metrics
        )
        self.drifts = Drifts(store, lane=lane, drawn=np.random.default_rng())
        self.trials = Trials(
            store, pool, lane=lane, load=self._loads.load, observe=self.drifts.observe
        )

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
        return self._at_hand(target, name) or await self._brought(target, name, domain)

    async def answer(self, name: str, asked: Asked[T], *, domain: str = "") -> T:
        """The reply to a request, by whichever version answers it: see :class:`Trials`.

        Raises:
            ServiceError: as :meth:`hold`, or what answering raises.
        """
        target = target_of(name, domain)
        # Not by ``hold``: nearly always it is at hand, and a coroutine more costs each request.
        with self._at_hand(target, name) or await self._brought(target, name, domain) as handle:
            if isinstance(target.name, VersionName):
                return asked.write(handle, await asked.ask(handle, False))
            return await self.trials.answer(target.text, handle, asked)

    def _at_hand(self, target: Target, name: str) -> Handle[ModelVersion] | None:
        """What answers now, if it is in memory."""
        if target.name.model in self._pointers.unloaded:
            gone = f"models/{target.name.model} was unloaded from this server"
            raise NotReady(f"{gone}; load it again, or move one of its aliases", name=name)
        try:
            return self._pool.acquire(target.text)
        except NotReady:
            return None

    async def _brought(self, target: Target, name: str, domain: str) -> Handle[ModelVersion]:
        """What answers, loaded for this request."""
        if isinstance(target.name, VersionName):
            return await self._loads.load_for_request(target.name)
        cold = self._pool.pointed_at(target.text) or await self._moves.find(target.name)
        if cold is None:
            raise DomainNotServed(name, domain) if domain else AliasNotFound(target.text)
        return await self._load_again(target.name, VersionName.parse(cold))

    def answers(self, name: str) -> bool:
        """See :meth:`Pointers.answers`."""
        return self._pointers.answers(name)

    def whereabouts(self) -> Whereabouts:
        """In which state each version is here."""
        return Whereabouts.at(
            self._pool.resident(), failed=self._loads.failures(), unloaded=self._pointers.unloaded
        )

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
        async with self._pointers.locks.of(alias.model):
            with await self._loads.load(version) as handle:
                moved = await self._lane.run(
                    self._store.registry.set_alias, alias, version, expect=expect, who=who, why=why
                )
                await self._pointers.point(alias, handle.details)
            return moved

    async def rollback(self, alias: AliasName, *, who: str, why: str) -> Alias:
        """Load where the alias pointed before, then move it back.

        Raises:
            AliasNotFound: there is no such alias.
            NoIncumbent: it was never elsewhere.
            VersionUnloadable: what it pointed at does not load any more.
            AliasMoved: somebody moved it meanwhile.
        """
        async with self._pointers.locks.of(alias.model):
            now = await self._lane.run(self._store.registry.get_alias, alias)
            if now.previous is None:
                raise NoIncumbent(f"{alias} has nowhere to go back to; set it with SetAlias")
            with await self._loads.load(now.previous) as handle:
                moved = await self._lane.run(
                    self._store.registry.rollback, alias, expect=now.version, who=who, why=why
                )
                await self._pointers.point(alias, handle.details)
            return moved

    async def drop(self, alias: AliasName, *, who: str, why: str) -> None:
        """Delete the alias; nothing is answered under it any more.

        Raises:
            AliasNotFound: there is no such alias.
        """
        async with self._pointers.locks.of(alias.model):
            await self._lane.run(self._store.registry.delete_alias, alias, who=who, why=why)
            await self._pointers.unpoint(alias)

    async def delete(self, version: VersionName) -> None:
        """Delete a version; once its last request has ended it is unloaded.

        Raises:
            VersionNotFound: there is no such version.
            VersionInUse: an alias, a job or another version needs it.
        """
        await self._lane.run(self._store.registry.delete_version, version)
        self._loads.forget(version)
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
        async with self._pointers.locks.of(model.model):
            await self._lane.run(self._store.registry.get_model, model)
            aliases = await self._lane.run(self._store.registry.list_aliases, model)
            for alias in aliases:
                await self._moves.serve(alias.name, alias.version)
            if not aliases:
                page = await self._lane.run(self._store.registry.list_versions, model)
                if not page.items:
                    raise NoIncumbent(f"{model} has no version that could be loaded")
                (await self._loads.load(page.items[0].name)).release()
            self._pointers.unloaded.discard(model.model)

    async def unload(self, model: ModelName) -> None:
        """Stop answering for the model here, after its last request; the store stays as it is.

        Raises:
            NotFound: there is no such model.
            RolloutRunning: one of its aliases has a rollout, whose candidate answers too.
        """
        await self._lane.run(self._store.registry.get_model, model)
        mine = f"{model}/"
        async with self._pointers.locks.of(model.model):
            if (rollout := self.trials.of(model)) is not None:
                raise RolloutRunning(str(rollout))
            self._pointers.unloaded.add(model.model)
            for alias in self._pool.aliases():
                if alias.startswith(mine):
                    await self._pointers.unpoint(AliasName.parse(alias))
        # Not under the lock: their last requests may take long, and other models share it.
        for resident in self._pool.resident():
            if resident.version.startswith(mine):
                with contextlib.suppress(VersionInUse):  # it was loaded again meanwhile
                    await self._pool.unload(resident.version)

    # ── following ────────────────────────────────────────────────────────────

    async def begin(self) -> None:
        """Know every alias of the store, and load what there is room and time for.

        Raises:
            StoreUnavailable: the store is out of reach.
        """
        await self._moves.begin()
        await self.trials.catch_up()

    async def catch_up(self) -> None:
        """Start to make the moves here that were made in the store since the last time.

        A version that does not load keeps the old one serving, is logged, and is tried again
        after a while; so is what a request found would not load again.

        Raises:
            StoreUnavailable: the store is out of reach; what is served stays.
        """
        await self._moves.look()
        await self.trials.catch_up()

    async def close(self) -> None:
        """Follow no further, and tell what rollouts saw to the last.

        Raises:
            StoreUnavailable: the store is out of reach; what was seen last is lost.
        """
        await self._moves.close()
        await self.trials.close()

    # ── inside ───────────────────────────────────────────────────────────────

    async def _load_again(self, alias: AliasName, name: VersionName) -> Handle[ModelVersion]:
        """Load what *alias* points at, for a request; health tells why not, if that lasts."""
        try:
            handle = await self._loads.load_for_request(name)
        except ServiceError:
            if self._loads.failed(name):
                self._moves.try_again(alias)
            await self._pointers.tell_health(alias)
            raise
        await self._pointers.tell_health(alias)
        return handle
