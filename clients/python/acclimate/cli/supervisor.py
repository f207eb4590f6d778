"""Keeps the processes of the service alive, and ends them together."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import IO, Self

from acclimate.cli.refusals import Exit, complain

GRACE_SECONDS = 30.0  # from SIGTERM to SIGKILL
FIRST_PAUSE, LAST_PAUSE = 0.5, 30.0  # before a dead child is started again
TEND_SECONDS = 0.1  # between two looks
REFUSAL_SECONDS = 600.0  # in which a process says that its settings cannot be met
STEADY_SECONDS = 60.0  # after which a death is no longer counted as a failed start


class Child:
    """One process, started again whenever it ends, after pauses that grow, unless it refuses."""

    def __init__(self, process: str, env: Mapping[str, str], output: IO[str] | IO[bytes]) -> None:
        self.process = process
        self.failures = 0  # ends in a row, each within STEADY_SECONDS of its start
        # It said, before it ever ran for long, that starting it again would not help.
        self.refused = False
        self._steady = False
        self._env = env
        self._output = output
        self._running: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._due = 0.0

    @property
    def pid(self) -> int | None:
        """Its process id; None while it is down."""
        return None if self._running is None else self._running.pid

    def tend(self, now: float) -> None:
        """Start it if it is due; notice if it has ended. *now* is a monotonic clock."""
        if self._running is None:
            if now >= self._due:
                self._start(now)
            return
        status = self._running.poll()
        if status is None:
            return
        self._running = None
        ran = now - self._started
        self.failures = 1 if ran > STEADY_SECONDS else self.failures + 1
        # A full machine takes minutes to find out that it must refuse.
        self._steady |= ran > (REFUSAL_SECONDS if status == Exit.USAGE else STEADY_SECONDS)
        self.refused = status == Exit.USAGE and not self._steady
        if self.refused:
            self._due = math.inf
            return
        pause = min(FIRST_PAUSE * 2 ** (self.failures - 1), LAST_PAUSE)
        self._due = now + pause
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        complain("RESTART", f"{self.process} ended {how}; it starts again in {pause:g} s")

    def _start(self, now: float) -> None:
        self._running = subprocess.Popen(
            [sys.executable, "-m", "acclimate._bound", str(os.getpid()), self.process],
            env=dict(self._env),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            # A group of its own: Ctrl-C is for the supervisor, who ends it in order.
            process_group=0,
        )
        self._started = now

    def stop(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(number)

    def gone(self) -> bool:
        """Whether it has ended."""
        return self._running is None or self._running.poll() is not None


class Supervisor:
    """``serve`` and ``work`` over one home.

    Args:
        env: the environment of both: their settings.
        output: where both write; never our stdout, which is for answers.
    """

    def __init__(self, env: Mapping[str, str], output: IO[str] | IO[bytes]) -> None:
        self.serve = Child("serve", env, output)
        self.work = Child("work", env, output)
        self._children = (self.serve, self.work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def refused(self) -> str:
        """The process that cannot run as things are set up; empty if there is none."""
        return next((child.process for child in self._children if child.refused), "")

    def tend(self) -> None:
        """Look after both once; never blocks."""
        for child in self._children:
            child.tend(time.monotonic())

    @contextlib.contextmanager
    def tended(self) -> Iterator[None]:
        """Look after both on a thread, for the length of a block.

        A child started there is bound to that thread (prctl counts threads as
        parents), so leave the block only to stop both.
        """
        ended = threading.Event()

        def tend() -> None:
            while not ended.wait(TEND_SECONDS):
                self.tend()

        thread = threading.Thread(target=tend, name="acclimate-supervisor")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def stop(self, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """End both: the worker first told, then the server; killed if they do not go.

        Args:
            hurry: asked again and again; true kills what is left at once.
        """
        for child in reversed(self._children):
            child.stop(signal.SIGTERM)
        until = time.monotonic() + GRACE_SECONDS
        while not all(child.gone() for child in self._children):
            if hurry() or time.monotonic() > until:
                for child in self._children:
                    child.stop(signal.SIGKILL)
            time.sleep(0.05)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now.

    Raises:
        OSError: *host* is no address of this machine.
    """
    with _bound(host, 0) as probe:
        port: int = probe.getsockname()[1]
        return port


def is_taken(host: str, port: int) -> bool:
    """Whether somebody listens there.

    Raises:
        OSError: *host* is no address of this machine, or the port is not for this account.
    """
    try:
        _bound(host, port).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return True
    return False


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address of either family."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    probe = socket.socket(family, kind, protocol)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
    except OSError:
        probe.close()
        raise
    return probe
