"""A disk that fills at many points, with room left for less or more, and is given room again."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import grpc
from tests.acceptance.processes import wait_for
from tests.chaos.colours import ask_once, matches
from tests.chaos.row import Row
from tests.chaos.siege import Siege
from tests.chaos.trainers import trainers
from tests.chaos.trap import Trap
from tests.chaos.world import Plan, World

from acclimate_service.domain.job import Phase

ROOM = 1 << 30  # bytes, of the disk when it is not full
MOST_LEFT = 4 << 20  # bytes that are left at the last point; none at the first
FULL_SECONDS = 4.0  # at each point, and before that until a trainer has met it:
MEET_SECONDS = 15.0  # less than a trainer waits for room before it gives up
SPEC = {"strategy": "tail", "epochs": 20}  # of each job: every phase, each for a moment
STARTS = 3  # servers killed and started on the full disk
MET = r"(?:store unavailable, waiting|the trunk cache cannot be written).*? phase=(\w+)"
NAMED = "STORE_FULL"  # the reason that clients are to be told


class Disk(Protocol):
    """What a home lies on."""

    how: str
    told: bool

    def leave(self, free: int) -> None:
        """Leave only *free* bytes."""

    def widen(self) -> None:
        """Give room again."""


def disk(plan: Plan, *, times: int = 20) -> Iterator[Row]:
    """Fill the disk so many times under traffic, with between nothing and 4 MiB left."""
    with tempfile.TemporaryDirectory(prefix="chaos-disk-") as folder:
        mounted = _is_mounted(Path(folder))
        try:
            home = Path(folder) / "home"
            with World(home) as world:
                yield _filled(
                    plan, world, Mounted(home.parent) if mounted else Limited(world), times
                )
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=True)


def _filled(plan: Plan, world: World, disk: Disk, times: int) -> Row:
    # Elsewhere, so that what the trainers meet on the full disk is told.
    log = world.service.work.log = plan.folder / "work.log"
    phases, rounds = tuple(Phase), plan.rounds(times)
    with Siege(world, plan, spec=SPEC) as siege:
        for number in rounds:
            # From nothing upwards, so that each phase meets one that is full for anything.
            free = int(MOST_LEFT ** (number / max(1, times - 1))) if number else 0
            phase = phases[number % len(phases)]
            before = _met(log)
            with Trap(world, phase).sprung():
                disk.leave(free)
            with contextlib.suppress(AssertionError):  # what is left may be enough for it
                wait_for(lambda: _met(log) != before, MEET_SECONDS, "a write")  # noqa: B023
            time.sleep(FULL_SECONDS)
            disk.widen()
            siege.goes_on()
            met = dict(_met(log) - before)
            told = dict(siege.ledger.refusals)
            plan.say(f"{number + 1} of {times}, {free:,} left in {phase.value}: {met}, {told}")
    started = _start_when_full(world, disk)
    tally = siege.account()
    tally["servers not started"] = STARTS - started
    tally.note("never told of the disk", wrong=disk.told and not siege.ledger.refusals[NAMED])
    return Row(
        scenario="disk",
        did=f"{disk.how}, in each phase of a job by turns, then widened",
        times=rounds.done,
        broken=tally,
        measured={
            **siege.measured(),
            "servers started when it was full": started,
            **{f"writes without room in {phase}": n for phase, n in sorted(_met(log).items())},
        },
    )


def _met(log: Path) -> Counter[str]:
    """What the trainers were doing when they found no room, each time that they did."""
    return Counter(re.findall(MET, log.read_text(errors="replace")))


def _start_when_full(world: World, disk: Disk) -> int:
    """Kill the server and start it while nothing can be written; how often it then predicts."""
    disk.leave(0)
    started = 0
    for _ in range(STARTS):
        world.service.serve.restart()
        with contextlib.suppress(AssertionError):
            world.service.client().close()
            with grpc.insecure_channel(world.service.target) as channel:
                answer = ask_once(channel)
                started += answer is not None and matches(answer)
    disk.widen()
    return started


class Mounted:
    """A file system in memory, whose size is changed while it is in use."""

    how = "a tmpfs filled, between nothing and 4 MiB left"
    told = True  # whether those who write are told that it is full

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def leave(self, free: int) -> None:
        """Leave only *free* bytes."""
        # Refused where more has been written meanwhile than the new size holds.
        while not self._resize(self._used() + free):
            time.sleep(0.01)

    def widen(self) -> None:
        """Give room again."""
        assert self._resize(ROOM)

    def _used(self) -> int:
        found = os.statvfs(self._folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _resize(self, size: int) -> bool:
        # In whole pages; 0 would mean no limit.
        command = ["mount", "-o", f"remount,size={size}", str(self._folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Limited:
    """Files that may not grow beyond what is left: for who may not mount anything."""

    how = "files kept from growing beyond between nothing and 4 MiB (RLIMIT_FSIZE)"
    told = False  # "File too large" is what they are told

    def __init__(self, world: World) -> None:
        self._world = world

    def leave(self, free: int) -> None:
        """Leave only *free* bytes to each file."""
        self._limit(free)

    def widen(self) -> None:
        """Give room again."""
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, most: int) -> None:
        service = self._world.service
        for pid in (service.serve.pid, service.work.pid, *trainers(self._world.home)):
            with contextlib.suppress(ProcessLookupError):  # a trainer that has just ended
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))


def _is_mounted(folder: Path) -> bool:
    """Whether a file system could be mounted on *folder*."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
