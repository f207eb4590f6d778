"""Trainers that hang, die, run out of memory or wake too late; jobs cancelled in every phase."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tests.acceptance.processes import Process
from tests.chaos.ledger import Ledger, account
from tests.chaos.row import Row, Tally
from tests.chaos.trainers import TrainerWatch, trainers
from tests.chaos.world import WORK, Plan, World, place

from acclimate import Client
from acclimate.errors import Conflict
from acclimate_service.domain.job import EventKind, Job, JobState, Phase
from acclimate_service.domain.names import JobName

STALL_SECONDS = 15.0
EXIT_SECONDS = 30.0
MORE = 8 * 2**20  # bytes that a trainer short of memory may still have
EARLY = (Phase.PREPARING, Phase.PROBING)
LONG = {"epochs": 200}  # a job that is still at it when something happens to it
# What a job does so that it is found in a phase which is over at once otherwise.
KEPT: Mapping[Phase | None, Mapping[str, object]] = {
    Phase.PROBING: LONG,
    Phase.TUNING: {"strategy": "naive", **LONG},  # the one that tunes without probing before
    Phase.BLENDING: {"strategy": "tail"},
}
MOMENT = 0.4  # seconds into a phase at most


def workers(plan: Plan, *, times: int = 5, parts: Sequence[str] = ()) -> Iterator[Row]:
    """Each fault so many times, and a cancellation in each phase as often."""
    for name in parts or FAULTS:
        yield FAULTS[name](plan, times)
        plan.say(f"{name}: {times} times")


def _hung(plan: Plan, times: int) -> Row:
    """Freeze a trainer; its worker must notice."""
    tally, noticed = Tally("not noticed", "jobs failed"), []
    rounds = plan.rounds(times)
    with _world(plan, stall_seconds=STALL_SECONDS) as (world, client):
        for number in rounds:
            job = _at_work(world, world.ask(client, number, **LONG))
            (trainer,) = trainers(world.home)
            os.kill(trainer, signal.SIGSTOP)
            began = time.monotonic()
            again = world.comes(partial(_tried_again, world, job))
            noticed.append(time.monotonic() - began)
            tally.note("not noticed", wrong=not again)
            world.comes(partial(_ended, world, job))
            tally.note("jobs failed", wrong=not _made_or_judged(world.store.jobs.get(job)))
        tally.update(account(world, Ledger()))
    return Row(
        scenario="workers: hung",
        did=f"a trainer frozen in its job; noticed after {STALL_SECONDS:g} s of silence, resumed",
        times=rounds.done,
        broken=tally,
        measured={"s to the next attempt at most": max(noticed)},
    )


def _poison(plan: Plan, times: int) -> Row:
    """Kill every trainer of one job."""
    return _fatal(plan, times, "poison", "a job that kills its trainers", _kill, "SIGKILL")


def _memory(plan: Plan, times: int) -> Row:
    """Leave the trainers of one job no memory."""
    did = f"a job whose trainers may have {MORE >> 20} MB more than they start with"
    return _fatal(plan, times, "out of memory", did, _leave_no_memory, "memory", "alloc")


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _leave_no_memory(pid: int) -> None:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


def _fatal(
    plan: Plan, times: int, name: str, did: str, harm: Callable[[int], None], *words: str
) -> Row:
    """Harm every trainer that takes the one job; the next job must not suffer."""
    tally = Tally("not failed", "failed without saying of what", "next jobs failed")
    said, rounds = "", plan.rounds(times)
    with _world(plan, max_attempts=2) as (world, client):
        for number in rounds:
            job = JobName.parse(world.ask(client, 2 * number, **LONG))
            following = JobName.parse(world.ask(client, 2 * number + 1))
            harmed: set[int] = set()
            while not (found := world.store.jobs.get(job)).state.ended:
                if found.state is JobState.RUNNING:
                    for trainer in set(trainers(world.home)) - harmed:
                        harm(trainer)
                        harmed.add(trainer)
                time.sleep(0.01)
            tally.note("not failed", wrong=found.state is not JobState.FAILED)
            said = found.failure.message if found.failure else ""
            told = any(word in said.lower() for word in map(str.lower, words))
            tally.note("failed without saying of what", wrong=not told)
            world.comes(partial(_ended, world, following))
            well = _made_or_judged(world.store.jobs.get(following))
            tally.note("next jobs failed", wrong=not well)
        tally.update(account(world, Ledger()))
    plan.say(f"{name}: {said}")
    return Row(
        scenario=f"workers: {name}",
        did=f"{did}: FAILED after 2 attempts with the reason",
        times=rounds.done,
        broken=tally,
    )


def _late(plan: Plan, times: int) -> Row:
    """Freeze a worker and its trainer for longer than the lease; let them go on later."""
    tally = Tally("written late", "other attempts", "trainers left over")
    rounds = plan.rounds(times)
    with _world(plan) as (world, client):
        elsewhere = world.other_home()
        other = Process("work", elsewhere, database_url=world.url, **WORK)
        try:
            for number in rounds:
                job = _at_work(world, world.ask(client, number, **LONG))
                frozen = [world.service.work.pid, *trainers(world.home)]
                for pid in frozen:
                    os.kill(pid, signal.SIGSTOP)
                other.start()
                world.comes(partial(_ended, world, job))
                before = world.store.jobs.events(job, limit=100_000)
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)
                gone = world.comes(partial(_gone, world, frozen[1]))
                other.kill(signal.SIGTERM)
                after = world.store.jobs.events(job, limit=100_000)
                tally.note("written late", wrong=before != after)
                tally.note("trainers left over", wrong=not gone)
                tally.note("other attempts", wrong=world.store.jobs.get(job).attempt != 2)
        finally:
            if other.child is not None:
                other.kill()
        tally.update(account(world, Ledger()))
    return Row(
        scenario="workers: late",
        did="worker and trainer frozen past their lease while another ends the job, then let go",
        times=rounds.done,
        broken=tally,
    )


def _stopped(plan: Plan, times: int) -> Row:
    """SIGTERM to a worker that is busy."""
    tally, slowest = Tally("not requeued", "exits with an error", "exits late", "jobs failed"), 0.0
    rounds = plan.rounds(times)
    with _world(plan, max_attempts=1) as (world, client):
        job = _at_work(world, world.ask(client, 0, **LONG))
        for _ in rounds:
            began = time.monotonic()
            code = world.service.work.kill(signal.SIGTERM)
            slowest = max(slowest, time.monotonic() - began)
            found = world.store.jobs.get(job)
            tally.note("not requeued", wrong=found.state is not JobState.QUEUED)
            tally.note("exits with an error", wrong=code != 0)
            world.service.work.start()
            if not world.comes(lambda: world.store.jobs.get(job).state is not JobState.QUEUED):
                break
        world.comes(partial(_ended, world, job))
        tally.note("jobs failed", wrong=not _made_or_judged(world.store.jobs.get(job)))
        tally.note("exits late", wrong=slowest > EXIT_SECONDS)
        tally.update(account(world, Ledger()))
    return Row(
        scenario="workers: stopped",
        did="SIGTERM to a busy worker whose jobs have one attempt: requeued, resumed, ended",
        times=rounds.done,
        broken=tally,
        measured={"s the slowest exit": slowest},
    )


def _cancelled(plan: Plan, times: int, *, phases: Sequence[Phase | None]) -> Row:
    """Cancel in each of these phases; None is while the job waits."""
    drawn = random.Random(f"{plan.seed} {phases}")
    tally = Tally("not cancelled", "cancelled unasked", "versions made", "versions lost")
    done = Counter[str]()
    with _world(plan) as (world, client):
        for number in plan.rounds(times * len(phases)):
            # A run that is short of time begins, by its seed, with another phase.
            phase = phases[(plan.seed + number) % len(phases)]
            name = world.ask(client, number, **KEPT.get(phase, {}))
            job = JobName.parse(name)
            granted = _cancel_in(world, client, name, phase, after=drawn.uniform(0, MOMENT))
            world.comes(partial(_ended, world, job))
            ended = world.store.jobs.get(job).state
            tally.note("not cancelled", wrong=granted and ended is not JobState.CANCELLED)
            tally.note("cancelled unasked", wrong=not granted and ended is JobState.CANCELLED)
            made = world.store.registry.version_of_job(job) is not None
            tally.note("versions made", wrong=made and ended is not JobState.SUCCEEDED)
            tally.note("versions lost", wrong=not made and ended is JobState.SUCCEEDED)
            done[_when_cancelled(world, job) if granted else "refused: it had ended"] += 1
            plan.say(f"{name}: {ended.value}, {dict(done)}")
        tally.update(account(world, Ledger()))
    return Row(
        scenario="workers: cancelled",
        did="a job cancelled while it waits and in each of its phases, at a random moment of it",
        times=sum(done.values()),
        broken=tally,
        measured=done,
    )


def _cancel_in(
    world: World, client: Client, name: str, phase: Phase | None, *, after: float
) -> bool:
    """Cancel the job once it is in *phase*, *after* some seconds; whether that was granted."""
    job = JobName.parse(name)

    def there() -> bool:
        found = world.store.jobs.get(job)
        return found.state.ended or found.phase is phase

    if phase is not None:
        world.wait_for(there, f"{phase.value} of {name}", every=0.01)
        time.sleep(after)
    try:
        client.job(name).cancel()
    except Conflict:
        return False
    return True


def _when_cancelled(world: World, job: JobName) -> str:
    """What the job was doing when its cancellation was granted, by its own story."""
    doing = "in waiting"
    for event in world.store.jobs.events(job, limit=100_000):
        if event.kind is EventKind.PHASE and event.phase is not None:
            doing = f"in {event.phase.value}"
        if event.facts.get("cancel_requested"):
            break
    return doing


def _standby(plan: Plan, times: int) -> Row:
    """Two workers for one device."""
    tally = Tally("attempts more than one", "jobs failed", "trainers at once")
    with _world(plan) as (world, client):
        second = Process("work", world.home, database_url=world.url, **WORK)
        second.log = world.home / "second.log"
        second.start()
        try:
            with TrainerWatch(world.home):
                jobs = [JobName.parse(world.ask(client, number)) for number in range(2 * times)]
                settled = world.settle()
        finally:
            second.kill()
        found = [world.store.jobs.get(job) for job in jobs]
        tally["attempts more than one"] = sum(job.attempt - 1 for job in found)
        tally["jobs failed"] = sum(not _made_or_judged(job) for job in found) + (not settled)
        tally["trainers at once"] = _overlaps(world, jobs)
        tally.update(account(world, Ledger()))
    return Row(
        scenario="workers: two for one device",
        did="jobs for two workers that share a device: one trains at any time, none waits in vain",
        times=len(jobs),
        broken=tally,
    )


def _overlaps(world: World, jobs: list[JobName]) -> int:
    """How many jobs began to be worked on before the one before them was through."""
    spans = []
    for job in jobs:
        told = world.store.jobs.events(job, limit=100_000)
        work = [event.at for event in told if event.kind is not EventKind.STATE]
        spans.append((work[0], work[-1]))
    spans.sort()
    return sum(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans))


FAULTS: Mapping[str, Callable[[Plan, int], Row]] = {
    "hung": _hung,
    "poison": _poison,
    "memory": _memory,
    "late": _late,
    "stopped": _stopped,
    "cancelled-early": partial(_cancelled, phases=(None, *EARLY)),
    "cancelled-late": partial(_cancelled, phases=[one for one in Phase if one not in EARLY]),
    "standby": _standby,
}


# ── what they share ──────────────────────────────────────────────────────────


@contextlib.contextmanager
def _world(plan: Plan, **work: object) -> Iterator[tuple[World, Client]]:
    """A service with a first version, and a client of it."""
    with place("sqlite", "workers") as (home, _), World(home, work=work) as world:
        world.furnish(plan, first_version=True)
        with world.service.client() as client:
            yield world, client


def _at_work(world: World, name: str) -> JobName:
    """Wait until the job's trainer has begun to train."""
    job = JobName.parse(name)
    busy = (Phase.PROBING, Phase.TUNING)
    world.wait_for(lambda: world.store.jobs.get(job).phase in busy, f"work on {name}")
    return job


def _ended(world: World, job: JobName) -> bool:
    return world.store.jobs.get(job).state.ended


def _tried_again(world: World, job: JobName) -> bool:
    return world.store.jobs.get(job).attempt > 1


def _gone(world: World, trainer: int) -> bool:
    return trainer not in trainers(world.home)


def _made_or_judged(job: Job) -> bool:
    """Whether the job ran to the end that its images gave it."""
    return job.state in (JobState.SUCCEEDED, JobState.REJECTED, JobState.INCONCLUSIVE)
