"""A lease kept alive on a thread of its own.

The store may take long to answer, or never answer: a lock that somebody holds, a server
that hangs. Whoever watches a trainer must not wait for that, but end it in time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from acclimate_service.domain.errors import LeaseLost, StoreUnavailable
from acclimate_service.domain.job import Lease
from acclimate_service.store.jobs import Jobs

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What the store said: when it last renewed the lease, and what else."""

    renewed: float  # by the pulse's clock, before the store was asked
    lost: bool = False
    cancelled: bool = False


class Pulse:
    """Renews *lease* every *every* seconds, from now until :meth:`stop`."""

    def __init__(
        self,
        jobs: Jobs,
        lease: Lease,
        *,
        lease_seconds: float,
        every: float,
        clock: Callable[[], float],
    ) -> None:
        self._jobs = jobs
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._every = every
        self._clock = clock
        self._stop = threading.Event()
        self.heard = Heard(renewed=clock())
        # A daemon: a store that never answers must not keep the worker from its end.
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def stop(self) -> None:
        """Renew no more; one that is on its way finds the lease given back, or renews it."""
        self._stop.set()

    def _beat(self) -> None:
        while not self._stop.wait(self._every):
            asked = self._clock()
            try:
                job = self._jobs.heartbeat(self._lease, lease_seconds=self._lease_seconds)
            except LeaseLost:
                self.heard = Heard(renewed=self.heard.renewed, lost=True)
                return
            except StoreUnavailable as error:
                log.warning("heartbeat missed", job=str(self._lease.job), error=str(error))
            else:
                self.heard = Heard(renewed=asked, cancelled=job.cancel_requested)
