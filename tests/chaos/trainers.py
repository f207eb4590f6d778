"""Who trains: the trainer processes of a home, seen from outside, several times a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

MODULE = b"acclimate_service.worker.trainer"
EVERY = 0.03  # seconds between two looks
# The kernel ends the trainer of a worker that was killed, but a gigabyte takes it a moment
# to give back, in which the next worker's trainer may have begun to import torch.
DYING = 0.5
SURE_AFTER = 1.0  # seconds after which a process will not become a trainer any more


def trainers(home: Path) -> Iterator[int]:
    """The pids of the trainers that run over *home*; the dead that nobody buried are not in it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_trainer(int(entry.name), home):
            yield int(entry.name)


def is_trainer(pid: int, home: Path) -> bool:
    """Whether the process is a trainer that runs over *home*."""
    folder = Path("/proc") / str(pid)
    try:
        if MODULE not in (folder / "cmdline").read_bytes():
            return False
        return f"ACCLIMATE_HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0")
    except (OSError, ValueError):  # it ended meanwhile
        return False


class TrainerWatch:
    """Looks again and again while its block runs.

    ``most`` is the largest number that was seen at once for longer than ``DYING`` seconds.
    """

    def __init__(self, home: Path) -> None:
        self.most = 0
        self._several_since: float | None = None
        self.looks = 0
        self._home = home
        self._others: dict[int, float] = {}  # pids that are no trainers, and since when known
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="trainer watch", daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            found, now = self._count(), time.monotonic()
            if found < 2:
                self._several_since = None
            elif self._several_since is None:
                self._several_since = now
            if found < 2 or now - (self._several_since or now) > DYING:
                self.most = max(self.most, found)
            self.looks += 1

    def _count(self) -> int:
        now, found = time.monotonic(), 0
        alive = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        self._others = {pid: at for pid, at in self._others.items() if pid in alive}
        for pid in alive:
            if now - self._others.get(pid, now) > SURE_AFTER:
                continue
            if is_trainer(pid, self._home):
                found += 1
                self._others.pop(pid, None)
            else:
                self._others.setdefault(pid, now)
        return found

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(10)
