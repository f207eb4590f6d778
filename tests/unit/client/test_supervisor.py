"""The supervisor over children that are no service, started and killed for real."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acclimate.cli import supervisor as module
from acclimate.cli.supervisor import Supervisor, free_port, is_taken


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[int]]:
    """Children that write down their pid and sleep; the pids of one of them so far."""
    python = tmp_path / "python"
    # The words are: -m acclimate._bound PARENT PROCESS
    python.write_text(f'#!/bin/sh\necho $$ >> "{tmp_path}/$4"\nexec sleep 60\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.05)

    def started(process: str) -> list[int]:
        path = tmp_path / process
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    return started


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor(os.environ, sys.stderr) as made:
        yield made


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_what_dies_is_started_again(
    supervisor: Supervisor,
    pids: Callable[[str], list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    supervisor.tend()
    with supervisor.tended():
        wait_for(lambda: pids("serve") and pids("work"))
        os.kill(pids("serve")[0], signal.SIGKILL)
        wait_for(lambda: len(pids("serve")) == 2)
        assert len(pids("work")) == 1
    supervisor.stop()
    assert supervisor.serve.gone()
    assert supervisor.work.gone()
    assert "serve ended by SIGKILL; it starts again in 0.05 s" in capsys.readouterr().err


def test_pauses_grow_with_failures_in_a_row(
    supervisor: Supervisor, pids: Callable[[str], list[int]]
) -> None:
    now = 1000.0
    child = supervisor.serve
    for failures, pause in ((1, 0.05), (2, 0.1), (3, 0.2)):
        child.tend(now)
        pid = child.pid
        assert pid is not None
        wait_for(lambda so_far=failures: len(pids("serve")) == so_far)  # type: ignore[misc]
        os.kill(pid, signal.SIGKILL)
        wait_for(child.gone)
        child.tend(now)
        assert child.failures == failures
        child.tend(now + 0.9 * pause)
        assert child.pid is None
        now += pause


@pytest.mark.parametrize(("status", "refused"), [(2, True), (1, False)])
def test_what_says_that_it_cannot_run_is_not_started_again(
    supervisor: Supervisor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    refused: bool,
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexit {status}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    child = supervisor.work
    child.tend(1000.0)
    wait_for(child.gone)
    child.tend(1000.0 + 2 * module.STEADY_SECONDS)  # a machine on which everything takes long
    child.tend(2000.0)
    assert child.failures == 1
    assert (child.refused, supervisor.refused) == (refused, "work" if refused else "")
    assert (child.pid is None) is refused
    monkeypatch.undo()  # before the fixture waits for whatever runs


def test_what_ran_for_long_is_started_again_whatever_it_says(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 2\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    child = supervisor.serve
    for now in (1000.0, 5000.0):
        child.tend(now)
        wait_for(child.gone)
        child.tend(now + module.REFUSAL_SECONDS + 1)
        assert not child.refused
        assert child.failures == 1


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)]
)
def test_a_port_is_free_until_somebody_listens(host: str, family: socket.AddressFamily) -> None:
    try:
        port = free_port(host)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    assert not is_taken(host, port)
    with socket.socket(family) as listener:
        listener.bind((host, port))
        listener.listen()
        assert is_taken(host, port)


def test_an_address_of_another_machine_is_not_called_taken() -> None:
    with pytest.raises(OSError, match="assign"):
        is_taken("192.0.2.1", free_port())
