"""A job as its owner sees it, from an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Literal

import grpc

from acclimate import _calls, _wire
from acclimate._calls import STREAM_SECONDS
from acclimate._status import error_of
from acclimate._waiting import Patience
from acclimate.aio._connection import Connection
from acclimate.errors import AcclimateError
from acclimate.job import FIRST_POLL, LAST_POLL, JobHandle
from acclimate.resources import JobEvent, JobSnapshot
from acclimate.v1 import adaptation_pb2, adaptation_pb2_grpc


class Job(JobHandle):
    """A handle on one job. What it shows is as old as the last call that asked the service."""

    def __init__(self, connection: Connection, snapshot: JobSnapshot) -> None:
        super().__init__(snapshot)
        self._connection = connection
        self._stub = adaptation_pb2_grpc.AdaptationServiceStub(connection.channel)

    async def refresh(self) -> Job:
        """Ask the service where the job stands, and return the same handle."""
        self.snapshot = await self._connection.ask(_calls.job(self.name))
        return self

    async def wait(self, timeout: float | None = None) -> Job:  # noqa: ASYNC109  as Job.wait
        """Wait until the job has ended, however it ends, and return the same handle.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            DeadlineExceeded: it has not ended in time. The job itself goes on.
            Unavailable: the service stayed away for longer than the client's patience.
        """
        began, pause = time.monotonic(), FIRST_POLL
        patience = Patience(self._connection.patience)
        while not await self._has_ended(patience):
            if timeout is not None and time.monotonic() - began + pause > timeout:
                raise self._outlasted(timeout)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LAST_POLL)
        return self

    async def watch(self, *, after: int = 0) -> AsyncGenerator[JobEvent, None]:
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
                async for message in call:
                    patience.renew()
                    after = message.sequence
                    yield _wire.event(message)
            except grpc.RpcError as failure:
                if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    await self._has_ended(patience)  # a quiet job is no absent service
                else:
                    patience.rested(began)
                    await asyncio.sleep(patience.delay(error_of(failure)))
                continue
            finally:
                call.cancel()  # a caller that stops early leaves no stream behind
            # A draining server ends its streams as well, so the end alone is no proof.
            if await self._has_ended(patience):
                return

    async def _has_ended(self, patience: Patience) -> bool:
        """Whether it has, as far as the service can be asked now."""
        try:
            ended = (await self.refresh()).state.ended
        except AcclimateError as error:
            delay = patience.delay(error)
        else:
            patience.renew()
            return ended
        await asyncio.sleep(delay)
        return False

    async def cancel(self, *, reason: str = "") -> Job:
        """Ask for the job's end as CANCELLED, and return the same handle.

        Args:
            reason: why; kept in the audit log.

        Raises:
            Conflict: it has ended already.
        """
        self.snapshot = await self._connection.ask(_calls.cancel(self.name, reason=reason))
        return self

    async def report(self, format: Literal["html", "json"] = "html") -> bytes:  # noqa: A002
        """The job's report: one HTML page that opens offline, or the same as JSON.

        Raises:
            Conflict: the job has no report yet.
        """
        request = adaptation_pb2.GetReportRequest(name=self.name, format=format)

        async def whole(left: float) -> bytes:
            call = self._stub.GetReport(request, timeout=left, metadata=self._connection.metadata)
            return b"".join([message.chunk async for message in call])

        return await self._connection.attempt(whole, idempotent=True)
