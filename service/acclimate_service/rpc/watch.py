"""Following jobs: one poll of the store for each job, however many watch it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from acclimate_service.domain.job import EventKind, JobEvent, JobState
from acclimate_service.domain.names import JobName
from acclimate_service.rpc.bounds import Lane
from acclimate_service.store import Store

PAGE = 200  # events read at once
RECENT = 1000  # events kept for the watchers of one job; older ones are read from the store


class Watchers:
    """Everyone who follows a job. A job that nobody follows is not polled."""

    def __init__(self, store: Store, *, lane: Lane, interval: float) -> None:
        self._store = store
        self._lane = lane
        self._interval = interval
        self._stories: dict[JobName, _Story] = {}

    async def follow(self, job: JobName, after: int) -> AsyncIterator[tuple[JobEvent, JobState]]:
        """The events after sequence number *after*, each with the job's state when it was read.

        Ends when the job has ended and everything was given.

        Raises:
            NotFound: there is no such job.
            StoreUnavailable: the store went away; follow again after the last event.
        """
        first = await self._lane.run(self._store.jobs.get, job)
        async with self._story(job) as story:
            state = first.state
            while True:
                # The state is read before the events, here and in the poll: an ended
                # job says nothing more, so what is read after that is all there is.
                events = await self._events(story, job, after)
                if events and events[-1].kind is EventKind.STATE and not state.ended:
                    # It may be the end, and is then told as one: clients look at the last.
                    state = (await self._lane.run(self._store.jobs.get, job)).state
                for event in events:
                    yield event, state
                    after = event.sequence
                if events:
                    continue
                if state.ended:
                    return
                state = await story.news(after)

    async def _events(self, story: _Story, job: JobName, after: int) -> list[JobEvent]:
        recent = story.since(after)
        if recent is not None:
            return recent
        return await self._lane.run(self._store.jobs.events, job, after=after, limit=PAGE)

    @contextlib.asynccontextmanager
    async def _story(self, job: JobName) -> AsyncIterator[_Story]:
        story = self._stories.get(job)
        if story is None:
            story = self._stories[job] = _Story(self._store, self._lane, job, self._interval)
        story.watchers += 1
        try:
            yield story
        finally:
            story.watchers -= 1
            if story.watchers == 0:
                story.close()
                if self._stories.get(job) is story:
                    del self._stories[job]


class _Story:
    """The recent events of one followed job, kept up to date by one task."""

    def __init__(self, store: Store, lane: Lane, job: JobName, interval: float) -> None:
        self.watchers = 0
        self._store = store
        self._lane = lane
        self._job = job
        self._interval = interval
        self._recent: deque[JobEvent] = deque(maxlen=RECENT)
        self._state: JobState | None = None
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._poll())
        self._task.add_done_callback(self._note_end)

    def since(self, after: int) -> list[JobEvent] | None:
        """The events after *after*, or None if the memory does not reach back that far."""
        if not self._recent or self._recent[0].sequence > after + 1:
            return None
        return [event for event in self._recent if event.sequence > after]

    async def news(self, after: int) -> JobState:
        """Wait until there is an event after *after*, or the job has ended; its state.

        Raises:
            StoreUnavailable: the poll failed.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            newer = bool(self._recent) and self._recent[-1].sequence > after
            if self._state is not None and (newer or self._state.ended):
                return self._state
            await self._changed.wait()

    def close(self) -> None:
        """Stop polling."""
        self._task.cancel()

    async def _poll(self) -> None:
        known = 0
        while True:
            job = await self._lane.run(self._store.jobs.get, self._job)
            while page := await self._lane.run(
                self._store.jobs.events, self._job, after=known, limit=PAGE
            ):
                self._recent.extend(page)
                known = page[-1].sequence
            self._state = job.state
            self._announce()
            if job.state.ended:
                return
            await asyncio.sleep(self._interval)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._failure = task.exception()
        self._changed.set()
