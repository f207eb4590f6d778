"""One registration stream: a draft, perhaps a file in chunks, a commit."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hmac
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog

from acclimate.v1 import registry_pb2 as pb
from acclimate_service import tracing
from acclimate_service.domain.errors import InvalidSpec, UploadIncomplete
from acclimate_service.domain.job import Job, JobDraft, JobKind, JobSpec
from acclimate_service.domain.model import Model, WeightsSource
from acclimate_service.domain.weights_form import HEAD_BYTES, form_of
from acclimate_service.rpc import convert, fields
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.convert import Registration
from acclimate_service.store import BlobWriter, Store

Messages = AsyncIterator[pb.RegisterModelRequest]


@dataclass(frozen=True, kw_only=True)
class RegistrationLimits:
    """What one stream may carry and how long it may stand still."""

    file_bytes: int = 4 * 2**30
    idle_seconds: float = 60.0


class Registrations:
    """Takes registration streams; the store is called in *lane*."""

    def __init__(self, store: Store, *, lane: Lane, limits: RegistrationLimits) -> None:
        self._store = store
        self._lane = lane
        self._limits = limits

    async def take(self, messages: Messages) -> tuple[Model, str]:
        """The registered model, and the name of the job that makes its first version if any.

        Raises:
            InvalidName, InvalidSpec: a message makes no sense or comes out of turn.
            UploadIncomplete: the stream ended or stood still before its commit, or the
                digest is not that of the file. Nothing is registered.
            WeightsMismatch: the file cannot be one of weights.
            AlreadyExists: the id is taken.
        """
        first = await self._next(messages)
        if first.WhichOneof("part") != "draft":
            raise InvalidSpec("the first message must be `draft`", field="draft")
        registration = convert.registration(first.draft)
        structlog.contextvars.bind_contextvars(model=str(registration.model))
        if registration.weights.kind == "FILE":
            digest = await self._file(messages)
            weights = WeightsSource(kind="FILE", reference=digest)
        else:
            await self._no_file(messages)
            weights = registration.weights
        model, job = await self._lane.run(self._register, registration, weights)
        structlog.get_logger(__name__).info("model registered", job=job and str(job.name))
        return model, "" if job is None else str(job.name)

    def _register(
        self, registration: Registration, weights: WeightsSource
    ) -> tuple[Model, Job | None]:
        # The job's request_id follows from the model, and has a colon, which no caller's
        # may have: a call repeated after a crash between the two makes the job it lacks.
        model = self._store.registry.create_model(
            Model(
                name=registration.model,
                architecture=registration.architecture,
                weights=weights,
                labels=registration.labels,
                preprocessing=registration.preprocessing,
                decoding=registration.decoding,
                source_domain=registration.source_domain,
                created_at=dt.datetime.now(dt.UTC),  # the store writes its own
            ),
            registration.request_id,
        )
        if not registration.labels:
            return model, None
        draft = JobDraft(
            kind=JobKind.REGISTER,
            model=registration.model,
            source=registration.source_domain,
            target=None,
            incumbent=None,
            spec=JobSpec(promote_to=registration.promote_to),
        )
        job = self._store.jobs.enqueue(
            draft,
            request_id=f"register:{registration.model.model}",
            limit=None,  # refused here, the model would stay without its job
            facts=tracing.facts(),
        )
        return model, job

    # ── reading ──────────────────────────────────────────────────────────────

    async def _next(self, messages: Messages) -> pb.RegisterModelRequest:
        try:
            async with asyncio.timeout(self._limits.idle_seconds):
                message = await anext(messages, None)
        except TimeoutError:
            raise UploadIncomplete("the stream stood still too long; nothing was kept") from None
        if message is None:
            raise UploadIncomplete("the stream ended without its commit; nothing was kept")
        return message

    async def _no_file(self, messages: Messages) -> None:
        message = await self._next(messages)
        if message.WhichOneof("part") != "commit":
            raise InvalidSpec("these weights need no file; commit next", field="weights.kind")
        if message.commit.sha256:
            raise InvalidSpec("there was no file, so there is no digest", field="commit.sha256")

    async def _file(self, messages: Messages) -> str:
        """Write the chunks to a blob; its digest, once the commit has named the same one."""
        with contextlib.ExitStack() as stack:
            # Entered and left on a thread: leaving it syncs the file.
            writer = await self._lane.run(stack.enter_context, self._store.blobs.writer())
            claimed = await self._chunks(messages, writer)
            await self._lane.run(stack.close)
        # A blob that nothing names is collected; what is not what was sent is not named.
        if not hmac.compare_digest(writer.digest, claimed):
            raise UploadIncomplete(
                f"the file that arrived has the sha256 {writer.digest}, not {claimed}; send it "
                "again"
            )
        return writer.digest

    async def _chunks(self, messages: Messages, writer: BlobWriter) -> str:
        """Write every chunk; the digest that the commit claims.

        Raises:
            WeightsMismatch: the file begins as no weights file does; the rest is not waited for.
        """
        head = b""
        while True:
            message = await self._next(messages)
            part = message.WhichOneof("part")
            if part == "commit" and writer.size:
                if len(head) < HEAD_BYTES:
                    form_of(head)
                return fields.sha256("commit.sha256", message.commit.sha256)
            if part != "chunk":
                raise InvalidSpec(
                    "after `draft`, a file comes in chunks, and then one commit", field="part"
                )
            if len(head) < HEAD_BYTES:
                head += message.chunk[: HEAD_BYTES - len(head)]
                if len(head) == HEAD_BYTES:
                    form_of(head)
            if writer.size + len(message.chunk) > self._limits.file_bytes:
                raise InvalidSpec(
                    f"the file is larger than the {self._limits.file_bytes} bytes that are taken",
                    field="chunk",
                )
            await self._lane.run(writer.write, message.chunk)
