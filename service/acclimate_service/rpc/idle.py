"""Waits without an end: for a client's next message, for a job's next event.

A server that stops lets work end, but such a wait is no work and would hold it up for
all of its grace. It is broken off, and the client is told to go elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from acclimate_service.domain.errors import ServerStopping

T = TypeVar("T")


class Idle:
    """The waits of one server. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Task[Any]] = set()
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopping

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Await what may never come.

        Raises:
            ServerStopping: the server stops, or did so meanwhile.
        """
        if self._stopping:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()  # else Python warns that nobody awaited it
            raise ServerStopping
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            return await awaitable
        except asyncio.CancelledError:
            if self._stopping:
                raise ServerStopping from None
            raise
        finally:
            self._waiting.discard(task)

    def stop(self) -> None:
        """Break off every wait, and let none begin."""
        self._stopping = True
        for task in self._waiting:
            task.cancel()
