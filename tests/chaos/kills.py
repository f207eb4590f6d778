"""kill -9 of the server, of the worker and of both, at random moments, under traffic."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator

from tests.chaos.ledger import Ledger, account
from tests.chaos.row import Row
from tests.chaos.traffic import Traffic
from tests.chaos.trainers import TrainerWatch
from tests.chaos.world import ENGINES, Plan, Repeated, World, place

from acclimate_service.domain.job import JobState

VICTIMS = ("server", "worker", "both")
CLAIM_SECONDS = 20.0  # in which a worker that was started has a job in hand, if there is one


def kills(plan: Plan, *, times: int = 300, parts: tuple[str, ...] = ENGINES) -> Iterator[Row]:
    """So many kills, spread over the engines."""
    for engine in parts:
        yield _kills_over(plan, engine, times // len(parts))


def _kills_over(plan: Plan, engine: str, count: int) -> Row:
    drawn = random.Random(f"{plan.seed} {engine}")
    ledger, done, rounds = Ledger(), Counter[str](), plan.rounds(count)
    with place(engine, "kills") as (home, database):
        # Many kills may meet one job; here it is not to fail of them, but to reach its end.
        work = {"max_attempts": 10_000}
        with World(home, database=database, work=work) as world:
            world.furnish(plan, first_version=True)
            traffic = Traffic(world, plan, ledger)
            with TrainerWatch(home) as watch:
                with (
                    Repeated(traffic.upload, name="uploader"),
                    Repeated(traffic.ask, name="asker"),
                ):
                    for number in rounds:
                        victim = VICTIMS[number % len(VICTIMS)]
                        _kill(world, victim, drawn)
                        done[victim] += 1
                        plan.say(f"{engine}: {number + 1} of {count} kills")
                settled = world.settle()
            tally = account(world, ledger)
            tally["jobs not ended"] = len(world.jobs(JobState.QUEUED, JobState.RUNNING))
            tally["second trainers"] = max(0, watch.most - 1)
            tally.note("settlings missed", wrong=not settled)
            states = Counter(job.state.value for job in world.jobs())
            attempts = sum(job.attempt for job in world.jobs())
    return Row(
        scenario=f"kills, {engine}",
        did="kill -9 of the server, of the worker and of both, by turns",
        times=rounds.done,
        broken=tally,
        measured={
            **{f"of the {victim}": number for victim, number in done.items()},
            "examples acknowledged": ledger.examples,
            "uploads committed": len(ledger.committed),
            "broken off": len(ledger.broken_off),
            "jobs acknowledged": len(ledger.jobs),
            **{f"jobs {state}": number for state, number in sorted(states.items())},
            "attempts": attempts,
            "looks at the trainers": watch.looks,
        },
    )


def _kill(world: World, victim: str, drawn: random.Random) -> None:
    """One kill, at a moment in which there is something to break, and mostly is."""
    service = world.service
    if victim == "server":
        # From its first import on: some of these moments lie before it listens.
        time.sleep(drawn.uniform(0.05, 4.0))
        service.serve.restart()
        return
    if drawn.random() < 0.85:
        _wait_for_a_job_in_hand(world)
    time.sleep(drawn.uniform(0.0, 2.0))
    service.work.kill()
    if victim == "both":
        service.serve.restart()
    service.work.start()


def _wait_for_a_job_in_hand(world: World) -> None:
    """Until the worker that runs now has claimed a job, which takes it an import of torch."""
    deadline = time.monotonic() + CLAIM_SECONDS
    # The middle of a worker's name is its process; see work.py.
    mark = f"-{world.service.work.pid}-"
    while time.monotonic() < deadline:
        if any(mark in worker for worker in world.workers()):
            return
        time.sleep(0.02)
