"""A disk that fails to sync files, folders and the database, and power that is cut then."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.chaos.row import Row
from tests.chaos.shim import Noted, Shim
from tests.chaos.siege import Siege
from tests.chaos.traffic import Traffic
from tests.chaos.world import Plan, Repeated, World, place

SHARE = 0.05  # of all syncs that fail
FAIL_SECONDS = 240.0  # for so many to fail; on a busy machine, fewer do
CUTS = 3
CUT_SHARE = 0.3  # of all syncs, before a power cut
CUT_AFTER = 4.0  # seconds of traffic


def fsync(plan: Plan, *, times: int = 300) -> Iterator[Row]:
    """Let so many syncs fail under traffic, then cut the power while they fail."""
    drawn = random.Random(plan.seed)
    shim = Shim(plan.folder, "disk", logs=True)
    with (
        place("sqlite", "fsync") as (home, _),
        World(home, environment=shim.environment) as world,
    ):
        with Siege(world, plan) as siege:
            shim.turn(failing=SHARE)
            deadline = min(plan.until, time.monotonic() + FAIL_SECONDS)
            while (failed := _failed(shim).total()) < times and time.monotonic() < deadline:
                time.sleep(1)
                plan.say(f"{failed} of {times} failed: {dict(siege.ledger.refusals)}")
            shim.turn()
            siege.goes_on()
        siege.tally.note("runs without a failure", wrong=failed == 0)
        harmed = sum(_cut(plan, siege, shim, drawn, number) for number in range(CUTS))
        tally, measured, kinds = siege.account(), siege.measured(), _failed(shim)
    yield Row(
        scenario="fsync",
        did=f"a sync of {1 / SHARE:g} failed with EIO; then the power was cut {CUTS} times while "
        "syncs failed: every file and name not synced by then damaged or gone",
        times=kinds.total(),
        broken=tally,
        measured={
            **measured,
            **{f"of {kind}": number for kind, number in sorted(kinds.items())},
            "files damaged or gone": harmed,
        },
    )


def _failed(shim: Shim) -> Counter[str]:
    """How many syncs failed, by what was synced."""
    return Counter(_kind(Path(noted.path)) for noted in shim.noted() if noted.what == "failed")


def _kind(path: Path) -> str:
    if path.name.endswith(("-wal", ".db", "-journal")):
        return "SQLite"
    return "files" if path.parent.name == "tmp" else "folders"


def _cut(plan: Plan, siege: Siege, shim: Shim, drawn: random.Random, number: int) -> int:
    """Kill everything under failing syncs and damage what they left; how many files."""
    world, service = siege.world, siege.world.service
    traffic = Traffic(world, Plan(folder=plan.folder, seed=plan.seed + number), siege.ledger)
    first = 100_000 * (number + 1)  # uploads of other numbers than all before
    with Repeated(lambda n: traffic.upload(first + n), name="uploader"):
        shim.turn(failing=CUT_SHARE)
        time.sleep(drawn.uniform(0.5, 1.5) * CUT_AFTER)
        service.stop()
        harmed = _damage(world.home / "blobs", shim.noted(), drawn)
        shim.turn()
        service.serve.start()
        service.work.start()
        siege.goes_on()
    plan.say(f"power cut {number + 1} of {CUTS}: {harmed} files damaged or gone")
    return harmed


def _damage(blobs: Path, noted: Iterable[Noted], drawn: random.Random) -> int:
    """Do to the blobs what a power cut may do to files and names that were not synced."""
    synced, failed = set[str](), set[str]()  # by the temporary names, which are never reused
    came_from: dict[str, str] = {}  # the temporary name of each blob that a process stored
    waiting: dict[str, set[str]] = defaultdict(set)  # names in a folder, not synced yet
    begun: dict[str, list[set[str]]] = defaultdict(list)
    for one in noted:
        if one.what == "named":
            before, _, after = one.path.partition(":")
            came_from[after] = before
            waiting[str(Path(after).parent)].add(after)
        elif one.what == "began":
            begun[one.path].append(set(waiting[one.path]))
        elif one.what == "synced":
            synced.add(one.path)
            waiting[one.path] -= begun[one.path].pop(0)
        else:
            failed.add(one.path)
            begun[one.path].pop(0)
    harmed = 0
    for name, temporary in came_from.items():
        path = Path(name)
        if blobs not in path.parents or not path.exists():
            continue
        if temporary not in synced - failed:
            path.write_bytes(path.read_bytes()[: drawn.randrange(1 + path.stat().st_size // 2)])
            harmed += 1
        elif name in waiting[str(path.parent)]:
            path.unlink()
            harmed += 1
    return harmed
