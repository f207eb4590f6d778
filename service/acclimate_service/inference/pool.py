"""Loaded versions, and the aliases that requests reach them by.

A version is loaded and warmed beside the running ones, then the alias is moved in one
step; requests that began on the old version end on it, and it is unloaded after the
last of them. Where memory is short, what was unused longest is unloaded, also what an
alias points at; whoever asks for that next has it loaded again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypedDict, TypeVar

from acclimate_service.domain.errors import NotReady, Overloaded, VersionInUse
from acclimate_service.inference.batcher import Batcher
from acclimate_service.inference.handle import Handle
from acclimate_service.inference.loading import LOADER_NICE, Loading
from acclimate_service.inference.residents import (
    Footprint,
    Loaded,
    Resident,
    ResidentVersion,
    make_room,
    taken,
)
from acclimate_service.inference.statistics import Tally, VersionStatistics

T = TypeVar("T")

REMEMBERED = 1000  # versions whose counts are kept after they were unloaded
ROOM = "the memory for loaded versions (ACCLIMATE_RESIDENT_MIB)"
ROOM_SECONDS = 10.0  # for which a load waits until requests let go of what it needs
LIVE_SECONDS = 60.0  # for which what a request asked for counts as in use
CLOSE_SECONDS = 5.0  # for which loads under way are waited for at the end


class Urgency(TypedDict, total=False):
    """How a load is hurried, see :meth:`Pool.ensure`."""

    prompt: bool
    modest: bool


class Pool(Generic[T]):
    """The versions that are loaded. Belongs to one event loop.

    What is loaded takes at most ``budget`` bytes. Of the versions that no alias points at
    and no request uses, the ``spare`` used last stay, so that a rollback finds its version
    loaded; the others stay until one more needs their room. ``warm`` are the batch sizes
    that each version runs before it serves; by default those that the batcher will run.

    The threads that load step back by ``nice`` (on Linux), so that a swap on a busy
    machine costs the requests beside it nothing. Threads that a session makes for itself
    inherit that: where ``Execution.intra_op`` is above 1, pass 0.
    """

    def __init__(
        self,
        batcher: Batcher,
        *,
        budget: int = 2**31,
        spare: int = 1,
        warm: Sequence[int] | None = None,
        nice: int = LOADER_NICE,
    ) -> None:
        self.batcher = batcher
        self._budget = budget
        self._spare = spare
        self._warm = tuple(batcher.sizes if warm is None else warm)
        self._residents: OrderedDict[str, Resident[T]] = OrderedDict()  # the last used is last
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._coming: dict[str, Footprint] = {}  # of those, the ones that there is room for
        # By how many calls that have not held it yet: it must not go before they do.
        self._awaited: Counter[str] = Counter()
        self._entrance = asyncio.Lock()  # whoever waits for room: one at a time, in order
        self._eased = asyncio.Event()  # something ended that may make room
        self._aliases: dict[str, str] = {}
        self._pointed: Counter[str] = Counter()  # by how many of them
        self._trials: set[str] = set()  # the aliases that only try a version
        self._tallies: OrderedDict[str, Tally] = OrderedDict()
        self._threads = Loading(nice=nice)

    async def ensure(
        self,
        version: str,
        load: Callable[[], Loaded[T]],
        *,
        footprint: Footprint = Footprint(own=0),  # noqa: B008  frozen
        prompt: bool = False,
        modest: bool = False,
    ) -> Handle[T]:
        """Have *version* loaded and warmed, and hold it.

        *load* is called on a thread, unless the version is loaded or being loaded: on one
        that steps back, or *prompt*, as a request waits for it. When it fails, everything
        else stays as it is. *footprint* is the memory that it takes; where requests hold all
        that could go for it, they are waited for. A *modest* load waits for nobody, and puts
        nothing out that an alias points at and a request asked for in ``LIVE_SECONDS``.

        Raises:
            Overloaded: they held it for ``ROOM_SECONDS``; or it is modest, and has no room.
            ServiceError: whatever *load* or the warming raised.
        """
        self._awaited[version] += 1
        try:
            while (resident := self._residents.get(version)) is None:
                task = self._loading.get(version)
                if task is None:
                    if self._has_room(footprint, modest=modest):
                        self._coming[version] = footprint
                    elif modest:
                        raise Overloaded(ROOM, retry_after=1)
                    task = asyncio.create_task(self._load(version, load, footprint, prompt))
                    # Whoever waits sees its error; when nobody does, nobody needs to.
                    task.add_done_callback(lambda done: done.cancelled() or done.exception())
                    self._loading[version] = task
                # Shielded: others may wait for the same load when this caller gives up.
                await asyncio.shield(task)
        finally:
            self._awaited[version] -= 1
            if not self._awaited[version]:
                del self._awaited[version]
                self._eased.set()  # whoever waited for room for it makes way for the next
        resident.leaving = False  # whoever unloads it wanted it gone before
        return self._hold(resident)

    def fits(self, footprint: Footprint) -> bool:
        """Whether a version would fit beside all that is loaded and being loaded."""
        return taken([*self._footprints(), footprint]) <= self._budget

    @property
    def budget(self) -> int:
        """The bytes that what is loaded may take together."""
        return self._budget

    @property
    def taken(self) -> int:
        """The bytes that what is loaded, and being loaded, is counted with. From any thread."""
        return taken(self._footprints())

    def acquire(self, key: str) -> Handle[T]:
        """Hold the version that *key*, an alias or a version, stands for now.

        Raises:
            NotReady: nothing is loaded under it.
        """
        version = self._aliases.get(key, key)
        resident = self._residents.get(version)
        if resident is None or resident.leaving:
            raise NotReady(f"nothing is loaded under {key!r}", name=key)
        return self._hold(resident)

    def point(
        self, alias: str, version: str, *, cold: bool = False, trial: bool = False
    ) -> str | None:
        """Move *alias* to a loaded version, at once, and say where it was.

        With *cold* the version need not be loaded: whoever needs it ensures it. What is
        pointed at for a *trial* alone makes room before what other aliases point at.

        Raises:
            NotReady: the version is not loaded.
        """
        resident = self._residents.get(version)
        if not cold and (resident is None or resident.leaving):
            raise NotReady(f"{version!r} is not loaded, so {alias!r} stays", name=version)
        previous = self._forget(alias)
        self._aliases[alias] = version
        self._pointed[version] += 1
        if trial:
            self._trials.add(alias)
        self._trim()
        return previous

    def unpoint(self, alias: str) -> str | None:
        """Forget *alias*, and say where it was."""
        previous = self._forget(alias)
        self._trim()
        return previous

    async def unload(self, version: str) -> None:
        """Take a version out, after its last request. One that is not loaded is out already.

        Should somebody ensure it while its last requests run, it stays.

        Raises:
            VersionInUse: an alias points at it.
        """
        if version in self._pointed:
            aliases = sorted(alias for alias, at in self._aliases.items() if at == version)
            raise VersionInUse(f"{version!r} serves as {', '.join(aliases)}", name=version)
        resident = self._residents.get(version)
        if resident is None:
            return
        resident.leaving = True
        try:
            await resident.unused.wait()
            if resident.leaving and not resident.references:
                self._drop(resident)
        finally:  # a caller who gives up leaves it serving
            resident.leaving = False

    def resident(self) -> tuple[ResidentVersion, ...]:
        """What is loaded and being loaded, the last used last."""
        aliases: dict[str, list[str]] = {}
        for alias, version in sorted(self._aliases.items()):
            aliases.setdefault(version, []).append(alias)
        loaded = [
            ResidentVersion(
                version=resident.version,
                loading=False,
                leaving=resident.leaving,
                aliases=tuple(aliases.get(resident.version, ())),
                references=resident.references,
            )
            for resident in self._residents.values()
        ]
        loading = [
            ResidentVersion(version=version, loading=True, leaving=False, aliases=(), references=0)
            for version in self._loading
        ]
        return (*loaded, *loading)

    def pointed_at(self, alias: str) -> str | None:
        """Where an alias points, loaded or not; None if there is none of this name."""
        return self._aliases.get(alias)

    def aliases(self) -> dict[str, str]:
        """Where each alias points."""
        return dict(self._aliases)

    def statistics(self) -> dict[str, VersionStatistics]:
        """The counts of every version that was loaded, by version. From any thread."""
        tallies = list(self._tallies.items())  # at once: the event loop may add to them
        return {version: tally.snapshot() for version, tally in tallies}

    async def close(self) -> bool:
        """Unload everything, in use or not; whether nothing is left that still loads.

        A load that hangs is given up after ``CLOSE_SECONDS``: its thread may never end.
        """
        self._aliases.clear()
        self._trials.clear()
        self._pointed.clear()
        loading = dict(self._loading)
        for version in loading.keys() - self._coming.keys():
            loading[version].cancel()  # it waits for room
        hanging: set[asyncio.Task[None]] = set()
        if loading:
            _, hanging = await asyncio.wait(loading.values(), timeout=CLOSE_SECONDS)
        for task in hanging:
            task.cancel()
        for resident in list(self._residents.values()):
            self._drop(resident)
        await self._threads.close()
        return not hanging

    async def _load(
        self, version: str, load: Callable[[], Loaded[T]], footprint: Footprint, prompt: bool
    ) -> None:
        try:
            if version not in self._coming:
                await self._room_for(version, footprint)
                self._coming[version] = footprint
            loaded = await self._threads.run(lambda: self._loaded(load), prompt=prompt)
            tally = self._tallies.setdefault(version, Tally())
            self._tallies.move_to_end(version)
            tally.loaded(loaded.classifier.precision, loaded.classifier.digest)
            while len(self._tallies) > REMEMBERED:
                self._tallies.popitem(last=False)
            self._residents[version] = Resident(version, loaded, tally, footprint)
            if footprint.trunk:
                self._threads.trim()  # what a tail's file took on its way: many add up
        finally:
            del self._loading[version]
            self._coming.pop(version, None)
            self._eased.set()

    def _loaded(self, load: Callable[[], Loaded[T]]) -> Loaded[T]:
        loaded = load()
        loaded.classifier.warm(self._warm)
        return loaded

    def _hold(self, resident: Resident[T]) -> Handle[T]:
        resident.references += 1
        resident.asked = time.monotonic()
        resident.unused.clear()
        self._residents.move_to_end(resident.version)
        return Handle(resident, self.batcher, self._release)

    def _release(self, resident: Resident[T]) -> None:
        resident.references -= 1
        if not resident.references:
            resident.unused.set()
            self._eased.set()
            if resident.version not in self._pointed:  # by far the most are
                self._trim()

    def _has_room(self, footprint: Footprint, *, modest: bool) -> bool:
        """Whether one more version fits now: beside all there is, or where *modest* may make room.

        It may not while others wait for room: they would find it gone.
        """
        if self.fits(footprint):
            return True
        return modest and not self._entrance.locked() and self._make_room(footprint, modest=True)

    async def _room_for(self, version: str, footprint: Footprint) -> None:
        """Wait until one more version fits, in the order in which they came."""
        try:
            async with asyncio.timeout(ROOM_SECONDS), self._entrance:
                while self._awaited[version] and not self._make_room(footprint):
                    self._eased.clear()
                    await self._eased.wait()
        except TimeoutError:
            raise Overloaded(ROOM, retry_after=1) from None
        if not self._awaited[version]:
            raise NotReady(f"nobody waits for {version!r} any more", name=version)

    def _make_room(self, footprint: Footprint, *, modest: bool = False) -> bool:
        """Unload what is idle until one more fits; whether it does."""
        gone = make_room(
            footprint,
            residents=self._residents.values(),
            loading=self._coming.values(),
            kept={*self._awaited, *(self._live() if modest else ())},
            pointed={at for alias, at in self._aliases.items() if alias not in self._trials},
            tried={self._aliases[alias] for alias in self._trials},
            budget=self._budget,
        )
        for resident in gone or ():
            self._drop(resident)
        return gone is not None

    def _live(self) -> set[str]:
        """What an alias points at that was asked for lately."""
        since = time.monotonic() - LIVE_SECONDS
        return {
            one.version
            for one in self._residents.values()
            if one.version in self._pointed and one.asked >= since
        }

    def _footprints(self) -> list[Footprint]:
        loaded = (resident.footprint for resident in list(self._residents.values()))
        return [*loaded, *list(self._coming.values())]

    def _trim(self) -> None:
        """Unload what no alias needs and no request uses, but for the spare ones."""
        idle = self._idle()
        for resident in idle[: max(len(idle) - self._spare, 0)]:
            self._drop(resident)

    def _idle(self) -> list[Resident[T]]:
        """What nothing needs now, the longest unused first."""
        return [
            resident
            for resident in self._residents.values()
            if resident.idle
            and resident.version not in self._pointed
            and resident.version not in self._awaited
        ]

    def _drop(self, resident: Resident[T]) -> None:
        if self._residents.get(resident.version) is resident:
            del self._residents[resident.version]
            self._threads.free(resident.loaded.clear)

    def _forget(self, alias: str) -> str | None:
        previous = self._aliases.pop(alias, None)
        self._trials.discard(alias)
        if previous is not None:
            self._pointed[previous] -= 1
            if not self._pointed[previous]:
                del self._pointed[previous]
        return previous
