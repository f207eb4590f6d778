"""When to try again, and for how long: decisions alone, for whoever then waits.

Each takes the error of the last attempt and tells the seconds until the next one, or raises
the error. How to wait is the caller's: a thread sleeps, a task lets others run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from acclimate._status import is_transient
from acclimate.errors import AcclimateError, DeadlineExceeded

HELD_SECONDS = 60.0  # a connection that lasts so long has answered pings: see Terms.options
FIRST_DELAY = 0.1  # seconds
LAST_DELAY = 3.0

OnWait = Callable[[AcclimateError, float], None]  # what failed, and for how long it is tried again


class Delays:
    """How long to wait before each next attempt: doubling, jittered, never under what was asked."""

    def __init__(self) -> None:
        self._ceiling = FIRST_DELAY

    def next(self, error: AcclimateError) -> float:
        """The seconds to wait after *error*."""
        # Full jitter, so that the clients of a server that comes back do not come in step.
        delay = random.uniform(self._ceiling / 2, self._ceiling)  # noqa: S311  not a secret
        self._ceiling = min(self._ceiling * 2, LAST_DELAY)
        return max(delay, error.retry_after or 0.0)


class Repeats:
    """The attempts at one call: *seconds* for all of them, and *most* after the first."""

    def __init__(self, *, seconds: float, most: int) -> None:
        self._deadline = time.monotonic() + seconds
        self._left = most
        self._delays = Delays()

    @property
    def seconds(self) -> float:
        """What is left for the next attempt."""
        return max(self._deadline - time.monotonic(), 0.001)

    def delay(self, error: AcclimateError) -> float:
        """The seconds to wait after *error* before the next attempt.

        Raises:
            AcclimateError: *error* itself, if it is not transient, or neither time nor
                repetitions are left.
        """
        delay = self._delays.next(error)
        late = time.monotonic() + delay >= self._deadline
        if not is_transient(error) or self._left == 0 or late:
            raise error
        self._left -= 1
        return delay


class Patience:
    """How long a resumable stream keeps trying: *seconds* of failures without getting further.

    They count from the first failure: before it the stream may have been silent for long,
    as a job is that tells nothing, or a caller who asks nothing. *on_wait* is told the first
    failure, and for how many seconds it will be tried again; a stream whose time is up is none.
    """

    def __init__(self, seconds: float, *, on_wait: OnWait | None = None) -> None:
        self._seconds = seconds
        self._on_wait = on_wait
        self.renew()

    def renew(self) -> None:
        """It got further."""
        self._until: float | None = None
        self._told = False
        self._delays = Delays()

    def rested(self, since: float) -> None:
        """What began at *since* ended, and had nothing to tell: if it lasted, it got further."""
        if time.monotonic() - since >= HELD_SECONDS:
            self.renew()

    def delay(self, error: AcclimateError, *, resumable: bool = False) -> float:
        """The seconds to wait after *error* before the next attempt, if that makes sense.

        Args:
            error: what ended the last attempt.
            resumable: whether another attempt makes sense though the error is not transient.

        Raises:
            AcclimateError: *error* itself, if another attempt makes no sense or
                patience has run out.
        """
        if not (resumable or is_transient(error) or isinstance(error, DeadlineExceeded)):
            raise error
        now, delay = time.monotonic(), self._delays.next(error)
        if self._until is None:
            self._until = now + self._seconds
        if now + delay >= self._until:
            raise error
        told = self._told or isinstance(error, DeadlineExceeded)
        if self._on_wait is not None and not told:
            self._told = True
            self._on_wait(error, self._seconds)
        return delay

    def wait(self, error: AcclimateError, *, resumable: bool = False) -> None:
        """Sleep for `delay`."""
        time.sleep(self.delay(error, resumable=resumable))
