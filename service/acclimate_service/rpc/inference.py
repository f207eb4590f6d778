"""``InferenceService``: resolve a name, run, name the version that answered."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from acclimate.v1 import inference_pb2 as pb
from acclimate.v1 import inference_pb2_grpc as pb_grpc
from acclimate_service.domain.errors import ServiceError
from acclimate_service.domain.model import ModelVersion
from acclimate_service.domain.names import ModelName, VersionName
from acclimate_service.inference.answer import Answer
from acclimate_service.inference.batcher import PATIENT
from acclimate_service.inference.encoded import Encoded
from acclimate_service.inference.handle import Handle
from acclimate_service.rpc import convert_predictions as convert
from acclimate_service.rpc import fields
from acclimate_service.rpc.bounds import Gate, Lane
from acclimate_service.rpc.served import Served
from acclimate_service.rpc.trials import Asked
from acclimate_service.store import Store

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(pb_grpc.InferenceServiceServicer):
    """Answers from what is *served*; *gate* bounds the requests that streams have open.

    The *store* is read in *lane*, and what would hold the event loop up in *tensors*.
    """

    def __init__(
        self, store: Store, *, lane: Lane, tensors: Lane, served: Served, gate: Gate
    ) -> None:
        self._store = store
        self._lane = lane
        self._tensors = tensors
        self._served = served
        self._gate = gate

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        return await self._predict(request, deadline(context))

    async def PredictStream(
        self, request_iterator: AsyncIterator[pb.PredictRequest], context: Context
    ) -> AsyncIterator[pb.PredictStreamResponse]:
        # One at a time: answers come in the order of the requests, and what a client
        # sends ahead waits in the transport, not here.
        async for request in request_iterator:
            try:
                with self._gate.enter():
                    answer = await self._predict(request, deadline(context))
                yield pb.PredictStreamResponse(response=answer)
            except ServiceError as error:
                yield convert.refusal(error, request)

    async def ListVersionStatistics(
        self, request: pb.ListVersionStatisticsRequest, context: Context
    ) -> pb.ListVersionStatisticsResponse:
        model = ModelName.parse(request.parent)
        await self._lane.run(self._store.registry.get_model, model)
        found = {
            VersionName.parse(name): counts
            for name, counts in self._served.pool.statistics().items()
        }
        # Ids count up: the longer, and of equal length the greater, is the newer.
        newest_first = sorted(found, key=lambda n: (len(n.version), n.version), reverse=True)
        return pb.ListVersionStatisticsResponse(
            statistics=[
                convert.statistics(name, found[name])
                for name in newest_first
                if name.model == model.model
            ]
        )

    async def GetDrift(self, request: pb.GetDriftRequest, context: Context) -> pb.Drift:
        name = fields.text("model", request.model, limit=300, required=True)
        with await self._served.hold(name) as handle:
            found = await self._served.drifts.measure(handle)
            return convert.drift(handle.details.name, found)

    async def _predict(
        self, request: pb.PredictRequest, deadline: float | None
    ) -> pb.PredictResponse:
        question = convert.question(request)

        async def ask(handle: Handle[ModelVersion], patient: bool) -> Answer:
            preprocessing = handle.details.manifest.preprocessing
            images: Encoded | convert.Images
            if question.images:
                images = Encoded(files=question.images, preprocessing=preprocessing)
            elif request.tensor.floats:  # each is compared with its rounded self
                size = preprocessing.size
                images = await self._tensors.run(convert.pixels, request.tensor, size)
            else:
                images = convert.pixels(request.tensor, preprocessing.size)
            return await handle.run(
                images,
                self._served.drifts.outputs(handle.version, question.outputs),
                deadline=None if patient else deadline,
                priority=PATIENT if patient else question.priority,
            )

        def write(handle: Handle[ModelVersion], answer: Answer) -> pb.PredictResponse:
            with handle.encoding():
                return convert.response(request, handle, answer.outputs)

        def key() -> bytes:
            pixels = () if question.images else (request.tensor.pixels or request.tensor.floats,)
            return convert.key(question.routing_key, [*question.images, *pixels])

        asked = Asked(key=key, deadline=deadline, ask=ask, write=write)
        return await self._served.answer(question.model, asked, domain=question.domain)


def deadline(context: Context) -> float | None:
    """The moment, of ``time.monotonic``, at which the caller stops waiting; None for never."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
