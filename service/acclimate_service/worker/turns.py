"""Whether a process that steps back gets its turns at all.

Linux tells of every thread how long it ran and how long it stood ready and waited
(``/proc/PID/task/*/schedstat``).
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path

WINDOW_SECONDS = 30.0
LEAST_SHARE = 0.05  # of the time in which it could have run; beside half-used cores it gets a third


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Nanoseconds in which a process's threads ``ran``, and ``waited`` though they were ready."""

    ran: int
    waited: int


def turns_of(pid: int) -> Turns | None:
    """The turns of a process's present threads; None where the kernel does not tell."""
    ran = waited = 0
    told = False
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            fields = path.read_text().split()
            ran, waited, told = ran + int(fields[0]), waited + int(fields[1]), True
    return Turns(ran=ran, waited=waited) if told else None


class Watch:
    """Looks at a process's turns from time to time, over a sliding window."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Turns]] = deque()

    def starving(self, now: float, turns: Turns | None) -> bool:
        """Note *turns* at *now* (seconds); whether it got too few over a whole window.

        A process that wanted to run for less than half of the window is not starving:
        it had nothing to do, or waited for a disk.
        """
        if turns is None:
            return False
        self._seen.append((now, turns))
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW_SECONDS:
            self._seen.popleft()
        began, first = self._seen[0]
        if now - began < WINDOW_SECONDS:
            return False
        ran, waited = turns.ran - first.ran, turns.waited - first.waited
        wanted = ran + waited
        return wanted > WINDOW_SECONDS * 1e9 / 2 and ran < LEAST_SHARE * wanted
