"""Loaded versions, and the aliases that requests reach them by.

A version is loaded and warmed beside the running ones, then the alias is moved in one
step; requests that began on the old version end on it, and it is unloaded after the
last of them. Where memory is short, what was unused longest is unloaded, also what an
alias points at; whoever asks for that next has it loaded again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypedDict, TypeVar

from acclimate_service.domain.errors import NotReady, Overloaded, VersionInUse
from acclimate_service.inference import memory
from acclimate_service.inference.batcher import Batcher
from acclimate_service.inference.handle import Handle
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

LOADER_NICE = 10  # of the thread that loads
RETURN_SECONDS = 3.0  # after which freed memory goes back to the system
REMEMBERED = 1000  # versions whose counts are kept after they were unloaded
ROOM = "the memory for loaded versions (ACCLIMATE_RESIDENT_MIB)"
ROOM_SECONDS = 10.0  # for which a load waits until requests let go of what it needs


class Urgency(TypedDict, total=False):
    """How a load is hurried, see :meth:`Pool.ensure`."""

    prompt: bool
    room_seconds: float | None


class Pool(Generic[T]):
    """The versions that are loaded. Belongs to one event loop.

    What is loaded takes at most ``budget`` bytes. Of the versions that no alias points at
    and no request uses, the ``spare`` used last stay, so that a rollback finds its version
    loaded; the others stay until one more needs their room. ``warm`` are the batch sizes
    that each version runs before it serves; by default those that the batcher will run.

    The thread that loads steps back by ``nice`` (on Linux), so that a swap on a busy
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
        self._tallies: OrderedDict[str, Tally] = OrderedDict()
        self._returning: asyncio.TimerHandle | None = None
        # One load at a time: loading is work, and predictions go on beside it.
        self._loader = ThreadPoolExecutor(
            1, thread_name_prefix="load", initializer=_step_back, initargs=(nice,)
        )
        # For what a request waits for, which is as urgent as the request.
        self._prompt = ThreadPoolExecutor(1, thread_name_prefix="load-now")

    async def ensure(
        self,
        version: str,
        load: Callable[[], Loaded[T]],
        *,
        footprint: Footprint = Footprint(own=0),  # noqa: B008  frozen
        prompt: bool = False,
        room_seconds: float | None = None,
    ) -> Handle[T]:
        """Have *version* loaded and warmed, and hold it.

        *load* is called on a thread, unless the version is loaded or being loaded: on one
        that steps back, or *prompt*, as a request waits for it. When it fails, everything
        else stays as it is. *footprint* is the memory that it takes; where requests hold all
        that could go for it, they are waited for.

        Raises:
            Overloaded: they held it for ``ROOM_SECONDS``.
            ServiceError: whatever *load* or the warming raised.
        """
        seconds = ROOM_SECONDS if room_seconds is None else room_seconds
        self._awaited[version] += 1
        try:
            while (resident := self._residents.get(version)) is None:
                task = self._loading.get(version)
                if task is None:
                    thread = self._prompt if prompt else self._loader
                    task = asyncio.create_task(
                        self._load(version, load, footprint, thread, seconds)
                    )
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

    def point(self, alias: str, version: str, *, cold: bool = False) -> str | None:
        """Move *alias* to a loaded version, at once, and say where it was.

        With *cold* the version need not be loaded: whoever needs it ensures it.

        Raises:
            NotReady: the version is not loaded.
        """
        resident = self._residents.get(version)
        if not cold and (resident is None or resident.leaving):
            raise NotReady(f"{version!r} is not loaded, so {alias!r} stays", name=version)
        previous = self._forget(alias)
        self._aliases[alias] = version
        self._pointed[version] += 1
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

    async def close(self) -> None:
        """Unload everything, in use or not, and end the loading thread."""
        self._aliases.clear()
        self._pointed.clear()
        loading = dict(self._loading)
        for version in loading.keys() - self._coming.keys():
            loading[version].cancel()  # it waits for room
        await asyncio.gather(*loading.values(), return_exceptions=True)
        for resident in list(self._residents.values()):
            self._drop(resident)
        if self._returning is not None:
            self._returning.cancel()
        await asyncio.to_thread(self._loader.shutdown)
        await asyncio.to_thread(self._prompt.shutdown)

    async def _load(
        self,
        version: str,
        load: Callable[[], Loaded[T]],
        footprint: Footprint,
        thread: ThreadPoolExecutor,
        room_seconds: float,
    ) -> None:
        try:
            await self._room_for(version, footprint, room_seconds)
            self._coming[version] = footprint
            loop = asyncio.get_running_loop()
            loaded = await loop.run_in_executor(thread, self._loaded, load)
            tally = self._tallies.setdefault(version, Tally())
            self._tallies.move_to_end(version)
            tally.loaded(loaded.classifier.precision, loaded.classifier.digest)
            while len(self._tallies) > REMEMBERED:
                self._tallies.popitem(last=False)
            self._residents[version] = Resident(version, loaded, tally, footprint)
            if footprint.trunk:
                # What a tail's file took on its way; many of them would add up.
                self._loader.submit(memory.trim)
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

    async def _room_for(self, version: str, footprint: Footprint, seconds: float) -> None:
        """Wait until one more version fits, in the order in which they came."""
        try:
            async with asyncio.timeout(seconds), self._entrance:
                while self._awaited[version] and not self._make_room(footprint):
                    self._eased.clear()
                    await self._eased.wait()
        except TimeoutError:
            raise Overloaded(ROOM, retry_after=1) from None
        if not self._awaited[version]:
            raise NotReady(f"nobody waits for {version!r} any more", name=version)

    def _make_room(self, footprint: Footprint) -> bool:
        """Unload what is idle until one more fits; whether it does."""
        gone = make_room(
            footprint,
            residents=self._residents.values(),
            loading=self._coming.values(),
            kept=self._awaited,
            pointed=self._pointed,
            budget=self._budget,
        )
        for resident in gone or ():
            self._drop(resident)
        return gone is not None

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
            self._loader.submit(resident.loaded.clear)  # off the event loop, it takes a while
            if self._returning is None:
                loop = asyncio.get_running_loop()
                self._returning = loop.call_later(RETURN_SECONDS, self._return_memory)

    def _return_memory(self) -> None:
        """Give what was freed back to the system: glibc keeps it (574 MB, 206 after this).

        Not at once: a swap that soon follows takes the same memory again, and spares the
        20,000 page faults of fresh memory, which are a fifth of its work.
        """
        self._returning = None
        self._loader.submit(memory.trim)

    def _forget(self, alias: str) -> str | None:
        previous = self._aliases.pop(alias, None)
        if previous is not None:
            self._pointed[previous] -= 1
            if not self._pointed[previous]:
                del self._pointed[previous]
        return previous


def _step_back(nice: int) -> None:
    """Lower the priority of the calling thread alone, where threads have one."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, max(now, nice))  # never forward: that is a right
