from __future__ import annotations

import asyncio
import datetime as dt
from types import SimpleNamespace
from typing import cast

from acclimate_service.domain.job import EventKind, JobEvent, JobState
from acclimate_service.domain.names import JobName
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.watch import Watchers
from acclimate_service.store import Store

JOB = JobName("j1")
END = JobEvent(
    job=JOB,
    sequence=1,
    at=dt.datetime(2026, 11, 26, tzinfo=dt.UTC),
    kind=EventKind.STATE,
    phase=None,
    message="failed",
    facts={},
)


class EndsWhileRead:
    """A store whose job ends after it was first looked at, and before its events are read."""

    def __init__(self) -> None:
        self.state = JobState.RUNNING

    def get(self, _: JobName) -> SimpleNamespace:
        return SimpleNamespace(state=self.state)

    def events(self, _: JobName, after: int = 0, limit: int = 1000) -> list[JobEvent]:
        self.state = JobState.FAILED
        return [END][after:limit]


def test_an_end_that_comes_between_two_reads_is_told_as_an_end() -> None:
    lane = Lane("test", threads=1, waiting=8)
    store = cast(Store, SimpleNamespace(jobs=EndsWhileRead()))

    async def told() -> list[tuple[JobEvent, JobState]]:
        watchers = Watchers(store, lane=lane, interval=0.01)
        return [told async for told in watchers.follow(JOB, 0)]

    assert asyncio.run(told()) == [(END, JobState.FAILED)]
    lane.close()
