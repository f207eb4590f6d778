"""The real processes, started, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self, TypeVar

import acclimate

START_SECONDS = 110.0  # of a process that lives: less than a test may take
T = TypeVar("T")


def wait_for(
    condition: Callable[[], T | None], seconds: float, what: str, *, every: float = 0.05
) -> T:
    """The first truthy answer of *condition*, asked *every* so often for at most *seconds*."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(every)
    raise AssertionError(f"{what} did not happen within {seconds:g} s")


class Process:
    """One of our processes over one home folder.

    *environment* is what it finds there beside its settings.
    """

    def __init__(
        self,
        module: str,
        home: Path,
        *,
        environment: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.module = module
        self.home = home
        self._environment = os.environ | {"ACCLIMATE_HOME": str(home), **(environment or {})}
        self._environment |= {f"ACCLIMATE_{k.upper()}": str(v) for k, v in settings.items()}
        self.log = home / f"{module}.log"
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its output goes to a log in the home folder."""
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", f"acclimate_service.{self.module}"],
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last."""
        assert self.child is not None
        return self.child.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.child is not None and self.child.poll() is None

    def finds(self, **environment: str) -> None:
        """From its next start on, it finds this in its environment too."""
        self._environment |= environment

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; the exit status."""
        assert self.child is not None
        if self.child.poll() is None:
            self.child.send_signal(number)
        return self.child.wait(timeout=40)

    def restart(self) -> None:
        """SIGKILL and a fresh start."""
        self.kill()
        self.start()


class Service:
    """``serve`` and ``work`` over one home, on a free port of the loopback interface.

    As a context, it starts both and ends them.
    """

    def __init__(
        self,
        home: Path,
        *,
        serve: Mapping[str, object],
        work: Mapping[str, object],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.serve = Process("serve", home, environment=environment, port=free_port(), **serve)
        self.work = Process("work", home, environment=environment, **work)

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.serve._environment['ACCLIMATE_PORT']}"

    def client(self, *, patience: float = 120.0) -> acclimate.Client:
        """A client, once the server answers."""
        client = acclimate.Client(self.target, patience=patience)

        def ready() -> bool:
            assert self.serve.child is not None
            assert self.serve.child.poll() is None, self.serve.log.read_text()[-4000:]
            try:
                return bool(client.health())
            except acclimate.AcclimateError:
                return False

        wait_for(ready, START_SECONDS, "the server's first answer")
        return client

    def __enter__(self) -> Self:
        self.serve.start()
        self.work.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End both, by their own pids."""
        for process in (self.work, self.serve):
            if process.child is not None:
                process.kill()


def free_port() -> int:
    """A TCP port nobody listens on now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
