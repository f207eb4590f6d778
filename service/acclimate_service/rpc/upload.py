"""One upload stream: open, examples in groups, one commit.

    stream ─► group (bounded in count and bytes) ─► decode, in threads ─► blobs, fsynced
           ◄─ acknowledgements in order ◄─ one transaction ◄──────────────┘

An acknowledgement is sent after its group is on disk, so what a client was told of is
there after any crash. While a group is stored nothing is read: the transport's flow
control holds the client back, and memory does not grow with the stream.

A killed uploader ends its stream exactly as a finished one does. Only a commit that
names the count and the running digest makes a batch; without it the batch stays open,
and the same request_id resumes it where the last acknowledgement left it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from acclimate.v1 import adaptation_pb2 as pb
from acclimate_service.domain.errors import (
    BlobNotFound,
    InvalidSpec,
    ServiceError,
    UploadIncomplete,
)
from acclimate_service.domain.examples import LabeledBatch, chain_digest
from acclimate_service.domain.names import BatchName
from acclimate_service.imaging import content_digest, decode, perceptual_hash
from acclimate_service.rpc import convert_jobs, fields
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.metrics import Metrics
from acclimate_service.store import Store
from acclimate_service.store.intake import Outcome, Received, Refusal


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """What one stream may hold and how long it may take."""

    group_examples: int = 64
    group_bytes: int = 16 * 2**20
    linger_seconds: float = 0.02  # how long a group waits for its next example
    idle_seconds: float = 60.0  # without any message: ended
    stream_seconds: float = 3600.0  # a stream is ended, its upload resumes on the next one


@dataclass(frozen=True, kw_only=True)
class _Examined:
    """What one image turned out to be; ``refusal`` is set if it is not taken."""

    content: str = ""
    phash: str = ""
    refusal: Refusal | None = None


class _Ended:
    """What an inbox gives once its client has sent everything."""


_ENDED: Final = _Ended()


class _Inbox:
    """The messages of a stream, read with patience: a wait that ends loses no message."""

    def __init__(self, messages: AsyncIterator[pb.UploadBatchRequest]) -> None:
        self._messages = messages
        self._reading: asyncio.Future[pb.UploadBatchRequest | _Ended] | None = None

    async def next(self, patience: float) -> pb.UploadBatchRequest | _Ended | None:
        """The next message; None if there is none within *patience* seconds."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(anext(self._messages, _ENDED))
        await asyncio.wait({self._reading}, timeout=patience)
        if not self._reading.done():
            return None
        reading, self._reading = self._reading, None
        return reading.result()

    def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()


