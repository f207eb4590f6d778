"""One upload from an event loop: the window is the other client's, the waiting is here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from acclimate import _wire
from acclimate._calls import STREAM_SECONDS
from acclimate._status import error_of
from acclimate._waiting import OnWait, Patience
from acclimate._window import Window
from acclimate.aio._connection import Connection
from acclimate.errors import AcclimateError, Unavailable, UploadMismatch
from acclimate.resources import Example, LabeledBatch, UploadResult
from acclimate.v1 import adaptation_pb2, adaptation_pb2_grpc


class _Stream:
    """One attempt's call, with both directions as queues.

    The outbox needs no bound of its own: it never holds more than the window.
    """

    def __init__(self, connection: Connection) -> None:
        self._silence = connection.timeout
        self._outbox: asyncio.Queue[adaptation_pb2.UploadBatchRequest | None] = asyncio.Queue()
        self._inbox: asyncio.Queue[adaptation_pb2.UploadBatchResponse | BaseException]
        self._inbox = asyncio.Queue()
        stub = adaptation_pb2_grpc.AdaptationServiceStub(connection.channel)
        self._call = stub.UploadBatch(
            self._going_out(), timeout=STREAM_SECONDS, metadata=connection.metadata
        )
        self._carrying = asyncio.create_task(self._carry_in())

    async def _going_out(self) -> AsyncIterator[adaptation_pb2.UploadBatchRequest]:
        while (message := await self._outbox.get()) is not None:
            yield message

    async def _carry_in(self) -> None:
        try:
            async for response in self._call:
                self._inbox.put_nowait(response)
        except grpc.RpcError as failure:
            self._inbox.put_nowait(error_of(failure))
        except asyncio.CancelledError as closed:  # the client was: this ends as any other call
            self._inbox.put_nowait(closed)
            raise
        else:
            early = Unavailable("the upload's stream ended early", reason="STREAM_ENDED")
            self._inbox.put_nowait(early)

    def send(self, message: adaptation_pb2.UploadBatchRequest) -> None:
        """Queue a message to go out."""
        self._outbox.put_nowait(message)

    def answered(self) -> bool:
        """Whether `receive` would return, or raise, at once."""
        return not self._inbox.empty()

    async def receive(self) -> adaptation_pb2.UploadBatchResponse:
        """The next answer.

        Raises:
            AcclimateError: the call failed, ended, or stayed silent for too long.
            CancelledError: the client was closed.
        """
        try:
            answer = await asyncio.wait_for(self._inbox.get(), self._silence)
        except TimeoutError:
            raise Unavailable(
                f"no answer to the upload for {self._silence:g} s", reason="STREAM_SILENT"
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def close(self) -> None:
        """End both directions."""
        self._outbox.put_nowait(None)  # gRPC's own task reads it, even of a call that has ended
        self._call.cancel()
        self._carrying.cancel()
        await asyncio.wait([self._carrying])


class Upload:
    """An upload under way, across all its attempts."""

    def __init__(
        self,
        connection: Connection,
        *,
        window: Window,
        examples: AsyncIterator[Example],
        on_wait: OnWait | None = None,
    ) -> None:
        self._connection = connection
        self._window = window
        self._examples = examples
        self._patience = Patience(connection.patience, on_wait=on_wait)

    async def run(self) -> UploadResult:
        """Send everything and commit it, through as many attempts as that takes.

        Raises:
            AcclimateError: the service refused the batch, or stayed away for longer
                than the client's patience. The same request_id resumes the upload.
        """
        while True:
            try:
                return self._window.result(await self._attempt())
            except AcclimateError as error:
                # The service ends a stream that stands still; the upload stays open.
                open_still = error.reason == "UPLOAD_INCOMPLETE"
                delay = self._patience.delay(error, resumable=open_still)
            await asyncio.sleep(delay)

    async def _attempt(self) -> LabeledBatch:
        stream = _Stream(self._connection)
        try:
            stream.send(self._window.opening)
            first = await stream.receive()
            if first.WhichOneof("part") == "committed":
                return _wire.batch(first.committed)
            await self._resume(first.opened)
            for message in self._window.unanswered:
                stream.send(message)
            await self._send_the_rest(stream)
            stream.send(self._window.commit)
            while (answer := await stream.receive()).WhichOneof("part") != "committed":
                self._take(answer)
            return _wire.batch(answer.committed)
        finally:
            await stream.close()

    async def _resume(self, opened: adaptation_pb2.UploadBatchResponse.Opened) -> None:
        while self._window.wants(opened):
            example = await anext(self._examples, None)
            if example is None:
                raise UploadMismatch(opened.next_index)
            self._window.enter(example)
            self._patience.renew()

    async def _send_the_rest(self, stream: _Stream) -> None:
        while True:
            while self._window.full or stream.answered():
                self._take(await stream.receive())
            example = await anext(self._examples, None)
            if example is None:
                return
            stream.send(self._window.enter(example))

    def _take(self, answer: adaptation_pb2.UploadBatchResponse) -> None:
        self._patience.renew()
        self._window.take(answer.acknowledgement)
