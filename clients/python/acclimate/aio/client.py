"""The asyncio client: what a service that is asyncio itself does with another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from os import PathLike
from types import TracebackType
from typing import Self, Unpack

import grpc

from acclimate import _calls, _images, _names, _wire
from acclimate._calls import STREAM_SECONDS, AdaptOptions, PredictOptions
from acclimate._images import Image
from acclimate._status import error_of
from acclimate._terms import TLS, Terms
from acclimate._waiting import Patience
from acclimate._window import Window
from acclimate.aio._connection import Connection
from acclimate.aio._questions import Questions
from acclimate.aio._reading import each, read
from acclimate.aio._upload import Upload
from acclimate.aio.job import Job
from acclimate.client import DEFAULT_TARGET
from acclimate.errors import AcclimateError, Unavailable
from acclimate.resources import (
    Acknowledgement,
    Alias,
    Domain,
    Example,
    Health,
    Prediction,
    Refusal,
    Role,
    UploadResult,
)
from acclimate.v1 import inference_pb2, inference_pb2_grpc


class Client:
    """A connection to one Acclimate service, for the tasks of one event loop.

        async with Client("127.0.0.1:50051") as client:
            (answer,) = await client.predict("shop", [image])
            job = await client.adapt("shop", "night", promote_to="production")
            async for event in job.watch():
                print(event.message)

    It is made where its loop runs. Names, deadlines, repetitions and errors are those of
    `acclimate.Client`; what a caller passes to be read, files included, is read on a thread.

    Args:
        target: the service's ``host:port``.
        timeout: seconds for one call, its repetitions included; five minutes for those that
            load a version.
        patience: seconds without progress after which uploads, streams of predictions, and
            those who wait for a job give up.
        retries: how often a call is repeated at most.
        token: a bearer token.
        tls: how to encrypt; None means plain text.

    Raises:
        ValueError: *target* has no port, a token would leave this machine in plain text, or
            a file of *tls* is not what it is given for.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = 30.0,
        patience: float = 120.0,
        retries: int = 5,
        token: str | None = None,
        tls: TLS | None = None,
    ) -> None:
        terms = Terms(
            target=target,
            timeout=timeout,
            patience=patience,
            retries=retries,
            token=token,
            tls=tls,
        )
        self._connection = Connection(terms)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._connection.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._connection.close()

    async def health(self, service: str = "") -> Health:
        """Whether the service says it can answer; empty means the whole of it.

        Raises:
            Unavailable: it cannot be reached.
        """
        return await self._connection.ask(_calls.health(service))

    # ── predictions ──────────────────────────────────────────────────────────

    async def predict(
        self,
        model: str,
        images: Image | Iterable[Image],
        *,
        timeout: float | None = None,  # noqa: ASYNC109  of each request at the service, too
        **options: Unpack[PredictOptions],
    ) -> list[Prediction]:
        """Predict on images, in their order; many images travel in several requests.

        Args:
            model: ``digits`` (what is in production), ``digits@canary`` or ``digits/3``.
            images: one or many: a path, an encoded file's bytes, or uint8 pixels
                [size, size, 3] that already have the model's size.
            timeout: seconds for each request; None means the client's.
            **options: those of `acclimate.Client.predict`.

        Raises:
            InvalidRequest: an image cannot be read, or pixels have the wrong shape.
            NotFound: there is no such model, version or alias, or none for the domain.
        """
        if isinstance(images, _images.ONE):
            images = [images]
        wanted = _images.Wanted(model=_names.served_name(model), **options)
        found: list[Prediction] = []
        async for request in each(_images.requests(images, wanted, at_most=_images.REQUEST_IMAGES)):
            answered = await self._connection.ask(_calls.predict(request, seconds=timeout))
            found.extend(answered)
        return found

    async def predict_stream(
        self,
        model: str,
        images: Iterable[Image] | AsyncIterable[Image],
        **options: Unpack[PredictOptions],
    ) -> AsyncGenerator[Prediction | Refusal, None]:
        """Predict on a stream of images: one answer each, in their order, as they come.

        A refused image costs only itself. *images* is read at most ``STREAM_IN_FLIGHT``
        images ahead of the answers, for as long as it lasts. What a broken connection left
        without an answer is asked again. Who leaves early closes the stream: `aclosing`.

        Raises:
            AcclimateError: the stream as a whole was refused, or the service stayed away
                for longer than the client's patience.
        """
        wanted = _images.Wanted(model=_names.served_name(model), **options)
        questions = Questions(_requests(images, wanted))
        patience = Patience(self._connection.patience)
        try:
            while not questions.done:
                began = time.monotonic()
                error: AcclimateError
                try:
                    async for message in self._attempt(questions):
                        patience.renew()
                        for answer in _wire.answers(message):
                            yield answer
                    error = Unavailable("the stream ended early", reason="STREAM_ENDED")
                except grpc.RpcError as failure:
                    error = error_of(failure)
                    if not questions.waiting:
                        patience.rested(began)
                if questions.error is None and not questions.done:
                    await asyncio.sleep(patience.delay(error))
                if questions.error is not None:  # it may have come during the pause
                    raise questions.error
        finally:
            await questions.stop()

    async def _attempt(
        self, questions: Questions
    ) -> AsyncIterator[inference_pb2.PredictStreamResponse]:
        """The answers of one call to the questions that have none."""
        call = self._inference.PredictStream(
            questions.again(), timeout=STREAM_SECONDS, metadata=self._connection.metadata
        )
        try:
            async for message in call:
                questions.answered()
                yield message
        finally:
            call.cancel()

    # ── images and jobs ──────────────────────────────────────────────────────

    async def create_domain(
        self,
        name: str,
        labels: Iterable[str],
        *,
        description: str = "",
        request_id: str | None = None,
    ) -> Domain:
        """Create a domain; see `acclimate.Client.create_domain`.

        Raises:
            AlreadyExists: the id is taken.
        """
        call = _calls.create_domain(name, labels, description=description, request_id=request_id)
        return await self._connection.ask(call)

    async def domain(self, name: str) -> Domain:
        """One domain, with its counts of images.

        Raises:
            NotFound: there is none of this name.
        """
        return await self._connection.ask(_calls.domain(name))

    async def upload(
        self,
        domain: str,
        examples: Iterable[Example] | AsyncIterable[Example],
        *,
        role: Role = Role.AUTO,
        request_id: str | None = None,
        on_acknowledgement: Callable[[Acknowledgement], None] | None = None,
        on_wait: Callable[[AcclimateError, float], None] | None = None,
    ) -> UploadResult:
        """Upload labelled images as one batch, which jobs see once it is whole.

        Read lazily, and resumed after breaks, as by `acclimate.Client.upload`; an upload
        that one client began, the other goes on with.

        Args:
            domain: where the images come from.
            examples: the images.
            role: what they are given for.
            request_id: what makes the upload resumable by another call.
            on_acknowledgement: told every answer, in order, on the event loop.
            on_wait: told what is waited for when the service refuses for a while (its disk is
                full, say), and for how many seconds at most.

        Raises:
            TypeError: *examples* is a path: read it with `examples_from_folder`.
            InvalidRequest: the whole batch was refused (none of it was accepted, say).
            UploadMismatch: the examples are not those the request_id began with.
            Unavailable: the service stayed away for longer than the client's patience.
        """
        if isinstance(examples, str | bytes | PathLike):
            raise TypeError(
                "examples are Example objects: examples_from_folder(...) reads a folder"
            )
        window = Window(
            domain=_names.domain_name(domain),
            role=role,
            request_id=request_id or _calls.new_request_id(),
            on_acknowledgement=on_acknowledgement,
        )
        upload = Upload(self._connection, window=window, examples=each(examples), on_wait=on_wait)
        return await upload.run()

    async def adapt(self, model: str, domain: str, **options: Unpack[AdaptOptions]) -> Job:
        """Start the job that adapts a model to a domain, or bootstraps a bare backbone.

        Args:
            model: the model.
            domain: the domain to learn.
            **options: those of `acclimate.Client.adapt`.

        Raises:
            NotFound: there is no such model, domain or base.
            Conflict: there is nothing to adapt from, or there are too few images.
        """
        found = await self._connection.ask(_calls.adapt(model, domain, **options))
        return Job(self._connection, found)

    async def job(self, name: str) -> Job:
        """A handle on one job.

        Raises:
            NotFound: there is none of this name.
        """
        return Job(self._connection, await self._connection.ask(_calls.job(_names.job_name(name))))

    # ── what is served ───────────────────────────────────────────────────────

    async def aliases(self, model: str) -> list[Alias]:
        """All aliases of a model."""
        return await self._connection.ask(_calls.aliases(model))

    async def promote(
        self,
        model: str,
        version: str,
        *,
        alias: str = "production",
        expected: str | None = None,
        reason: str = "",
    ) -> Alias:
        """Load and warm a version, then point an alias at it.

        Args:
            model: the model.
            version: its version (``3``).
            alias: which pointer.
            expected: only move the alias if it points at this version now.
            reason: why; kept in the audit log.

        Raises:
            Conflict: the version cannot be loaded, or the alias points elsewhere
                than *expected*.
        """
        call = _calls.promote(model, version, alias=alias, expected=expected, reason=reason)
        return await self._connection.ask(call)

    async def rollback(self, model: str, *, alias: str = "production", reason: str = "") -> Alias:
        """Point an alias back at where it pointed before.

        Raises:
            Conflict: it has not pointed anywhere else.
        """
        return await self._connection.ask(_calls.rollback(model, alias=alias, reason=reason))


async def _requests(
    images: Iterable[Image] | AsyncIterable[Image], wanted: _images.Wanted
) -> AsyncIterator[inference_pb2.PredictRequest]:
    """A request an image; files are read on a thread, whatever names them."""
    if not isinstance(images, AsyncIterable):
        async for request in each(_images.requests(images, wanted, at_most=1)):
            yield request
        return
    async for image in images:
        async for request in read(_images.requests([image], wanted, at_most=1)):
            yield request
