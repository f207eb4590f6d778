"""Bounded work: lanes of threads for what blocks, gates for how many at once, locks for names.

Nothing here queues without an end. What does not fit is refused with ``Overloaded``
and a time to try again, so that a flood of one kind of call costs that kind alone and
health checks, which pass neither, are always answered.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from acclimate_service.domain.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")


class Gate:
    """Lets at most *limit* units through at once; refuses the next, never queues it."""

    def __init__(self, what: str, *, limit: int, retry_after: float = 1.0) -> None:
        self._what = what
        self._limit = limit
        self._retry_after = retry_after
        self._inside = 0
        self._lock = threading.Lock()

    @property
    def inside(self) -> int:
        """How many units are inside now."""
        return self._inside

    def acquire(self, units: int = 1) -> None:
        """Go in with *units*.

        Raises:
            Overloaded: they do not fit beside what is inside already.
        """
        with self._lock:
            if self._inside + units > self._limit:
                raise Overloaded(self._what, retry_after=self._retry_after)
            self._inside += units

    def release(self, units: int = 1) -> None:
        """Go out again with as many *units*."""
        with self._lock:
            self._inside -= units

    @contextmanager
    def enter(self, units: int = 1) -> Iterator[None]:
        """Be inside for the length of a ``with``.

        Raises:
            Overloaded: see ``acquire``.
        """
        self.acquire(units)
        try:
            yield
        finally:
            self.release(units)


class Locks:
    """A lock for each name, for as long as somebody wants it: names must not fill the memory."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Lock:
        """The lock of *name*; whoever waits for it or holds it keeps it."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    def __len__(self) -> int:
        return len(self._locks)


class Lane:
    """A bounded thread pool with a bounded queue before it."""

    def __init__(self, what: str, *, threads: int, waiting: int) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix=what)
        self._gate = Gate(f"the {what} queue", limit=threads + waiting)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *call* on a thread of the lane and wait for it.

        A caller that is cancelled while the call still waits takes it out of the
        queue; once it runs, it ends in its own time.

        Raises:
            Overloaded: the queue is full.
        """
        context = contextvars.copy_context()  # the request's ids, for the log
        self._gate.acquire()
        future = self._pool.submit(lambda: context.run(call, *args, **kwargs))
        # Given back when the call ends, not when its caller stops waiting: an
        # abandoned call still holds its thread.
        future.add_done_callback(lambda _: self._gate.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Start no further call; those that run end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
