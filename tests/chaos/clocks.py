"""Processes whose wall clocks are hours apart, and jump in the middle of what they do."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from tests.acceptance.processes import Process
from tests.chaos.row import Row
from tests.chaos.shim import Shim
from tests.chaos.siege import Siege
from tests.chaos.trainers import TrainerWatch
from tests.chaos.world import ENGINES, WORK, Plan, World, place

from acclimate_service.domain.job import EventKind

HOUR = 3600.0
HOURS = (-HOUR, 0.0, HOUR)
EVERY = 6.0  # seconds, longer than a lease
EPOCHS = 200  # of a job, which is to be in hand at most of the jumps
HANDS = ("server", "worker", "other")


def clock(plan: Plan, *, times: int = 20, parts: tuple[str, ...] = ENGINES) -> Iterator[Row]:
    """Let the clocks of a server and two workers jump so many times, over each engine."""
    for engine in parts:
        with place(engine, "clock") as (home, database):
            shims = {hand: Shim(plan.folder, f"{engine}-{hand}") for hand in HANDS}
            with World(home, database=database) as world:
                world.service.serve.finds(**shims["server"].environment)
                world.service.work.finds(**shims["worker"].environment)
                elsewhere = world.other_home()
                other = Process(
                    "work",
                    elsewhere,
                    environment=shims["other"].environment,
                    database_url=world.url,
                    **WORK,
                )
                try:
                    with TrainerWatch(elsewhere) as watch:
                        yield _jumped(
                            plan,
                            world,
                            other=other,
                            shims=shims,
                            watch=watch,
                            engine=engine,
                            times=times,
                        )
                finally:
                    if other.child is not None:
                        other.kill()


def _jumped(
    plan: Plan,
    world: World,
    *,
    other: Process,
    shims: dict[str, Shim],
    watch: TrainerWatch,
    engine: str,
    times: int,
) -> Row:
    drawn = random.Random(f"{plan.seed} {engine}")
    in_hand, rounds = 0, plan.rounds(times)
    with Siege(world, plan, spec={"epochs": EPOCHS}) as siege:
        other.start()
        # The two that differ most, from the beginning; then each by turns, at random.
        shims["worker"].turn(ahead=-HOUR)
        shims["other"].turn(ahead=HOUR)
        for number in rounds:
            time.sleep(EVERY * drawn.uniform(0.5, 1.5))
            world.wait_for(world.workers, "a job in hand")
            in_hand += len(world.workers())
            hand, ahead = HANDS[number % len(HANDS)], drawn.choice(HOURS)
            shims[hand].turn(ahead=ahead)
            plan.say(f"{engine}: {number + 1} of {times}: {hand} at {ahead / HOUR:+g} h")
        siege.goes_on()
    tally = siege.account()
    tally["leases stolen"] = _stolen(world)
    tally["second trainers"] = max(tally["second trainers"], watch.most - 1)
    tally["processes ended"] += not other.alive
    return Row(
        scenario=f"clock, {engine}",
        did="the wall clocks of a server and two workers set to -1 h, 0 or +1 h, by turns",
        times=rounds.done,
        broken=tally,
        measured={**siege.measured(), "jobs in hand at a jump": in_hand},
    )


def _stolen(world: World) -> int:
    """How often a job was begun again though nobody had given it back: here nobody dies."""
    stolen = 0
    for job in world.jobs():
        told = world.store.jobs.events(job.name, limit=100_000)
        back = sum(
            event.kind is EventKind.STATE and event.message.startswith("given back")
            for event in told
        )
        stolen += max(0, job.attempt - 1 - back)
    return stolen
