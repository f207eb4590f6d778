"""The threads on which versions are loaded, and the one on which they are freed.

A load may hang for as long as the disk or the bucket that it reads does, so a few go on
side by side, one that may never end makes way for the next, and what was unloaded is freed on
a thread that none of them holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from acclimate_service.inference import huge_pages, memory

T = TypeVar("T")

LOADER_NICE: Final = 10  # of the threads that load what no request waits for
ABREAST: Final = 4  # loads under way at once, of each kind,
HANGS_SECONDS = 300.0  # of those that have not taken so long: a disk may never answer
THREADS: Final = 64  # of each kind, with those that such loads hold
RETURN_SECONDS = 3.0  # after which freed memory goes back to the system
QUIET_SECONDS = 5.0  # without a load, after which what is in memory goes onto huge pages,
GATHER_SECONDS = 15.0  # and again what was taken since


class Turns:
    """Lets ``ABREAST`` on at once; who takes over ``HANGS_SECONDS`` no longer counts.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(ABREAST)

    async def take(self) -> Callable[[], None]:
        """Wait for a turn; what gives it back, and does nothing when it is called again."""
        await self._free.acquire()
        taken = True

        def give_back() -> None:
            nonlocal taken
            timer.cancel()
            if taken:
                taken = False
                self._free.release()

        timer = asyncio.get_running_loop().call_later(HANGS_SECONDS, give_back)
        return give_back


class Loading:
    """Belongs to one event loop. Threads that load step back by *nice*, where threads can."""

    def __init__(self, *, nice: int) -> None:
        step_back = partial(_step_back, nice)
        self._loaders = ThreadPoolExecutor(THREADS, "load", initializer=step_back)
        # For what a request waits for, which is as urgent as the request.
        self._prompt = ThreadPoolExecutor(THREADS, "load-now")
        self._turns, self._prompt_turns = Turns(), Turns()
        self._freeing = ThreadPoolExecutor(1, "free", initializer=step_back)
        self._moving = ThreadPoolExecutor(1, "huge-pages", initializer=step_back)
        self._returning: asyncio.TimerHandle | None = None
        self._gathering: asyncio.TimerHandle | None = None
        self._moved: Future[int] | None = None  # the last round
        self._quiet = False  # whether nothing was loaded lately
        self._closed = False

    async def run(self, load: Callable[[], T], *, prompt: bool) -> T:
        """What *load* returns, called on a thread; *prompt*, on one that does not step back.

        Raises:
            Exception: whatever *load* raised.
        """
        threads = self._prompt if prompt else self._loaders
        give_back = await (self._prompt_turns if prompt else self._turns).take()
        self._gather_in(QUIET_SECONDS)
        try:
            loaded = threads.submit(load)
        except BaseException:  # it is closed
            give_back()
            raise
        # When the load ends, not when its caller stops waiting: it still holds its thread.
        loaded.add_done_callback(partial(_on, asyncio.get_running_loop(), give_back))
        try:
            return await asyncio.wrap_future(loaded)
        finally:
            self._gather_in(QUIET_SECONDS)

    def free(self, let_go: Callable[[], object]) -> None:
        """Call *let_go*, which takes a while, and soon give the system what it freed.

        Not at once: a swap that soon follows takes the same memory again, and spares the
        20,000 page faults of fresh memory, which are a fifth of its work.
        """
        self._freeing.submit(let_go)
        if self._returning is None:
            loop = asyncio.get_running_loop()
            self._returning = loop.call_later(RETURN_SECONDS, self._return_memory)

    def trim(self) -> None:
        """Give what was freed back to the system: glibc keeps it (574 MB, 206 after this)."""
        self._freeing.submit(memory.trim)

    async def close(self) -> None:
        """End the threads. One that a load still holds ends with it, and is not waited for."""
        self._closed = True
        for timer in filter(None, (self._returning, self._gathering)):
            timer.cancel()
        self._quiet = False
        for threads in (self._loaders, self._prompt, self._moving):
            threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._freeing.shutdown)

    def _return_memory(self) -> None:
        self._returning = None
        self.trim()

    def _gather_in(self, seconds: float) -> None:
        """Have memory put onto huge pages, unless something is loaded before.

        For what does not stay it would not pay: it takes as long as half a load.
        """
        self._quiet = False
        if self._gathering is not None:
            self._gathering.cancel()
        if not self._closed:
            self._gathering = asyncio.get_running_loop().call_later(seconds, self._gather)

    def _gather(self) -> None:
        self._gather_in(GATHER_SECONDS)
        self._quiet = True
        if self._moved is None or self._moved.done():  # a round may take longer than that
            self._moved = self._moving.submit(huge_pages.gather, lambda: self._quiet)


def _on(loop: asyncio.AbstractEventLoop, call: Callable[[], None], _: Future[Any]) -> None:
    """Have *loop* call it, from any thread."""
    with contextlib.suppress(RuntimeError):  # it has ended, and nobody waits for a turn
        loop.call_soon_threadsafe(call)


def _step_back(nice: int) -> None:
    """Lower the priority of the calling thread alone, where threads have one."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # A sandbox may refuse even that; a thread that did not begin would be worse.
        with contextlib.suppress(OSError):
            now = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, max(now, nice))  # never forward: it is a right
