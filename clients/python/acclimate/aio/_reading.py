"""Reading what a caller passes: an iterable on a thread, since it may read files, or wait."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

Item = TypeVar("Item")
_END: Any = object()


async def each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    """*items*, one by one, while other tasks run.

    An iterable has a thread of its own: a camera's, which waits for its next image, would take
    one of the few that the loop has for all, and a few cameras all of them.
    """
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    iterator, loop, context = iter(items), asyncio.get_running_loop(), contextvars.copy_context()
    thread = ThreadPoolExecutor(1, "acclimate-reading")
    try:
        while True:
            read = partial(context.run, next, iterator, _END)
            if (item := await loop.run_in_executor(thread, read)) is _END:
                return
            yield item
    finally:
        thread.shutdown(wait=False)


async def read(items: Iterable[Item]) -> AsyncIterator[Item]:
    """As :func:`each`, of files that are there: on a thread of the loop's."""
    iterator = iter(items)
    while (item := await asyncio.to_thread(next, iterator, _END)) is not _END:
        yield item
