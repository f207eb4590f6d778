"""Versions of the store, brought into memory; and which of them would not come."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self, Unpack

from acclimate_service.domain.errors import (
    BlobCorrupt,
    BlobNotFound,
    NotReady,
    Overloaded,
    ProviderUnavailable,
    ServiceError,
    VersionUnloadable,
)
from acclimate_service.domain.model import ModelVersion
from acclimate_service.domain.names import AliasName, VersionName
from acclimate_service.inference.handle import Handle
from acclimate_service.inference.pool import Pool, Urgency
from acclimate_service.inference.residents import Loaded
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.opening import Opening
from acclimate_service.store import Store

RETRY_SECONDS = 30.0  # between two attempts at a version that would not load
# What the next request would find as well: it is told so without reading the file once more.
_LASTING: Final = (BlobCorrupt, BlobNotFound, ProviderUnavailable, VersionUnloadable)


@dataclass(frozen=True, kw_only=True)
class _Failure:
    why: str
    lasting: ServiceError | None
    at: float  # of ``time.monotonic``

    @classmethod
    def of(cls, error: Exception) -> Self:
        # Overloaded of a load that was tried: memory ran out, and would for the next.
        lasting = _anew(error) if isinstance(error, (*_LASTING, Overloaded)) else None
        return cls(why=str(error), lasting=lasting, at=time.monotonic())


class Loads:
    """Loads into *pool* as *opening* opens. Belongs to one event loop; the store is in *lane*.

    At most *crowd* requests wait for one name: a load that hangs must leave room for those
    that ask for others.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool[ModelVersion],
        *,
        opening: Opening,
        lane: Lane,
        crowd: int,
    ) -> None:
        self._store = store
        self._pool = pool
        self._opening = opening
        self._lane = lane
        self._crowd = crowd
        self._waiting: Counter[AliasName | VersionName] = Counter()  # requests
        self._failures: dict[VersionName, _Failure] = {}
        self._turned: set[VersionName] = set()  # see ``turned``

    async def load(self, name: VersionName, **how: Unpack[Urgency]) -> Handle[ModelVersion]:
        """Hold a version, which is loaded if it is not; see ``Pool.ensure`` for *how*.

        Raises:
            VersionNotFound: there is no such version.
            ServiceError: it does not load, or there is no room.
        """
        with contextlib.suppress(NotReady):
            return self._pool.acquire(str(name))
        version = await self._lane.run(self._store.registry.get_version, name)
        tried = False

        def open_() -> Loaded[ModelVersion]:
            nonlocal tried
            tried = True
            return self._opening.open(version)

        try:
            handle = await self._pool.ensure(
                str(name), open_, footprint=self._opening.footprint(version), **how
            )
        except Exception as error:
            if isinstance(error, (Overloaded, NotReady)) and not tried:
                raise  # there was no room, or somebody else tried
            if name not in self._failures:
                self._turned.add(name)
            self._failures[name] = _Failure.of(error)
            raise
        if self._failures.pop(name, None) is not None:
            self._turned.add(name)
        return handle

    async def load_for_request(self, name: VersionName) -> Handle[ModelVersion]:
        """Hold a version that a request waits for.

        One that is broken is not tried again for ``RETRY_SECONDS``: each request would read
        its file only to find the same.

        Raises:
            Overloaded: enough requests wait for it already.
            ServiceError: as ``load``.
        """
        failure = self._failures.get(name)
        if (
            failure is not None
            and failure.lasting is not None
            and time.monotonic() < failure.at + RETRY_SECONDS
        ):
            raise _anew(failure.lasting)
        with self.waiting(name):
            return await self.load(name, prompt=True)

    @contextlib.contextmanager
    def waiting(self, name: AliasName | VersionName) -> Iterator[None]:
        """Be one of the requests that wait for what answers under a name.

        Raises:
            Overloaded: enough wait for it already.
        """
        if self._waiting[name] >= self._crowd:
            raise Overloaded(f"the queue for {name}, which is being loaded,", retry_after=1)
        self._waiting[name] += 1
        try:
            yield
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]

    def failed(self, name: VersionName) -> bool:
        """Whether it would not load the last time."""
        return name in self._failures

    def failures(self) -> dict[VersionName, str]:
        """What would not load the last time, and why."""
        return {name: failure.why for name, failure in self._failures.items()}

    def turned(self) -> set[VersionName]:
        """What would not load for the first time, or did again, since this was asked last."""
        turned, self._turned = self._turned, set()
        return turned

    def forget(self, name: VersionName) -> None:
        """Forget that it would not load; it was deleted."""
        self._failures.pop(name, None)

    def shares(self, version: ModelVersion) -> bool:
        """Whether it is a tail, on a trunk that others may be on."""
        return bool(self._opening.footprint(version).trunk)


def _anew(error: ServiceError) -> ServiceError:
    """The same, as raised nowhere yet.

    What was raised keeps every frame that it came through, and what these hold: a version's
    file, a request.
    """
    fresh = type(error).__new__(type(error), *error.args)
    fresh.__dict__.update(error.__dict__)
    return fresh