class Uploads:
    """Takes upload streams. Decoding runs in *ingest*, the store is called in *lane*."""

    def __init__(
        self, store: Store, *, lane: Lane, ingest: Lane, metrics: Metrics, limits: UploadLimits
    ) -> None:
        self._store = store
        self._lane = lane
        self._ingest = ingest
        self._metrics = metrics
        self._limits = limits

    async def take(
        self, messages: AsyncIterator[pb.UploadBatchRequest]
    ) -> AsyncIterator[pb.UploadBatchResponse]:
        """Answer one stream, from its opening to its commit.

        Raises:
            InvalidName, InvalidSpec: a message makes no sense or comes out of turn.
            NotFound: there is no such domain.
            RequestIdReused: the request_id belongs to an upload of another kind.
            UploadIncomplete: the stream ended or stood still before its commit, or the
                commit does not match what arrived. The batch stays open.
            EmptyBatch: nothing was accepted.
        """
        inbox = _Inbox(messages)
        try:
            async for response in self._answers(inbox):
                yield response
        finally:
            inbox.close()

    async def _answers(self, inbox: _Inbox) -> AsyncIterator[pb.UploadBatchResponse]:
        ends_at = time.monotonic() + self._limits.stream_seconds
        first = await self._patient(inbox, ends_at)
        if isinstance(first, _Ended) or first.WhichOneof("part") != "open":
            raise InvalidSpec("the first message must be `open`", field="open")
        batch = await self._begin(first.open)
        yield convert_jobs.opened(batch)
        received, chain = batch.received, batch.chain
        while True:
            group, last = await self._group(inbox, received, ends_at)
            if group:
                outcomes, chain = await self._keep(batch.name, group, chain)
                received += len(group)
                for outcome in outcomes:
                    self._metrics.examples.labels(_outcome_label(outcome)).inc()
                    yield convert_jobs.acknowledgement(outcome)
            if isinstance(last, pb.UploadBatchRequest.Commit):
                committed = await self._commit(batch.name, last)
                yield pb.UploadBatchResponse(committed=convert_jobs.batch(committed))
                return
            if last is not None:
                raise UploadIncomplete(
                    f"the stream ended without a commit; {batch.name} stays open and goes on at "
                    f"example {received} with the same request_id",
                    received=received,
                )

    async def _begin(self, message: pb.UploadBatchRequest.Open) -> LabeledBatch:
        opening = convert_jobs.opening(message)
        batch = await self._lane.run(
            self._store.domains.begin_batch,
            opening.domain,
            opening.role,
            request_id=opening.request_id,
        )
        structlog.contextvars.bind_contextvars(batch=str(batch.name))
        return batch

    async def _commit(
        self, batch: BatchName, message: pb.UploadBatchRequest.Commit
    ) -> LabeledBatch:
        committed = await self._lane.run(
            self._store.domains.commit_batch,
            batch,
            count=fields.count("commit.count", message.count, most=2**53),
            chain=fields.sha256("commit.chain", message.chain),
        )
        structlog.get_logger(__name__).info("batch committed", accepted=committed.accepted)
        return committed

    # ── reading ──────────────────────────────────────────────────────────────

    async def _group(
        self, inbox: _Inbox, received: int, ends_at: float
    ) -> tuple[list[pb.UploadBatchRequest.Item], pb.UploadBatchRequest.Commit | _Ended | None]:
        """The next examples to store together, and what ended them if something did."""
        group: list[pb.UploadBatchRequest.Item] = []
        size = 0
        while len(group) < self._limits.group_examples and size < self._limits.group_bytes:
            message = (
                await inbox.next(self._limits.linger_seconds)
                if group
                else await self._patient(inbox, ends_at)
            )
            if message is None:
                break
            if isinstance(message, _Ended):
                return group, message
            part = message.WhichOneof("part")
            if part == "commit":
                return group, message.commit
            if part != "item":
                raise InvalidSpec(
                    "after `open` come items and one commit, nothing else", field="part"
                )
            expected = received + len(group)
            if message.item.index != expected:
                raise InvalidSpec(
                    f"item.index is {message.item.index}, but example {expected} is next",
                    field="item.index",
                )
            group.append(message.item)
            size += len(message.item.example.image)
        return group, None

    async def _patient(self, inbox: _Inbox, ends_at: float) -> pb.UploadBatchRequest | _Ended:
        """The next message, however long that takes within the limits."""
        left = ends_at - time.monotonic()
        message = await inbox.next(max(0.0, min(self._limits.idle_seconds, left)))
        if message is None:
            raise UploadIncomplete(
                "the stream stood still too long or has lasted too long; what was acknowledged "
                "is kept, resume with the same request_id"
            )
        return message

    # ── storing ──────────────────────────────────────────────────────────────

    async def _keep(
        self, batch: BatchName, group: Sequence[pb.UploadBatchRequest.Item], chain: str
    ) -> tuple[list[Outcome], str]:
        """Examine and store a group; the answers, and the running digest after it."""
        examined = await asyncio.gather(
            *(self._ingest.run(_examine, item.example) for item in group)
        )
        return await self._lane.run(self._store_group, batch, group, examined, chain)

    def _store_group(
        self,
        batch: BatchName,
        group: Sequence[pb.UploadBatchRequest.Item],
        examined: Sequence[_Examined],
        chain: str,
    ) -> tuple[list[Outcome], str]:
        taken = [
            item.example.image
            for item, found in zip(group, examined, strict=True)
            if found.refusal is None
        ]
        # Files before rows: a row never names what is not on disk.
        digests = iter(self._store.blobs.put_many(taken))
        received = []
        for item, found in zip(group, examined, strict=True):
            chain = chain_digest(chain, item.example.image, item.example.label)
            refused = found.refusal is not None
            received.append(
                Received(
                    index=item.index,
                    id=item.example.id[: convert_jobs.ID_LENGTH],
                    label=item.example.label,
                    chain=chain,
                    content=found.content,
                    blob="" if refused else next(digests),
                    phash=found.phash,
                    tags=() if refused else tuple(item.example.tags),
                    refusal=found.refusal,
                )
            )
        try:
            return self._store.domains.add(batch, received), chain
        except BlobNotFound:  # the same image was erased in between, by somebody else
            self._store.blobs.put_many(taken)
            return self._store.domains.add(batch, received), chain


def _examine(example: pb.Example) -> _Examined:
    """Decode an example and say what it is; a bad one is refused, never raised."""
    try:
        convert_jobs.check_example(example)
        pixels = decode(example.image)
    except ServiceError as error:
        return _Examined(refusal=Refusal.of(error))
    return _Examined(content=content_digest(pixels), phash=f"{perceptual_hash(pixels):016x}")


def _outcome_label(outcome: Outcome) -> str:
    return outcome.refusal.reason if outcome.refusal else outcome.answer.value.lower()
