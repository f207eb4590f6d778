"""``acclimate up`` as a person starts it: two children that live and die with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acclimate import AcclimateError, Client

START_SECONDS = 60.0
pytestmark = pytest.mark.timeout(180)


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < until, f"{what} did not happen"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def serve_of(parent: int) -> set[int]:
    """The serving processes that are children of *parent*."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                words = (path.parent / "cmdline").read_bytes().split(b"\0")
                if b"acclimate_service.serve" in words:
                    found.add(int(path.parent.name))
    return found


def answers(target: str) -> bool:
    with Client(target, timeout=2, retries=0) as client:
        try:
            return bool(client.health())
        except AcclimateError:
            return False


@pytest.fixture
def up(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "acclimate",
                "up",
                "--home",
                str(tmp_path / "home"),
                "--port",
                "0",
                "--device",
                "cpu",
                "--json",
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert child.stdout is not None
    try:
        readable, _, _ = select.select([child.stdout], [], [], START_SECONDS)
        assert readable, (tmp_path / "log").read_text()[-3000:]
        yield child, json.loads(child.stdout.readline())
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait(timeout=60)
        child.stdout.close()


def test_up_restarts_a_killed_server_and_ends_both_on_sigterm(
    up: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    child, told = up
    assert answers(told["listening"])
    os.kill(told["pids"]["serve"], signal.SIGKILL)
    wait_for(lambda: serve_of(child.pid) - {told["pids"]["serve"]}, "a new server")
    wait_for(lambda: answers(told["listening"]), "its first answer")
    (server,) = serve_of(child.pid)

    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 0
    assert not alive(server)
    assert not alive(told["pids"]["work"])


def test_the_children_of_a_killed_up_end_with_it(
    up: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    child, told = up
    child.kill()
    child.wait(timeout=10)
    for pid in told["pids"].values():
        wait_for(lambda pid=pid: not alive(pid), "the end of a child")  # type: ignore[misc]


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "acclimate",
                "up",
                "--home",
                str(tmp_path / "home"),
                "--port",
                str(port),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 2
    assert f"127.0.0.1:{port} already; choose another --port" in ended.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("PROVIDER", "cuda", "PROVIDER_UNAVAILABLE"),
        ("QUEUE", "none at all", "ACCLIMATE_QUEUE: Input should be a valid integer"),
        ("DEVICE", "none at all", "ACCLIMATE_DEVICE: String should match"),
    ],
)
def test_what_cannot_run_as_it_is_set_up_ends_up_at_once_with_its_reason(
    tmp_path: Path, setting: str, value: str, why: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "acclimate", "up", "--home", str(tmp_path), "--port", "0"],
        env=os.environ | {f"ACCLIMATE_{setting}": value},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr[-3000:]
    assert why in ended.stderr
    assert "NOT_STARTED" in ended.stderr.splitlines()[-1]
    assert "RESTART" not in ended.stderr
    assert "none at all" not in ended.stderr  # a value may be a secret
