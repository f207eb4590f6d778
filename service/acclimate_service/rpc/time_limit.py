"""A limit to how long calls take, with one timer for all of them.

``asyncio.timeout`` sets a timer for each call and takes it back when the call ends, as nearly
all do. Where all have the same time, whoever began first is late first: it is enough to
look at that one.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self


class TimeLimit:
    """Ends what takes longer than *seconds*: used in a ``with`` statement, by many tasks at once.

    A task is within it once at a time. Belongs to one event loop.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # Until when each may take, of the loop's time; the first is due first.
        self._due: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()  # told to end
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._due[_this_task()] = due = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(due, self._look)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave in time.

        Raises:
            TimeoutError: in place of the cancellation by which it was ended.
        """
        task = _this_task()
        self._due.pop(task, None)
        if task in self._late:
            self._late.discard(task)
            others = task.uncancel()  # who wanted it to end as well
            if not others and isinstance(error, asyncio.CancelledError):
                raise TimeoutError from error

    def _look(self) -> None:
        """End what is late, and come back when the next is due."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for task, due in list(self._due.items()):
            if due > loop.time():
                self._timer = loop.call_at(due, self._look)
                return
            del self._due[task]
            self._late.add(task)
            task.cancel()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
