"""Refused callers in the audit log: each kind once a minute, with how often it happened.

Anyone can be refused as often as they like, so neither the number of lines nor the
memory may grow with that.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from acclimate_service.rpc.bounds import Lane
from acclimate_service.store import Store

WINDOW_SECONDS: Final = 60.0
KINDS: Final = 100  # told apart in one window; the rest are counted together


@dataclass(frozen=True, order=True)
class Denial:
    """One kind of refusal."""

    who: str
    method: str
    reason: str
    host: str


_OTHERS: Final = Denial("others", "", "", "")


class Denials:
    """Counts refusals and writes them down, in *lane*. Belongs to one event loop."""

    def __init__(
        self, store: Store, *, lane: Lane, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._lane = lane
        self._clock = clock
        self._counts: Counter[Denial] = Counter()
        self._fresh: list[Denial] = []  # seen for the first time in this window
        self._since = clock()

    def count(self, denial: Denial) -> None:
        """Remember a refusal; ``flush`` writes it."""
        if denial not in self._counts and len(self._counts) >= KINDS:
            denial = _OTHERS
        if denial not in self._counts:
            self._fresh.append(denial)
        self._counts[denial] += 1

    async def flush(self, *, last: bool = False) -> None:
        """Write what is new at once, and what was repeated when its window ends.

        Raises:
            StoreUnavailable: the store is out of reach; what was counted is kept.
        """
        while self._fresh:
            await self._write(self._fresh[0], 1)
            denial = self._fresh.pop(0)
            self._counts[denial] -= 1
        if not last and self._clock() - self._since < WINDOW_SECONDS:
            return
        for denial, more in list(self._counts.items()):
            if more:
                await self._write(denial, more)
            self._counts[denial] -= more  # meanwhile there may have been another
            if not self._counts[denial]:
                del self._counts[denial]
        self._since = self._clock()

    async def _write(self, denial: Denial, times: int) -> None:
        await self._lane.run(
            self._store.audit.record,
            who=denial.who,
            action=denial.method.rpartition("/")[2] or "calls",
            subject="",
            why=f"refused: {denial.reason or 'of many kinds'}"
            + (f", {times} times more" if times > 1 else ""),
            origin=denial.host,
        )
