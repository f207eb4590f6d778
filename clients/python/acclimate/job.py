"""A job as its owner sees it: where it stands, what it says, how it ended."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Literal

import grpc

from acclimate import _calls, _wire
from acclimate._calls import STREAM_SECONDS
from acclimate._connection import Connection
from acclimate._status import error_of
from acclimate._waiting import Patience
from acclimate.errors import AcclimateError, DeadlineExceeded
from acclimate.resources import JobEvent, JobKind, JobSnapshot, JobState, Json, Phase
from acclimate.v1 import adaptation_pb2, adaptation_pb2_grpc

FIRST_POLL = 0.1  # seconds
LAST_POLL = 2.0


class JobHandle:
    """What a handle on one job shows: as old as the last call that asked the service."""

    def __init__(self, snapshot: JobSnapshot) -> None:
        self.snapshot = snapshot

    def __repr__(self) -> str:
        return f"<Job {self.name} {self.state.value}>"

    @property
    def name(self) -> str:
        """The job's resource name: ``jobs/{job}``."""
        return self.snapshot.name

    @property
    def kind(self) -> JobKind:
        """What the job makes."""
        return self.snapshot.kind

    @property
    def state(self) -> JobState:
        """Where it stood when last asked."""
        return self.snapshot.state

    @property
    def phase(self) -> Phase | None:
        """What it was doing when last asked; None if it was not running."""
        return self.snapshot.phase

    @property
    def version(self) -> str:
        """The version it made; empty if it made none (yet)."""
        return self.snapshot.version

    @property
    def summary(self) -> Mapping[str, Json]:
        """Accuracies, verdict, seconds by phase; see docs/report.md."""
        return self.snapshot.summary

    def _outlasted(self, timeout: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self.name} is still {self.state.value} after {timeout:g} s; it goes on",
            reason="WAIT_TIMEOUT",
            metadata={"name": self.name, "state": self.state.value},
        )


class Job(JobHandle):
    """A handle on one job. What it shows is as old as the last call that asked the service."""

    def __init__(self, connection: Connection, snapshot: JobSnapshot) -> None:
        super().__init__(snapshot)
        self._connection = connection
        self._stub = adaptation_pb2_grpc.AdaptationServiceStub(connection.channel)

    @classmethod
    def named(cls, connection: Connection, name: str) -> Job:
        """A handle on the job of this name.

        Raises:
            NotFound: there is none.
        """
        return cls(connection, connection.ask(_calls.job(name)))

    def refresh(self) -> Job:
        """Ask the service where the job stands, and return the same handle."""
        self.snapshot = self._connection.ask(_calls.job(self.name))
        return self

    def wait(self, timeout: float | None = None) -> Job:
        """Wait until the job has ended, however it ends, and return the same handle.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            DeadlineExceeded: it has not ended in time. The job itself goes on.
            Unavailable: the service stayed away for longer than the client's patience.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        pause = FIRST_POLL
        patience = Patience(self._connection.patience)
        while not self._has_ended(patience):
            if timeout is not None and time.monotonic() + pause > until:
                raise self._outlasted(timeout)
            time.sleep(pause)
            pause = min(pause * 1.5, LAST_POLL)
        return self

    def watch(self, *, after: int = 0) -> Iterator[JobEvent]:
        """The job's story, event by event, until it has ended.

        Broken connections are resumed where they broke: no event comes twice and
        none is left out.

        Args:
            after: only events after this sequence number.

        Raises:
            AcclimateError: there is no such job, or the service stayed away for
                longer than the client's patience.
        """
        patience = Patience(self._connection.patience)
        while True:
            began = time.monotonic()
            request = adaptation_pb2.WatchAdaptationJobRequest(name=self.name, after_sequence=after)
            call = self._stub.WatchAdaptationJob(
                request, timeout=STREAM_SECONDS, metadata=self._connection.metadata
            )
            try:
                for message in call:
                    patience.renew()
                    after = message.sequence
                    yield _wire.event(message)
            except grpc.RpcError as failure:
                if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._has_ended(patience)  # a quiet job is no absent service: this says which
                else:
                    patience.rested(began)
                    patience.wait(error_of(failure))
                continue
            finally:
                call.cancel()  # a caller that stops early leaves no stream behind
            # A draining server ends its streams as well, so the end alone is no proof.
            if self._has_ended(patience):
                return

    def _has_ended(self, patience: Patience) -> bool:
        """Whether it has, as far as the service can be asked now."""
        try:
            ended = self.refresh().state.ended
        except AcclimateError as error:
            patience.wait(error)
            return False
        patience.renew()
        return ended

    def cancel(self, *, reason: str = "") -> Job:
        """Ask for the job's end as CANCELLED, and return the same handle.

        Args:
            reason: why; kept in the audit log.

        Raises:
            Conflict: it has ended already.
        """
        self.snapshot = self._connection.ask(_calls.cancel(self.name, reason=reason))
        return self

    def report(self, format: Literal["html", "json"] = "html") -> bytes:  # noqa: A002
        """The job's report: one HTML page that opens offline, or the same as JSON.

        Raises:
            Conflict: the job has no report yet.
        """
        request = adaptation_pb2.GetReportRequest(name=self.name, format=format)

        def whole(left: float) -> bytes:
            call = self._stub.GetReport(request, timeout=left, metadata=self._connection.metadata)
            return b"".join(message.chunk for message in call)

        return self._connection.attempt(whole, idempotent=True)
