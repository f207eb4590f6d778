"""Lines of the log that are left out where too many would come at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from acclimate_service.rpc.rates import Bucket


class Sparing:
    """Lets through so many lines a second: whoever is refused can be as often as they like."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bucket = Bucket(rate, clock())
        self._held = 0

    def line(self) -> dict[str, int] | None:
        """What to add to the next line, that some were held back before it; None: no line."""
        if self._bucket.wait(self._clock(), 1) > 0:
            self._held += 1
            return None
        self._bucket.take(1)
        held, self._held = self._held, 0
        return {"not_logged_before": held} if held else {}
