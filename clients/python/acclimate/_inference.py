"""The client's calls to InferenceService: predictions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import grpc

from acclimate import _calls, _images, _names, _wire
from acclimate._calls import STREAM_SECONDS
from acclimate._connection import Connection
from acclimate._images import Image
from acclimate._questions import Questions
from acclimate._status import error_of
from acclimate._waiting import Patience
from acclimate.errors import Unavailable
from acclimate.resources import Prediction, Refusal, VersionStatistics
from acclimate.rollouts import Drift
from acclimate.v1 import inference_pb2, inference_pb2_grpc


class InferenceCalls:
    """What a model says of images, and which version said it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inference = inference_pb2_grpc.InferenceServiceStub(connection.channel)

    def predict(
        self,
        model: str,
        images: Image | Iterable[Image],
        *,
        domain: str = "",
        top_k: int = 5,
        probabilities: bool = False,
        logits: bool = False,
        embeddings: bool = False,
        priority: int = 2,
        routing_key: str = "",
        timeout: float | None = None,
    ) -> list[Prediction]:
        """Predict on images, in their order; many images travel in several requests.

        Args:
            model: ``digits`` (what is in production), ``digits@canary`` or ``digits/3``.
            images: one or many: a path, an encoded file's bytes, or uint8 pixels
                [size, size, 3] that already have the model's size.
            domain: where the images come from: the version that is adapted to it answers,
                and *model* is the model alone. Empty: *model* says who answers.
            top_k: how many labels to name, best first.
            probabilities: also return every label's probability.
            logits: also return the logits.
            embeddings: also return the pooled features.
            priority: 1 goes before 2, and 2 before 3, while requests wait.
            routing_key: during a canary, equal keys are answered by the same version (a
                camera's id, say); empty lets each request's images decide.
            timeout: seconds for each request; None means the client's.

        Raises:
            InvalidRequest: an image cannot be read, or pixels have the wrong shape.
            NotFound: there is no such model, version or alias, or none for the domain.
        """
        if isinstance(images, _images.ONE):
            images = [images]
        wanted = _images.Wanted(
            model=_names.served_name(model),
            top_k=top_k,
            probabilities=probabilities,
            logits=logits,
            embeddings=embeddings,
            priority=priority,
            routing_key=routing_key,
            domain=domain,
        )
        found: list[Prediction] = []
        for request in _images.requests(images, wanted, at_most=_images.REQUEST_IMAGES):
            answered = self._connection.ask(_calls.predict(request, seconds=timeout))
            found.extend(answered)
        return found

    def drift(self, model: str, *, timeout: float = 120.0) -> Drift:
        """How far the images that came in lately lie from the domains that the model knows.

        Args:
            model: ``digits`` (what is in production), ``digits@canary`` or ``digits/3``.
            timeout: seconds; the first call for a version takes some.

        Raises:
            NotFound: there is no such model, version or alias.
        """
        request = inference_pb2.GetDriftRequest(model=_names.served_name(model))
        found = self._connection.call(
            self._inference.GetDrift, request, idempotent=True, timeout=timeout
        )
        return Drift(
            version=found.version,
            images=found.images,
            domains=tuple((one.domain, one.distance, one.p, one.unlike) for one in found.domains),
            due=found.due,
            message=found.message,
        )

    def predict_stream(
        self,
        model: str,
        images: Iterable[Image],
        *,
        domain: str = "",
        top_k: int = 5,
        probabilities: bool = False,
        logits: bool = False,
        embeddings: bool = False,
        priority: int = 2,
        routing_key: str = "",
    ) -> Iterator[Prediction | Refusal]:
        """Predict on a stream of images: one answer each, in their order, as they come.

        A refused image costs only itself. *images* is read on another thread, at
        most ``STREAM_IN_FLIGHT`` images ahead of the answers, for as long as it lasts. What
        a broken connection left without an answer is asked again.

        Raises:
            AcclimateError: the stream as a whole was refused, or the service stayed away
                for longer than the client's patience.
        """
        wanted = _images.Wanted(
            model=_names.served_name(model),
            top_k=top_k,
            probabilities=probabilities,
            logits=logits,
            embeddings=embeddings,
            priority=priority,
            routing_key=routing_key,
            domain=domain,
        )
        questions = Questions(_images.requests(images, wanted, at_most=1))
        patience = Patience(self._connection.patience)
        try:
            while not questions.done:
                began = time.monotonic()
                try:
                    for message in self._attempt(questions):
                        patience.renew()
                        yield from _wire.answers(message)
                    if not questions.done:
                        patience.wait(Unavailable("the stream ended early", reason="STREAM_ENDED"))
                except grpc.RpcError as failure:
                    error = error_of(failure)
                    if not questions.waiting:
                        patience.rested(began)
                    if questions.error is None:
                        patience.wait(error)
                if questions.error is not None:
                    raise questions.error
        finally:
            questions.stop()

    def _attempt(self, questions: Questions) -> Iterator[inference_pb2.PredictStreamResponse]:
        """The answers of one call to the questions that have none."""
        call = self._inference.PredictStream(
            questions.again(), timeout=STREAM_SECONDS, metadata=self._connection.metadata
        )
        try:
            for message in call:
                questions.answered()
                yield message
        finally:
            call.cancel()

    def statistics(self, model: str, *, timeout: float | None = None) -> list[VersionStatistics]:
        """What the server was asked of a model's versions since it started, newest first.

        Raises:
            NotFound: there is no such model.
        """
        request = inference_pb2.ListVersionStatisticsRequest(parent=_names.model_name(model))
        answer = self._connection.call(
            self._inference.ListVersionStatistics, request, idempotent=True, timeout=timeout
        )
        return [_wire.version_statistics(message) for message in answer.statistics]
