"""Refusals that wait, so that who is refused all the time asks less often.

To refuse a call costs the event loop a good part of what it costs to take one, and
whoever is refused can ask again at once. What an address is refused beyond a rate is
therefore told later and later; who waits for an answer before the next call, as nearly
every client does, is slowed down to that rate, and predictions keep their latency.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from acclimate_service.rpc.rates import Meter

REFUSALS: Final = 50.0  # a second that an address is told at once
LONGEST: Final = 1.0  # seconds that one is held back
HELD: Final = 1000  # at once, and
HELD_BYTES: Final = 64 * 2**20  # of their messages; what is beyond is refused at once


class Brake:
    """Holds refusals back, by the caller's address. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._meter = Meter("refusals", REFUSALS, clock)
        self._held = 0
        self._bytes = 0

    def seconds(self, address: str) -> float:
        """How long to hold back the next refusal of *address*; it is counted."""
        return self._meter.pace(address, 1, most=LONGEST)

    async def hold(self, address: str, size: int) -> None:
        """Wait for as long as the next refusal, of a message of *size* bytes, is held back."""
        seconds = self.seconds(address)
        if not seconds or self._held >= HELD or self._bytes + size > HELD_BYTES:
            return
        self._held += 1
        self._bytes += size
        try:
            await asyncio.sleep(seconds)
        finally:
            self._held -= 1
            self._bytes -= size
