"""A handle on a real process that works on the test's store."""

from __future__ import annotations

import contextlib
import multiprocessing

from tests.contract import actors
from tests.contract.conftest import Place

# Children of a server that has everything imported but no database open: a fork of this
# process would take SQLite's idea of its locks with it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["__main__", "tests.contract.actors"])


class Actor:
    """A real process at work on the store."""

    def __init__(self, place: Place, name: str, *arguments: object) -> None:
        self._line, far = PROCESSES.Pipe()
        self.process = PROCESSES.Process(
            target=actors.act, args=(far, name, place.url, place.blobs, arguments), daemon=True
        )
        self.process.start()
        far.close()
        assert self.hear() == "open"

    def go(self) -> None:
        self._line.send("go")

    def hear(self) -> object:
        """The next thing the process says."""
        assert self._line.poll(60)
        return self._line.recv()

    def hear_out(self) -> list[object]:
        """All that it still has to say, until it ends, by itself or by a kill."""
        said = []
        with contextlib.suppress(EOFError):
            while True:
                said.append(self.hear())
        self.process.join(60)
        return said
