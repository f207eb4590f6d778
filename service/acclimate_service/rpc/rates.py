"""How much each caller may send: a token bucket for requests, one for uploaded bytes.

What opens a call over its share is refused with the time to wait; within a stream the
next message is only read once there is room, so that the transport holds the client
back and nothing that was sent is thrown away.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from acclimate_service.domain.errors import RateExceeded

CALLERS: Final = 10_000  # remembered; who was away for long begins with a full bucket
BURST_SECONDS: Final = 2.0  # of the rate, which may come at once
_LEAST: Final = 1e-3  # of anything


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one principal may send in a second; None: as much as the server's bounds allow."""

    requests: float | None = None
    upload_bytes: float | None = None


# Enough for whoever works, and not all there is: a process answers 2,000 to 4,000 calls a
# second at most, whatever they ask, and a gigabit line carries 112 MiB.
USUAL: Final = Rates(requests=1000.0, upload_bytes=100.0 * 2**20)


class Bucket:
    """Fills at *rate* a second up to *rate* times ``BURST_SECONDS``; may go into debt once."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate * BURST_SECONDS)
        self._level = self._most
        self._at = now

    def wait(self, now: float, amount: float = 0.0) -> float:
        """The seconds until there is *amount*, or, for 0, anything at all."""
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        lacking = max(amount, _LEAST) - self._level
        # Not 0: whoever waits as long as they were told must not fail by a rounding.
        return lacking / self._rate if lacking > _LEAST / 1000 else 0.0

    def take(self, amount: float) -> None:
        """Take *amount*, be it more than there is: what follows waits the longer."""
        self._level -= amount


class Meter:
    """One kind of amount, by caller. Belongs to one event loop."""

    def __init__(
        self, what: str, rate: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._rate = rate
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def spend(self, caller: str, amount: float) -> None:
        """Take *amount* of what *caller* has.

        Raises:
            RateExceeded: the caller has nothing left.
        """
        if self._rate is None:
            return
        bucket = self._bucket(caller, self._rate)
        wait = bucket.wait(self._clock(), amount)
        if wait > 0:
            raise RateExceeded(self._what, retry_after=wait)
        bucket.take(amount)

    def pace(self, caller: str, amount: float, *, most: float = math.inf) -> float:
        """Take *amount* whatever there is; the seconds to wait before the next.

        Who would have to wait for *most* seconds already is asked for no more.
        """
        if self._rate is None:
            return 0.0
        bucket, now = self._bucket(caller, self._rate), self._clock()
        if bucket.wait(now) < most:
            bucket.take(amount)
        return min(bucket.wait(now), most)

    def _bucket(self, caller: str, rate: float) -> Bucket:
        bucket = self._buckets.pop(caller, None) or Bucket(rate, self._clock())
        self._buckets[caller] = bucket
        if len(self._buckets) > CALLERS:
            self._buckets.popitem(last=False)
        return bucket
