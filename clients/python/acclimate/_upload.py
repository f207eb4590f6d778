"""One upload: a stream of examples that survives broken connections.

The caller's thread reads the examples and decides; a second thread only carries
answers in. What is sent and kept is the window's to know.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable

import grpc

from acclimate import _wire
from acclimate._calls import STREAM_SECONDS
from acclimate._connection import Connection
from acclimate._status import error_of
from acclimate._waiting import OnWait, Patience
from acclimate._window import Window
from acclimate.errors import AcclimateError, Unavailable, UploadMismatch
from acclimate.resources import Example, LabeledBatch, UploadResult
from acclimate.v1 import adaptation_pb2, adaptation_pb2_grpc


class _Stream:
    """One attempt's call, with both directions as queues.

    The outbox needs no bound of its own: it never holds more than the window.
    """

    def __init__(
        self, connection: Connection, stub: adaptation_pb2_grpc.AdaptationServiceStub
    ) -> None:
        self._silence = connection.timeout
        self._outbox: queue.SimpleQueue[adaptation_pb2.UploadBatchRequest | None]
        self._outbox = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[adaptation_pb2.UploadBatchResponse | AcclimateError]
        self._inbox = queue.SimpleQueue()
        self._call = stub.UploadBatch(
            iter(self._outbox.get, None), timeout=STREAM_SECONDS, metadata=connection.metadata
        )
        threading.Thread(target=self._carry_in, name="acclimate-upload", daemon=True).start()

    def _carry_in(self) -> None:
        try:
            for response in self._call:
                self._inbox.put(response)
        except grpc.RpcError as failure:
            self._inbox.put(error_of(failure))
        else:
            self._inbox.put(Unavailable("the upload's stream ended early", reason="STREAM_ENDED"))

    def send(self, message: adaptation_pb2.UploadBatchRequest) -> None:
        """Queue a message to go out."""
        self._outbox.put(message)

    def answered(self) -> bool:
        """Whether `receive` would return, or raise, at once."""
        return not self._inbox.empty()

    def receive(self) -> adaptation_pb2.UploadBatchResponse:
        """The next answer.

        Raises:
            AcclimateError: the call failed, ended, or stayed silent for too long.
        """
        try:
            answer = self._inbox.get(timeout=self._silence)
        except queue.Empty:
            raise Unavailable(
                f"no answer to the upload for {self._silence:g} s", reason="STREAM_SILENT"
            ) from None
        if isinstance(answer, AcclimateError):
            raise answer
        return answer

    def close(self) -> None:
        """End both directions."""
        self._outbox.put(None)
        self._call.cancel()


class Upload:
    """An upload under way, across all its attempts."""

    def __init__(
        self,
        connection: Connection,
        *,
        window: Window,
        examples: Iterable[Example],
        on_wait: OnWait | None = None,
    ) -> None:
        self._connection = connection
        self._stub = adaptation_pb2_grpc.AdaptationServiceStub(connection.channel)
        self._window = window
        self._examples = iter(examples)
        self._patience = Patience(connection.patience, on_wait=on_wait)

    def run(self) -> UploadResult:
        """Send everything and commit it, through as many attempts as that takes.

        Raises:
            AcclimateError: the service refused the batch, or stayed away for longer
                than the client's patience. The same request_id resumes the upload.
        """
        while True:
            try:
                return self._window.result(self._attempt())
            except AcclimateError as error:
                # The service ends a stream that stands still; the upload stays open.
                self._patience.wait(error, resumable=error.reason == "UPLOAD_INCOMPLETE")

    def _attempt(self) -> LabeledBatch:
        stream = _Stream(self._connection, self._stub)
        try:
            stream.send(self._window.opening)
            first = stream.receive()
            if first.WhichOneof("part") == "committed":
                return _wire.batch(first.committed)
            self._resume(first.opened)
            for message in self._window.unanswered:
                stream.send(message)
            self._send_the_rest(stream)
            stream.send(self._window.commit)
            while (answer := stream.receive()).WhichOneof("part") != "committed":
                self._take(answer)
            return _wire.batch(answer.committed)
        finally:
            stream.close()

    def _resume(self, opened: adaptation_pb2.UploadBatchResponse.Opened) -> None:
        while self._window.wants(opened):
            example = next(self._examples, None)
            if example is None:
                raise UploadMismatch(opened.next_index)
            self._window.enter(example)
            self._patience.renew()

    def _send_the_rest(self, stream: _Stream) -> None:
        while True:
            while self._window.full or stream.answered():
                self._take(stream.receive())
            example = next(self._examples, None)
            if example is None:
                return
            stream.send(self._window.enter(example))

    def _take(self, answer: adaptation_pb2.UploadBatchResponse) -> None:
        self._patience.renew()
        self._window.take(answer.acknowledgement)
