"""Claim a job, keep its lease, watch the trainer that works on it.

The loop never trains. It owns a child process per job, so that a cancel, a hang,
an out-of-memory kill or a lost lease is answered by one signal, and so that a
job's memory goes back to the system when the job ends. The next child is started
beforehand: it imports torch while there is nothing to do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from acclimate_service.domain.errors import LeaseLost, ProviderUnavailable, StoreUnavailable
from acclimate_service.domain.job import Job, JobState, Lease
from acclimate_service.store.jobs import Jobs
from acclimate_service.worker.pulse import Heard, Pulse

log = structlog.get_logger(__name__)

KILL_AT = 0.8  # of a lease without a heartbeat: end the trainer before another may start
HEARTBEATS = 4  # a lease


class Trainer(Protocol):
    """A process that will run, or runs, one job."""

    def ready(self) -> bool:
        """Whether it can take a job."""

    def start(self, lease: Lease) -> None:
        """Give it its job."""

    def alive(self) -> bool:
        """Whether the process still runs."""

    def silence(self) -> float:
        """Seconds since its last sign of life."""

    def starving(self) -> bool:
        """Whether it steps back for others and, over a while, was not let through."""

    def gave_up(self) -> bool:
        """Whether it ended because the store was out of reach: not the job's fault."""

    def refused(self) -> bool:
        """Whether it ended because its device is not there, nor will be for the next one."""

    def last_words(self) -> str:
        """How it ended, with the end of what it printed, for the record."""

    def kill(self) -> None:
        """End it now and wait until it is gone."""


class Loop:
    """One worker: at most one job, and one trainer at work, at any time.

    *spawn* starts a trainer; it is told whether the last one starved, and this one
    should not step back as far.
    """

    def __init__(
        self,
        jobs: Jobs,
        *,
        worker: str,
        spawn: Callable[[bool], Trainer],
        lease_seconds: float,
        poll_seconds: float,
        stall_seconds: float,
        max_attempts: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = jobs
        self._worker = worker
        self._spawn = spawn
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._stall_seconds = stall_seconds
        self._max_attempts = max_attempts
        self._clock = clock
        self._owed: tuple[Lease, str] | None = None  # a job to give back once the store is back

    def run(self, stop: threading.Event) -> None:
        """Work until *stop* is set; a job in hand then goes back to the queue.

        Raises:
            ProviderUnavailable: the device is not there.
        """
        trainer, pause = self._spawn(False), 0.0
        try:
            while not stop.is_set():
                if not trainer.alive():
                    if trainer.refused():
                        raise ProviderUnavailable(trainer.last_words())
                    log.error("trainer did not start", why=trainer.last_words())
                    stop.wait(self._poll_seconds * 4)
                    trainer = self._spawn(False)
                    continue
                # No claim before it is ready: a device that is not there costs no attempt.
                claimed = self._claim() if trainer.ready() else None
                if claimed is None:
                    stop.wait(self._poll_seconds)
                    continue
                job, lease = claimed
                log.info("job claimed", job=str(job.name), attempt=lease.attempt)
                try:
                    starved = self._attend(lease, trainer, stop)
                finally:
                    trainer.kill()
                if stop.is_set():
                    break
                pause = self._pause_after(pause, gave_up=trainer.gave_up())
                trainer = self._spawn(starved)
                stop.wait(pause)
        finally:
            trainer.kill()

    def _pause_after(self, pause: float, *, gave_up: bool) -> float:
        """Seconds until the next claim, *pause* having been the last ones.

        Where jobs can be claimed and files not written, as on a full disk beside a
        database server, a job would be begun anew again and again.
        """
        if not gave_up:
            return 0.0
        pause = min(max(2 * pause, self._lease_seconds / 6), 2 * self._lease_seconds)
        log.warning("store was out of reach: waiting before the next job", seconds=pause)
        return pause

    def _claim(self) -> tuple[Job, Lease] | None:
        try:
            self._give_back_what_is_owed()
            return self._jobs.claim(
                self._worker, lease_seconds=self._lease_seconds, max_attempts=self._max_attempts
            )
        except StoreUnavailable as error:
            log.warning("store unavailable", error=str(error))
            return None

    def _give_back_what_is_owed(self) -> None:
        """Say of the job that an outage took from us that it did nothing wrong.

        Claimed as one whose worker died, it would come closer to its last attempt with
        every outage.

        Raises:
            StoreUnavailable: the store is still out of reach.
        """
        if self._owed is None:
            return
        lease, why = self._owed
        try:
            self._jobs.release(lease, spent=False, why=why)
            log.info("job went back", job=str(lease.job), why=why)
        except LeaseLost:
            log.info("job left", job=str(lease.job))
        self._owed = None

    def _attend(self, lease: Lease, trainer: Trainer, stop: threading.Event) -> bool:
        """Keep the lease while *trainer* works; see the job to an end or back to the queue.

        Returns:
            Whether the job went back because the trainer got no turns.
        """
        trainer.start(lease)
        beat_every = self._lease_seconds / HEARTBEATS
        pulse = Pulse(
            self._jobs,
            lease,
            lease_seconds=self._lease_seconds,
            every=min(beat_every, self._poll_seconds * 2),
            clock=self._clock,
        )
        try:
            while trainer.alive():
                if stop.wait(min(self._poll_seconds, beat_every)):
                    trainer.kill()
                    self._settle(lease, "it stops", spent=False)
                    return False
                starved = trainer.starving()
                if starved or trainer.silence() > self._stall_seconds:
                    trainer.kill()
                    why = (
                        "it got no turns"
                        if starved
                        else f"no sign of life for {self._stall_seconds:g} s"
                    )
                    # A full machine is not the job's fault.
                    self._settle(lease, why, spent=not starved)
                    return starved
                if self._left(lease, trainer, pulse.heard):
                    return False
        finally:
            pulse.stop()
        self._settle(lease, trainer.last_words(), spent=not trainer.gave_up())
        return False

    def _left(self, lease: Lease, trainer: Trainer, heard: Heard) -> bool:
        """Whether the job had to be left, by what was heard of the lease; its trainer is ended."""
        if heard.lost:
            trainer.kill()
            log.info("job left", job=str(lease.job))
        elif heard.cancelled:
            trainer.kill()
            self._cancel(lease)
        elif self._clock() - heard.renewed > KILL_AT * self._lease_seconds:
            trainer.kill()
            log.error("store out of reach: trainer ended", job=str(lease.job))
            self._owed = (lease, "the store was out of reach")
        else:
            return False
        return True

    def _cancel(self, lease: Lease) -> None:
        try:
            self._jobs.finish(lease, state=JobState.CANCELLED, summary={})
        except LeaseLost:
            log.info("job left", job=str(lease.job))
        except StoreUnavailable as error:  # the next claim of it ends it as CANCELLED
            log.warning("cancel not recorded yet", job=str(lease.job), error=str(error))

    def _settle(self, lease: Lease, why: str, *, spent: bool = True) -> None:
        """After the trainer is gone: nothing if it ended the job, else give the job back."""
        try:
            self._jobs.release(lease, spent=spent, why=why)
            log.warning("job went back", job=str(lease.job), why=why)
        except LeaseLost:
            log.info("job ended", job=str(lease.job))
        except StoreUnavailable as error:  # or its lease runs out, and it is claimed again
            log.warning("job not released", job=str(lease.job), error=str(error))
            if not spent:
                self._owed = (lease, why)
