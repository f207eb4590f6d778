"""A trainer that steps back and gets no turns is noticed; one that has nothing to do is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acclimate_service.domain.job import Lease
from acclimate_service.domain.names import JobName
from acclimate_service.worker import trainer
from acclimate_service.worker.loop import Loop
from acclimate_service.worker.turns import WINDOW_SECONDS, Turns, Watch, turns_of


def watched(share: float, wanted: float, *, seconds: float = 2 * WINDOW_SECONDS) -> list[bool]:
    """What a watch says each second of a process that wants *wanted* and gets *share* of it."""
    watch, said = Watch(), []
    for second in range(int(seconds) + 1):
        total = second * 1e9 * wanted
        turns = Turns(ran=int(total * share), waited=int(total * (1 - share)))
        said.append(watch.starving(second, turns))
    return said


@pytest.mark.parametrize(
    ("share", "wanted", "starving"),
    [
        (0.0, 1.0, True),
        (0.01, 1.0, True),
        (0.01, 4.0, True),  # four threads
        (0.1, 1.0, False),  # slow, but it goes on
        (1.0, 1.0, False),
        (0.0, 0.3, False),  # mostly waiting for something else
        (0.0, 0.0, False),
    ],
)
def test_who_wants_to_run_and_does_not_is_starving(
    share: float, wanted: float, starving: bool
) -> None:
    said = watched(share, wanted)
    assert not any(said[: int(WINDOW_SECONDS)])
    assert said[-1] is starving


def test_one_bad_window_is_enough_and_good_times_before_it_do_not_count() -> None:
    watch = Watch()
    for second in range(100):
        watch.starving(second, Turns(ran=second * 10**9, waited=0))
    stuck = Turns(ran=99 * 10**9, waited=0)
    later = [
        watch.starving(100 + n, Turns(ran=stuck.ran, waited=(n + 1) * 10**9)) for n in range(40)
    ]
    assert later[-1]
    assert not later[5]


def test_a_kernel_that_does_not_tell_is_no_famine() -> None:
    assert not Watch().starving(0, None)
    assert turns_of(2**30) is None


def test_the_turns_of_a_real_process_are_told() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            until = time.monotonic() + 20
            turns = None
            while time.monotonic() < until and not (turns and turns.ran > 50_000_000):
                time.sleep(0.05)
                turns = turns_of(process.pid)
            assert turns is not None
            assert turns.ran > 50_000_000
        finally:
            process.kill()
    assert turns_of(os.getpid()) is not None


@pytest.mark.parametrize(
    ("priority", "policy", "nice"),
    [("idle", os.SCHED_IDLE, 0), ("low", os.SCHED_OTHER, 10), ("usual", os.SCHED_OTHER, 0)],
)
def test_a_trainer_steps_back_as_far_as_it_is_told(priority: str, policy: int, nice: int) -> None:
    program = (
        "import os; from acclimate_service.worker.trainer import _step_back\n"
        f"before = os.nice(0); _step_back({priority!r})\n"
        "print(os.sched_getscheduler(0), os.nice(0) - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert [int(word) for word in ran.stdout.split()[-2:]] == [policy, nice]


def test_a_gpus_lock_is_never_reached_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.tempfile, "gettempdir", lambda: str(tmp_path))  # type: ignore[attr-defined]
    with trainer._device_lock(None, "cuda:0"):
        assert (tmp_path / "acclimate-cuda-0.lock").is_file()
    (tmp_path / "acclimate-cuda-1.lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="symbolic link"), trainer._device_lock(None, "cuda:1"):
        pass
    assert not (tmp_path / "theirs").exists()


class Puppet:
    """A trainer that does what its test says, and a job for it."""

    def __init__(self, starving: bool) -> None:
        self._starving = starving
        self.killed = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers = {"ready": True, "start": None, "silence": 0.0, "gave_up": False, "last_words": ""}
        return lambda *_: answers[name]

    def alive(self) -> bool:
        return not self.killed

    def starving(self) -> bool:
        return self._starving

    def kill(self) -> None:
        self.killed = True


def test_a_starving_trainer_is_followed_by_one_that_steps_back_less_at_no_cost_to_the_job() -> None:
    stop, job = threading.Event(), JobName("j")
    asked: list[bool] = []
    released: list[tuple[JobName, bool, str]] = []

    class Jobs:
        def claim(self, *_: object, **__: object) -> Any:
            if len(asked) > 1:
                stop.set()
                return None
            claimed: Any = type("Claimed", (), {"name": job})()
            return claimed, Lease(job=job, worker="w", attempt=1)

        def heartbeat(self, *_: object, **__: object) -> Any:
            return type("Renewed", (), {"cancel_requested": False})()

        def release(self, lease: Lease, *, spent: bool, why: str) -> None:
            released.append((lease.job, spent, why))

    def spawn(starved: bool) -> Any:
        asked.append(starved)
        return Puppet(starving=not starved)

    jobs: Any = Jobs()
    Loop(
        jobs,
        worker="w",
        spawn=spawn,
        lease_seconds=4,
        poll_seconds=0.01,
        stall_seconds=60,
        max_attempts=3,
    ).run(stop)
    assert asked == [False, True]
    assert released == [(job, False, "it got no turns")]
