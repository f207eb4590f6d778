"""A trap for trainers: they are held in the moment in which a job is in a phase."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator

import sqlalchemy as sa
from tests.acceptance.processes import wait_for
from tests.chaos.trainers import is_trainer, trainers
from tests.chaos.world import World

from acclimate_service.domain.job import JobState, Phase
from acclimate_service.store import schema
from acclimate_service.store.engine import Transaction

SECONDS = 45.0  # in which a job is to get there, on a busy machine
RUNNING = sa.select(schema.jobs.c.id, schema.jobs.c.attempt, schema.jobs.c.phase).where(
    schema.jobs.c.state == JobState.RUNNING.value
)


class Trap:
    """Some phases are over at once, so it looks often, and stops whoever it finds there."""

    def __init__(self, world: World, phase: Phase) -> None:
        self._world = world
        self._phase = phase
        self._known: dict[object, list[int]] = {}  # trainers, by the attempt that is worked on
        self._stopped: list[int] = []

    @contextlib.contextmanager
    def sprung(self) -> Iterator[None]:
        """Run the block while they are held; if no job was caught in time, all the same."""
        try:
            with contextlib.suppress(AssertionError):
                wait_for(self._caught, SECONDS, self._phase.value, every=0.005)
            yield
        finally:
            self._let_go()

    def _caught(self) -> bool:
        if not self._there():
            return False
        for pid in itertools.chain.from_iterable(self._known.values()):
            if is_trainer(pid, self._world.home):  # a pid may be another's by now
                os.kill(pid, signal.SIGSTOP)
                self._stopped.append(pid)
        if not self._there():
            self._let_go()
        return bool(self._stopped)

    def _there(self) -> bool:
        found = self._world.store.database.read(Transaction.rows, RUNNING)
        for row in found:
            # Looked for beforehand: it takes longer than some phases.
            if (row.id, row.attempt) not in self._known:
                self._known[row.id, row.attempt] = list(trainers(self._world.home))
        return any(row.phase == self._phase.value for row in found)

    def _let_go(self) -> None:
        while self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._stopped.pop(), signal.SIGCONT)
