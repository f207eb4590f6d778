"""Loaded versions, and the aliases that requests reach them by.

A version is loaded and warmed beside the running ones, then the alias is moved in one
step; requests that began on the old version end on it, and it is unloaded after the
last of them.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, Self, TypeVar

from acclimate_service.domain.errors import NotReady, VersionInUse
from acclimate_service.inference.answer import Answer
from acclimate_service.inference.batcher import ORDINARY, Batcher
from acclimate_service.inference.classifier import Classifier, Pixels
from acclimate_service.inference.encoded import Encoded
from acclimate_service.inference.residents import (
    Loaded,
    Resident,
    ResidentVersion,
    Share,
    make_room,
)
from acclimate_service.inference.statistics import Tally, VersionStatistics

T = TypeVar("T")

LOADER_NICE = 10  # of the thread that loads
RETURN_SECONDS = 3.0  # after which freed memory goes back to the system
REMEMBERED = 1000  # versions whose counts are kept after they were unloaded


class Handle(Generic[T]):
    """The right to use a version: it stays loaded until the handle is released.

    Use it in a ``with`` statement.
    """

    def __init__(self, pool: Pool[T], resident: Resident[T]) -> None:
        self._pool = pool
        self._resident: Resident[T] | None = resident
        self.version = resident.version

    @property
    def details(self) -> T:
        """What the loader gave beside the classifier."""
        return self._held().loaded[0].details

    @property
    def classifier(self) -> Classifier:
        """The version's session."""
        return self._held().loaded[0].classifier

    async def run(
        self,
        images: Pixels | Encoded,
        outputs: Sequence[str] = ("probabilities",),
        *,
        deadline: float | None = None,
        priority: int = ORDINARY,
    ) -> Answer:
        """Classify, and count it; see ``Batcher.submit`` for what is raised."""
        tally = self._held().tally
        started = time.perf_counter_ns()
        tally.began()
        try:
            answer = await self._pool.batcher.submit(
                self.classifier, images, outputs, deadline=deadline, priority=priority
            )
        except asyncio.CancelledError:
            tally.cancelled(ns=time.perf_counter_ns() - started)
            raise
        except Exception as error:
            tally.failed(error, ns=time.perf_counter_ns() - started)
            raise
        ns = time.perf_counter_ns() - started
        tally.succeeded(len(images), answer.timings, ns=ns, now=time.time())
        return answer

    def encoding(self) -> AbstractContextManager[None]:
        """Surround the writing of an answer, to have it counted."""
        return self._held().tally.encoding()

    def release(self) -> None:
        """Give the version back; a second time does nothing."""
        if self._resident is not None:
            resident, self._resident = self._resident, None
            self._pool._release(resident)  # noqa: SLF001  # two halves of one thing

    def _held(self) -> Resident[T]:
        if self._resident is None:
            raise RuntimeError(f"the handle of {self.version} was released")
        return self._resident

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Pool(Generic[T]):
    """The versions that are loaded. Belongs to one event loop.

    At most ``capacity`` versions are loaded at once. Of those that no alias needs and
    no request uses, the ``spare`` used last stay, so that a rollback finds its version
    loaded. ``warm`` are the batch sizes that each version runs before it serves; by
    default those that the batcher will run.

    The thread that loads steps back by ``nice`` (on Linux), so that a swap on a busy
    machine costs the requests beside it nothing. Threads that a session makes for itself
    inherit that: where ``Execution.intra_op`` is above 1, pass 0.
    """

    def __init__(
        self,
        batcher: Batcher,
        *,
        capacity: int = 8,
        tail_bytes: int = 2**31,
        spare: int = 1,
        warm: Sequence[int] | None = None,
        nice: int = LOADER_NICE,
    ) -> None:
        self.batcher = batcher
        self._capacity = capacity
        self._tail_bytes = tail_bytes
        self._spare = spare
        self._warm = tuple(batcher.sizes if warm is None else warm)
        self._residents: OrderedDict[str, Resident[T]] = OrderedDict()  # the last used is last
        self._loading: dict[str, tuple[asyncio.Task[None], Share | None]] = {}
        self._aliases: dict[str, str] = {}
        self._letting_go: set[str] = set()  # aliases whose versions may be unloaded, and come back
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
        share: Share | None = None,
        prompt: bool = False,
    ) -> Handle[T]:
        """Have *version* loaded and warmed, and hold it.

        *load* is called on a thread, unless the version is loaded or being loaded: on one
        that steps back, or *prompt*, as a request waits for it. When it fails, everything
        else stays as it is. *share* says what the version shares with others, if it does.

        Raises:
            Overloaded: the pool is full of versions in use.
            ServiceError: whatever *load* or the warming raised.
        """
        while (resident := self._residents.get(version)) is None:
            if version not in self._loading:
                self._make_room(version, share)
                thread = self._prompt if prompt else self._loader
                task = asyncio.create_task(self._load(version, load, share, thread))
                # Whoever waits sees its error; when nobody does, nobody needs to.
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
                self._loading[version] = task, share
            # Shielded: others may wait for the same load when this caller gives up.
            await asyncio.shield(self._loading[version][0])
        resident.leaving = False  # whoever unloads it wanted it gone before
        return self._hold(resident)

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

    def point(self, alias: str, version: str, *, keep: bool = True) -> str | None:
        """Move *alias* to a loaded version, at once, and say where it was.

        Without *keep* the version need not be loaded, and does not stay so for the alias's
        sake: whoever needs it ensures it.

        Raises:
            NotReady: the version is not loaded.
        """
        resident = self._residents.get(version)
        if keep and (resident is None or resident.leaving):
            raise NotReady(f"{version!r} is not loaded, so {alias!r} stays", name=version)
        previous = self._aliases.get(alias)
        self._aliases[alias] = version
        (self._letting_go.discard if keep else self._letting_go.add)(alias)
        self._trim()
        return previous

    def unpoint(self, alias: str) -> str | None:
        """Forget *alias*, and say where it was."""
        previous = self._aliases.pop(alias, None)
        self._letting_go.discard(alias)
        self._trim()
        return previous

    async def unload(self, version: str) -> None:
        """Take a version out, after its last request. One that is not loaded is out already.

        Should somebody ensure it while its last requests run, it stays.

        Raises:
            VersionInUse: an alias points at it.
        """
        aliases = [a for a in self._aliases_of(version) if a not in self._letting_go]
        if aliases:
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
        loaded = [
            ResidentVersion(
                version=resident.version,
                loading=False,
                leaving=resident.leaving,
                aliases=self._aliases_of(resident.version),
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
        loading = [task for task, _ in self._loading.values()]
        await asyncio.gather(*loading, return_exceptions=True)
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
        share: Share | None,
        thread: ThreadPoolExecutor,
    ) -> None:
        try:
            loop = asyncio.get_running_loop()
            loaded = await loop.run_in_executor(thread, self._loaded, load)
            tally = self._tallies.setdefault(version, Tally())
            self._tallies.move_to_end(version)
            tally.loaded(loaded.classifier.precision, loaded.classifier.digest)
            while len(self._tallies) > REMEMBERED:
                self._tallies.popitem(last=False)
            self._residents[version] = Resident(version, loaded, tally, share)
            if share is not None:
                # What a tail's file took on its way; many of them would add up.
                self._loader.submit(_trim_memory)
        finally:
            del self._loading[version]

    def _loaded(self, load: Callable[[], Loaded[T]]) -> Loaded[T]:
        loaded = load()
        loaded.classifier.warm(self._warm)
        return loaded

    def _hold(self, resident: Resident[T]) -> Handle[T]:
        resident.references += 1
        resident.unused.clear()
        self._residents.move_to_end(resident.version)
        return Handle(self, resident)

    def _release(self, resident: Resident[T]) -> None:
        resident.references -= 1
        if not resident.references:
            resident.unused.set()
            self._trim()

    def _make_room(self, version: str, share: Share | None) -> None:
        """Unload what is idle until one more fits."""
        for resident in make_room(
            version,
            share,
            residents=self._residents.values(),
            loading={name: share for name, (_, share) in self._loading.items()},
            kept={at for alias, at in self._aliases.items() if alias not in self._letting_go},
            capacity=self._capacity,
            tail_bytes=self._tail_bytes,
        ):
            self._drop(resident)

    def _trim(self) -> None:
        """Unload what no alias needs and no request uses, but for the spare ones."""
        idle = self._idle()
        for resident in idle[: max(len(idle) - self._spare, 0)]:
            self._drop(resident)

    def _idle(self) -> list[Resident[T]]:
        """What nothing needs now, the longest unused first."""
        pointed = set(self._aliases.values())
        return [
            resident
            for resident in self._residents.values()
            if not resident.references and not resident.leaving and resident.version not in pointed
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
        self._loader.submit(_trim_memory)

    def _aliases_of(self, version: str) -> tuple[str, ...]:
        return tuple(sorted(alias for alias, at in self._aliases.items() if at == version))


def _step_back(nice: int) -> None:
    """Lower the priority of the calling thread alone, where threads have one."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, max(now, nice))  # never forward: that is a right


def _trim_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
