"""A job that no worker takes is not watched in silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from acclimate.cli import progress, waiting
from acclimate.resources import JobState

QUEUED, RUNNING, SUCCEEDED = JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED
SECONDS = 20.0


class Said:
    """What was said on stderr."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._something = threading.Event()

    def take(self, reason: str, message: str) -> None:
        self.lines.append(f"{reason}: {message}")
        self._something.set()

    def something(self) -> bool:
        """Wait for it."""
        return self._something.wait(SECONDS)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    said = Said()
    monkeypatch.setattr(waiting, "complain", said.take)
    monkeypatch.setattr(waiting, "QUEUED_SECONDS", 0.05)
    return said


def job(state: JobState, *moments: JobState | Callable[[], object]) -> Any:
    """A job whose story is these states, with what happens in between."""

    def watch() -> Iterator[SimpleNamespace]:
        for moment in moments:
            if isinstance(moment, JobState):
                yield SimpleNamespace(state=moment)
            else:
                moment()

    return SimpleNamespace(name="jobs/j1", state=state, watch=watch)


def test_a_job_that_no_worker_takes_is_said_to_wait_once_and_what_to_do(said: Said) -> None:
    story = job(QUEUED, QUEUED, said.something, QUEUED, RUNNING, SUCCEEDED)
    assert len([*progress.watched(story)]) == 4
    (line,) = said.lines
    assert line.startswith("WAITING: no worker has taken jobs/j1")
    assert "`acclimate work`" in line


def test_a_job_that_went_back_to_the_queue_is_said_to_wait_again(said: Said) -> None:
    story = job(RUNNING, RUNNING, QUEUED, said.something, RUNNING)
    assert len([*progress.watched(story)]) == 3
    assert len(said.lines) == 1


def test_nothing_is_said_of_a_job_that_is_worked_on_nor_of_one_that_is_watched_no_more(
    said: Said,
) -> None:
    assert [*progress.watched(job(QUEUED, RUNNING, lambda: time.sleep(0.2), SUCCEEDED))]
    watched: Any = progress.watched(job(QUEUED, QUEUED, QUEUED))
    next(watched)
    watched.close()
    time.sleep(0.2)
    assert said.lines == []
