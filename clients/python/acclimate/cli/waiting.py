"""What is said while a job waits for a worker: silence looks like work."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from acclimate.cli.refusals import complain
from acclimate.resources import JobState

QUEUED_SECONDS = 20.0  # after which whoever watches may wonder


class Waiting:
    """Says on stderr when a job has been QUEUED for a while, each time that it is.

    Told every state that is heard of. Used as a context, at whose end it says no more.
    """

    def __init__(self, job: str, state: JobState) -> None:
        self._job = job
        self._timer: threading.Timer | None = None
        self.heard(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def heard(self, state: JobState) -> None:
        """The job is in this state now."""
        if state is not JobState.QUEUED:
            self._stop()
        elif self._timer is None:
            self._timer = threading.Timer(QUEUED_SECONDS, self._say)
            self._timer.daemon = True  # Ctrl-C must not wait for it
            self._timer.start()

    def _say(self) -> None:
        complain(
            "WAITING",
            f"no worker has taken {self._job} for {QUEUED_SECONDS:.0f} s: they work on others (see "
            "`acclimate jobs --state running`), or none runs (start one with `acclimate work`)",
        )

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
