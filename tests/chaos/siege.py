"""The service under its usual traffic while something is done to it, and the account after."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.acceptance.processes import Process, wait_for
from tests.chaos.colours import Answers, Clients, percentile, serve_colours
from tests.chaos.ledger import Ledger, account
from tests.chaos.row import Tally
from tests.chaos.traffic import Traffic
from tests.chaos.trainers import TrainerWatch
from tests.chaos.world import Plan, Repeated, World

from acclimate_service.domain.job import JobState

ASKING = 2  # clients that ask for predictions all the while
REST = 0.1  # seconds between two requests of one of them
PAUSE = 0.2  # seconds between two uploads
RECOVER_SECONDS = 180.0


@dataclass
class Siege:
    """Uploads, jobs, cancellations and predictions over *world*, while its block runs.

    After the block, ``tally`` counts what must not have happened.
    """

    world: World
    plan: Plan
    spec: Mapping[str, object] = field(default_factory=dict)  # of each job
    ledger: Ledger = field(default_factory=Ledger)
    answers: Answers = field(default_factory=Answers)
    tally: Tally = field(default_factory=lambda: Tally("processes ended", "not gone on by itself"))
    settled: bool = True

    def __enter__(self) -> Self:
        serve_colours(self.world, versions=1)
        self.world.furnish(self.plan, first_version=True)
        traffic = Traffic(self.world, self.plan, self.ledger, spec=self.spec)

        def upload(number: int) -> None:
            traffic.upload(number)
            time.sleep(PAUSE)

        self._pids = {process.pid for process in self._processes}
        self._watch = TrainerWatch(self.world.home)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._watch)
            stack.enter_context(
                Clients(self.world.service.target, self.answers, threads=ASKING, rest=REST)
            )
            stack.enter_context(Repeated(upload, name="uploader"))
            stack.enter_context(Repeated(traffic.ask, name="asker"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
        if error is not None:
            return
        self.plan.say("settling")
        self.settled = self.world.settle()
        self.plan.say("settled" if self.settled else "not settled")
        self.tally["processes ended"] += sum(
            process.pid not in self._pids
            or process.child is None
            or process.child.poll() is not None
            for process in self._processes
        )

    @property
    def _processes(self) -> Iterator[Process]:
        yield from (self.world.service.serve, self.world.service.work)

    def goes_on(self) -> None:
        """Wait until another upload is whole, which nobody helps it to; count if none comes."""
        before = len(self.ledger.committed)
        try:
            wait_for(lambda: len(self.ledger.committed) > before, RECOVER_SECONDS, "an upload")
        except AssertionError:
            self.tally["not gone on by itself"] += 1

    def account(self) -> Tally:
        """What must be 0. For after the block."""
        tally = self.tally
        tally.update(account(self.world, self.ledger))
        tally["jobs not ended"] = len(self.world.jobs(JobState.QUEUED, JobState.RUNNING))
        tally["settlings missed"] = int(not self.settled)
        tally["second trainers"] = max(0, self._watch.most - 1)
        tally["predictions failed"] = len(self.answers.refused)
        tally["of another version"] = self.answers.tally["of another version"]
        return tally

    def measured(self) -> dict[str, float]:
        """What there was of everything."""
        jobs = self.world.jobs()
        states = Counter(job.state.value for job in jobs)
        return {
            "predictions": self.answers.good,
            "s the slowest": max(self.answers.seconds, default=0.0),
            "ms p99": percentile(self.answers.seconds, 0.99) * 1000,
            "examples acknowledged": self.ledger.examples,
            "uploads committed": len(self.ledger.committed),
            **{f"jobs {state}": number for state, number in sorted(states.items())},
            "attempts": sum(job.attempt for job in jobs),
            **{f"told {why}": n for why, n in sorted(self.ledger.refusals.items())},
        }
