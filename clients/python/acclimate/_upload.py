"""One upload: a stream of examples that survives broken connections.

The caller's thread reads the examples and decides; a second thread only carries
answers in. What has been sent and not answered is kept, in a bounded window, so
that after a break the service says where to go on and nothing that it has
answered is sent again. Both ends keep a running digest over the examples, which
proves that they speak of the same ones.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import grpc

from acclimate import _wire
from acclimate._connection import STREAM_SECONDS, Connection, Patience
from acclimate._status import error_of
from acclimate.errors import AcclimateError, ServiceFault, Unavailable, UploadMismatch
from acclimate.resources import Acknowledgement, Example, LabeledBatch, Role, UploadResult
from acclimate.v1 import adaptation_pb2, adaptation_pb2_grpc

EMPTY_CHAIN = "0" * 64
WINDOW_EXAMPLES = 256
WINDOW_BYTES = 32 * 2**20
LARGEST = 32 * 2**20  # bytes of an image; the service takes 20 MiB, and no message over 64


def chain_digest(previous: str, image: bytes, label: str) -> str:
    """The digest over an upload so far: sha256(previous || sha256(image) || label), in hex."""
    inner = hashlib.sha256(image).digest()
    return hashlib.sha256(bytes.fromhex(previous) + inner + label.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Sent:
    """An example as sent; ``chain`` is the digest up to and including it."""

    index: int
    message: adaptation_pb2.UploadBatchRequest
    size: int
    chain: str


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
    """An upload under way: what was read, sent and answered, across all its attempts."""

    def __init__(
        self,
        connection: Connection,
        *,
        domain: str,
        role: Role,
        request_id: str,
        examples: Iterable[Example],
        on_acknowledgement: Callable[[Acknowledgement], None] | None,
    ) -> None:
        self._connection = connection
        self._stub = adaptation_pb2_grpc.AdaptationServiceStub(connection.channel)
        self._open = adaptation_pb2.UploadBatchRequest(
            open=adaptation_pb2.UploadBatchRequest.Open(
                parent=domain, role=_wire.role_number(role), request_id=request_id
            )
        )
        self._examples = iter(examples)
        self._told = on_acknowledgement
        self._patience = Patience(connection.patience)
        self._read = 0
        self._chain_read = EMPTY_CHAIN
        self._answered = 0
        self._chain_answered = EMPTY_CHAIN
        self._unanswered: deque[_Sent] = deque()
        self._unanswered_bytes = 0
        self._rejected: list[Acknowledgement] = []
        self._too_large: dict[int, int] = {}  # bytes, by index, of what was sent as an empty file

    def run(self) -> UploadResult:
        """Send everything and commit it, through as many attempts as that takes.

        Raises:
            AcclimateError: the service refused the batch, or stayed away for longer
                than the client's patience. The same request_id resumes the upload.
        """
        while True:
            try:
                batch = self._attempt()
            except AcclimateError as error:
                # The service ends a stream that stands still; the upload stays open.
                self._patience.wait(error, resumable=error.reason == "UPLOAD_INCOMPLETE")
            else:
                return UploadResult(
                    batch=batch,
                    accepted=batch.accepted,
                    duplicates=batch.duplicates,
                    rejected=tuple(self._rejected),
                    request_id=self._open.open.request_id,
                )

    def _attempt(self) -> LabeledBatch:
        stream = _Stream(self._connection, self._stub)
        try:
            stream.send(self._open)
            first = stream.receive()
            if first.WhichOneof("part") == "committed":
                return _wire.batch(first.committed)
            self._resume(first.opened)
            for sent in self._unanswered:
                stream.send(sent.message)
            self._send_the_rest(stream)
            stream.send(self._commit())
            while (answer := stream.receive()).WhichOneof("part") != "committed":
                self._take(answer.acknowledgement)
            return _wire.batch(answer.committed)
        finally:
            stream.close()

    def _send_the_rest(self, stream: _Stream) -> None:
        while True:
            while self._window_is_full() or stream.answered():
                self._take(stream.receive().acknowledgement)
            sent = self._read_next()
            if sent is None:
                return
            stream.send(sent.message)

    def _window_is_full(self) -> bool:
        return len(self._unanswered) >= WINDOW_EXAMPLES or self._unanswered_bytes >= WINDOW_BYTES

    def _read_next(self) -> _Sent | None:
        """The next example, entered into the window; None after the last."""
        example = next(self._examples, None)
        if example is None:
            return None
        if len(example.image) > LARGEST:
            # Its message would be refused by the connection, and with it the whole upload.
            self._too_large[self._read] = len(example.image)
            example = replace(example, image=b"")
        self._chain_read = chain_digest(self._chain_read, example.image, example.label)
        sent = _Sent(
            index=self._read,
            message=adaptation_pb2.UploadBatchRequest(
                item=adaptation_pb2.UploadBatchRequest.Item(
                    index=self._read, example=_wire.example_message(example)
                )
            ),
            size=len(example.image),
            chain=self._chain_read,
        )
        self._read += 1
        self._unanswered.append(sent)
        self._unanswered_bytes += sent.size
        return sent

    def _settle(self) -> None:
        """Forget the oldest example of the window: the service has answered it."""
        sent = self._unanswered.popleft()
        self._unanswered_bytes -= sent.size
        self._answered = sent.index + 1
        self._chain_answered = sent.chain

    def _resume(self, opened: adaptation_pb2.UploadBatchResponse.Opened) -> None:
        """Go on where the service says.

        That may be further than was known here: answers get lost with a
        connection, and the first attempt of a new process may continue an upload
        of an old one, whose examples are then read again but not sent.

        Raises:
            UploadMismatch: the examples are not those the upload began with.
            ServiceFault: the service has lost examples that it had acknowledged.
        """
        if opened.next_index < self._answered:
            raise ServiceFault(
                f"{self._answered} examples were acknowledged, but the service wants to go on "
                f"from {opened.next_index}",
                reason="ACKNOWLEDGED_EXAMPLES_LOST",
            )
        while self._answered < opened.next_index:
            if not self._unanswered and self._read_next() is None:
                raise UploadMismatch(opened.next_index)
            self._settle()
            self._patience.renew()
        if self._chain_answered != opened.chain:
            raise UploadMismatch(opened.next_index)

    def _take(self, message: adaptation_pb2.UploadBatchResponse.Acknowledgement) -> None:
        answer = _wire.acknowledgement(message)
        if size := self._too_large.pop(answer.index, 0):
            told = f"the file has {size} bytes; at most 20 MiB are taken"
            answer = replace(answer, message=told)
        if not self._unanswered or answer.index != self._answered:
            raise ServiceFault(
                f"example {answer.index} was answered when {self._answered} was due",
                reason="ACKNOWLEDGEMENT_OUT_OF_ORDER",
            )
        self._settle()
        self._patience.renew()
        if answer.outcome == "REJECTED":
            self._rejected.append(answer)
        if self._told is not None:
            self._told(answer)

    def _commit(self) -> adaptation_pb2.UploadBatchRequest:
        return adaptation_pb2.UploadBatchRequest(
            commit=adaptation_pb2.UploadBatchRequest.Commit(
                count=self._read, chain=self._chain_read
            )
        )
