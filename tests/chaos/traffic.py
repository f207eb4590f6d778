"""What clients do while things break: upload, ask for jobs, cancel, ask again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping

from tests.chaos import pictures
from tests.chaos.ledger import Ledger
from tests.chaos.world import Plan, World

from acclimate import AcclimateError, Client, Example, JobState
from acclimate.resources import Acknowledgement

IMAGES = 12  # of an upload
WAITING = 1  # jobs that wait at most: they are to end soon when the faults have
OPEN = (JobState.QUEUED, JobState.RUNNING)


class BrokenOff(Exception):
    """A client that ends in the middle of its upload."""


class Traffic:
    """Clients of one service, whose acknowledgements go into a ledger.

    *spec* is what adaptations ask for beside the usual. At most so many *models* are
    registered, each of which stays loaded for its production alias.
    """

    def __init__(
        self,
        world: World,
        plan: Plan,
        ledger: Ledger,
        *,
        spec: Mapping[str, object] | None = None,
        models: float = math.inf,
    ) -> None:
        self._world = world
        self._plan = plan
        self._ledger = ledger
        self._spec = dict(spec or {})
        self._models = models
        self._registered = 0
        self._drawn = random.Random(plan.seed)

    # ── uploads ──────────────────────────────────────────────────────────────

    def upload(self, number: int) -> None:
        """One upload with a client of its own; every fifth is broken off and left alone."""
        request_id = f"upload-{number}"
        images = pictures.bars(1_000_000 + number * IMAGES, IMAGES)
        whole = number % 5 != 4
        while True:
            try:
                with self._world.service.client(patience=5) as client:
                    self._send(client, images, request_id, whole=whole)
            except BrokenOff:
                self._ledger.broken_off.add(request_id)
                return
            except (AcclimateError, AssertionError) as error:
                # Away for longer than is waited: once more.
                self._ledger.refused(error)
                time.sleep(0.2)
                continue
            self._ledger.committed.add(request_id)
            return

    def _send(self, client: Client, images: list[Example], request_id: str, *, whole: bool) -> None:
        told = self._ledger.uploads[request_id]

        def tell(answer: Acknowledgement) -> None:
            if answer.outcome == "ACCEPTED":
                told[answer.index] = images[answer.index].image

        def read() -> Iterator[Example]:
            for index, image in enumerate(images):
                if index == IMAGES // 2 and not whole:
                    raise BrokenOff
                yield image

        client.upload("bright", read(), request_id=request_id, on_acknowledgement=tell)

    # ── jobs ─────────────────────────────────────────────────────────────────

    def ask(self, number: int) -> None:
        """Keep a few jobs waiting: adaptations, registrations, some asked twice, some cancelled."""
        try:
            with self._world.service.client(patience=5) as client:
                if sum(len(client.jobs(state=state)) for state in OPEN) >= WAITING:
                    time.sleep(0.3)
                    return
                if number % 4 == 3 and self._registered < self._models:
                    self._registered += 1
                    model = f"given-{number}"
                    name = pictures.register(
                        client, self._plan.weights, model, labels=pictures.LABELS
                    )
                    self._ledger.job(f"register-{model}", name)
                    return
                name = self._world.ask(client, number, **self._spec)
                self._ledger.job(f"job-{number}", name)
                if number % 3 == 0:  # asked again, it is the same job
                    self._ledger.job(f"job-{number}", self._world.ask(client, number, **self._spec))
                if number % 5 == 2:
                    self._cancel(client, name)
        except (AcclimateError, AssertionError) as error:
            self._ledger.refused(error)
            time.sleep(0.2)

    def _cancel(self, client: Client, name: str) -> None:
        job = client.job(name)
        time.sleep(self._drawn.uniform(0, 3))
        try:
            job.cancel()
        except AcclimateError:  # it has ended, or the server is gone: not granted
            return
        self._ledger.cancelled.add(name)
