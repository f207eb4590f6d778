"""A store that is locked for long, or goes and comes back, under traffic."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator

import sqlalchemy as sa
from tests.chaos.row import Row
from tests.chaos.siege import Siege
from tests.chaos.world import ENGINES, Plan, World, place

from acclimate_service.store import schema

LOCKED_SECONDS = 75.0
GONE_SECONDS = 6.0  # longer than a lease
KINDS = ("locked", "gone")
PARTS = tuple(f"{kind}-{engine}" for engine in ENGINES for kind in KINDS)


def store(plan: Plan, *, times: int = 10, parts: tuple[str, ...] = PARTS) -> Iterator[Row]:
    """Lock each store once for 75 s, and take it away so many times."""
    for part in parts:
        kind, engine = part.split("-")
        with (
            place(engine, "store") as (home, database),
            World(home, database=database) as world,
        ):
            yield (
                _locked(plan, world, engine)
                if kind == "locked"
                else _gone(plan, world, engine, times)
            )


def _locked(plan: Plan, world: World, engine: str) -> Row:
    with Siege(world, plan) as siege:
        time.sleep(5)
        with _held(world):
            plan.say(f"{engine}: locked")
            time.sleep(LOCKED_SECONDS)
        plan.say(f"{engine}: free again; {dict(siege.ledger.refusals)}")
        siege.goes_on()
    how = "BEGIN EXCLUSIVE" if engine == "sqlite" else "every table locked ACCESS EXCLUSIVE"
    return Row(
        scenario=f"store: locked, {engine}",
        did=f"{how} by another process's connection for {LOCKED_SECONDS:g} s",
        times=1,
        broken=siege.account(),
        measured=siege.measured(),
    )


@contextlib.contextmanager
def _held(world: World) -> Iterator[None]:
    """Have somebody else sit on the whole database."""
    if world.database is None:
        other = sqlite3.connect(
            world.home / "acclimate.db", timeout=60, isolation_level=None, check_same_thread=False
        )
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")
        other.close()
        return
    engine = sa.create_engine(world.url)
    with engine.begin() as connection:
        tables = ", ".join(table.name for table in schema.metadata.sorted_tables)
        connection.execute(sa.text(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE"))
        yield
    engine.dispose()


def _gone(plan: Plan, world: World, engine: str, times: int) -> Row:
    rounds = plan.rounds(times)
    with Siege(world, plan) as siege:
        for number in rounds:
            time.sleep(2)
            with _absent(world):
                time.sleep(GONE_SECONDS)
            siege.goes_on()
            plan.say(f"{engine}: {number + 1} of {times} times; {dict(siege.ledger.refusals)}")
    how = "the file moved away" if engine == "sqlite" else "the database server crashed"
    return Row(
        scenario=f"store: gone, {engine}",
        did=f"{how}, and back after {GONE_SECONDS:g} s",
        times=rounds.done,
        broken=siege.account(),
        measured=siege.measured(),
    )


@contextlib.contextmanager
def _absent(world: World) -> Iterator[None]:
    """Have no database for a while."""
    if world.database is not None:
        world.database.crash()
        yield
        world.database.come_back()
        return
    path = world.home / "acclimate.db"
    away = path.rename(path.with_name("away.db"))
    yield
    # Whoever made a new one in its place has lost what its log held.
    assert not path.exists(), "an empty database was made where one was missing"
    away.rename(path)
