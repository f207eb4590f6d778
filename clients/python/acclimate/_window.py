"""What an upload has read, sent and been answered: its bookkeeping, without its connection.

What was sent and not answered is kept, in a bounded window, so that after a break the
service says where to go on and nothing that it has answered is sent again. Both ends keep
a running digest over the examples, which proves that they speak of the same ones.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from acclimate import _wire
from acclimate.errors import ServiceFault, UploadMismatch
from acclimate.resources import Acknowledgement, Example, LabeledBatch, Role, UploadResult
from acclimate.v1 import adaptation_pb2

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


class Window:
    """The examples of one upload, across all attempts to send them.

    Args:
        domain: the full name of the domain.
        role: what the images are given for.
        request_id: what makes the upload resumable.
        on_acknowledgement: told every answer, in order.
    """

    def __init__(
        self,
        *,
        domain: str,
        role: Role,
        request_id: str,
        on_acknowledgement: Callable[[Acknowledgement], None] | None,
    ) -> None:
        self.opening = adaptation_pb2.UploadBatchRequest(
            open=adaptation_pb2.UploadBatchRequest.Open(
                parent=domain, role=_wire.role_number(role), request_id=request_id
            )
        )
        self._told = on_acknowledgement
        self._read = 0
        self._chain_read = EMPTY_CHAIN
        self._answered = 0
        self._chain_answered = EMPTY_CHAIN
        self._unanswered: deque[_Sent] = deque()
        self._unanswered_bytes = 0
        self._rejected: list[Acknowledgement] = []
        self._too_large: dict[int, int] = {}  # bytes, by index, of what was sent as an empty file

    @property
    def full(self) -> bool:
        """Whether an answer has to come before another example is sent."""
        return len(self._unanswered) >= WINDOW_EXAMPLES or self._unanswered_bytes >= WINDOW_BYTES

    @property
    def unanswered(self) -> Iterator[adaptation_pb2.UploadBatchRequest]:
        """What a new attempt sends first."""
        return iter([sent.message for sent in self._unanswered])

    @property
    def commit(self) -> adaptation_pb2.UploadBatchRequest:
        """What ends the upload, once every example was entered."""
        return adaptation_pb2.UploadBatchRequest(
            commit=adaptation_pb2.UploadBatchRequest.Commit(
                count=self._read, chain=self._chain_read
            )
        )

    def enter(self, example: Example) -> adaptation_pb2.UploadBatchRequest:
        """Take in the next example; the message to send."""
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
        return sent.message

    def wants(self, opened: adaptation_pb2.UploadBatchResponse.Opened) -> bool:
        """Whether the next example has to be entered before the upload can go on.

        The service may be further than was known here: answers get lost with a
        connection, and the first attempt of a new process may continue an upload of
        an old one, whose examples are then read again but not sent.

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
            if not self._unanswered:
                return True
            self._settle()
        if self._chain_answered != opened.chain:
            raise UploadMismatch(opened.next_index)
        return False

    def take(self, message: adaptation_pb2.UploadBatchResponse.Acknowledgement) -> None:
        """Enter an answer, and tell it.

        Raises:
            ServiceFault: it is not the one that is due.
        """
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
        if answer.outcome == "REJECTED":
            self._rejected.append(answer)
        if self._told is not None:
            self._told(answer)

    def result(self, batch: LabeledBatch) -> UploadResult:
        """What the upload came to, once *batch* was committed."""
        return UploadResult(
            batch=batch,
            accepted=batch.accepted,
            duplicates=batch.duplicates,
            rejected=tuple(self._rejected),
            request_id=self.opening.open.request_id,
        )

    def _settle(self) -> None:
        """Forget the oldest example of the window: the service has answered it."""
        sent = self._unanswered.popleft()
        self._unanswered_bytes -= sent.size
        self._answered = sent.index + 1
        self._chain_answered = sent.chain
