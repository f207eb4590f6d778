"""``inference.GRPCInferenceService``: the Open Inference Protocol, version 2.

Its model names are our model ids, its versions our version ids; without a version, the
model's alias "production" answers. What is loaded and served changes through the same
``Served`` as everywhere else.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio

from acclimate.oip import grpc_service_pb2 as pb
from acclimate.oip import grpc_service_pb2_grpc as pb_grpc
from acclimate_service.domain.access import Scope
from acclimate_service.domain.errors import InvalidSpec, PermissionDenied, ServiceError
from acclimate_service.domain.model import ModelVersion
from acclimate_service.domain.names import ModelName, VersionName, check_id
from acclimate_service.inference.answer import Answer
from acclimate_service.inference.batcher import PATIENT
from acclimate_service.inference.handle import Handle
from acclimate_service.rpc import convert_oip as convert
from acclimate_service.rpc import convert_predictions, convert_repository, status
from acclimate_service.rpc.bounds import Gate, Lane
from acclimate_service.rpc.caller import caller
from acclimate_service.rpc.health import Health
from acclimate_service.rpc.inference import deadline
from acclimate_service.rpc.served import Served
from acclimate_service.rpc.trials import Asked
from acclimate_service.rpc.whereabouts import Whereabouts
from acclimate_service.store import Store

Context = grpc.aio.ServicerContext[Any, Any]

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
INDEX_LIMIT: Final = 100_000  # versions that an index, which has no pages, can list


class InferenceProtocolServicer(pb_grpc.GRPCInferenceServiceServicer):
    """Answers from what is *served*; the store is read in *lane*, long tensors in *tensors*.

    *gate* bounds the requests that streams have open; *version* is the server's own.
    """

    def __init__(
        self,
        store: Store,
        *,
        lane: Lane,
        tensors: Lane,
        served: Served,
        health: Health,
        gate: Gate,
        version: str,
    ) -> None:
        self._store = store
        self._lane = lane
        self._tensors = tensors
        self._served = served
        self._health = health
        self._gate = gate
        self._version = version

    # ── the server ───────────────────────────────────────────────────────────

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._health.predicts)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name="acclimate", version=self._version, extensions=EXTENSIONS
        )

    # ── models ───────────────────────────────────────────────────────────────

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        name = convert.target(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._served.answers(name))

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        with await self._served.hold(convert.target(request.name, request.version)) as handle:
            names = await self._lane.run(
                self._store.registry.version_names, ModelName(request.name), limit=INDEX_LIMIT
            )
            versions = [name.version for name in names]
            return convert_repository.metadata(request.name, handle.details, versions)

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        with await self._served.hold(convert.target(request.name, request.version)) as handle:
            return convert_repository.model_config(request.name, handle)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        if request.name:
            await self._lane.run(self._store.registry.get_model, ModelName(check_id(request.name)))
        counted = {
            VersionName.parse(name): counts
            for name, counts in self._served.pool.statistics().items()
        }
        return pb.ModelStatisticsResponse(
            model_stats=[
                convert_repository.statistics(name, counts)
                for name, counts in sorted(counted.items())
                if request.name in ("", name.model)
                and request.version in ("", name.version)
                and name.model in caller().models
            ]
        )

    # ── inference ────────────────────────────────────────────────────────────

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        return await self._infer(request, deadline(context))

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        async for request in request_iterator:
            try:
                with self._gate.enter():
                    answer = await self._infer(request, deadline(context))
                yield pb.ModelStreamInferResponse(infer_response=answer)
            except ServiceError as error:
                yield pb.ModelStreamInferResponse(
                    error_message=f"[{error.reason}] {status.status_of(error).message}",
                    infer_response=pb.ModelInferResponse(
                        model_name=request.model_name, id=request.id
                    ),
                )

    async def _infer(
        self, request: pb.ModelInferRequest, deadline: float | None
    ) -> pb.ModelInferResponse:
        told, asked = convert.told(request), convert.wanted(request)
        if told.seconds is not None:
            own = time.monotonic() + told.seconds
            deadline = own if deadline is None else min(own, deadline)
        if told.domain and told.domain not in caller().domains:
            raise PermissionDenied(
                f"domain: {told.domain!r} is outside of what {caller().who} may reach",
                principal=caller().who,
            )
        name = (
            str(ModelName(check_id(request.model_name)))
            if told.domain
            else convert.target(request.model_name, request.model_version)
        )
        outputs = tuple([output.name for output in asked])

        async def ask(handle: Handle[ModelVersion], patient: bool) -> Answer:
            preprocessing = handle.details.manifest.preprocessing
            images = (
                await self._tensors.run(convert.images, request, preprocessing)
                if convert.takes_long(request)
                else convert.images(request, preprocessing)
            )
            return await handle.run(
                images,
                self._served.drifts.outputs(handle.version, outputs),
                deadline=None if patient else deadline,
                priority=PATIENT if patient else told.priority,
            )

        def write(handle: Handle[ModelVersion], answer: Answer) -> pb.ModelInferResponse:
            with handle.encoding():
                return convert.response(request, handle, asked, answer.outputs)

        def key() -> bytes:
            typed = [content for one in request.inputs for content in one.contents.bytes_contents]
            return convert_predictions.key(told.routing_key, [*request.raw_input_contents, *typed])

        asking = Asked(key=key, deadline=deadline, ask=ask, write=write)
        return await self._served.answer(name, asking, domain=told.domain)

    # ── the repository ───────────────────────────────────────────────────────

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        _only_repository(request.repository_name)
        within, here = caller().models, self._served.whereabouts()
        if request.ready:  # what this server knows by itself, however much the store holds
            return convert_repository.index(here.answering(within), here)
        return await self._lane.run(self._index, within, here)

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        _only_repository(request.repository_name)
        if request.parameters:
            # Triton would take a configuration and files; here a version exists only
            # because a guard accepted it.
            raise InvalidSpec("a load takes no parameters", field="parameters")
        await self._served.load(ModelName(check_id(request.model_name)))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        _only_repository(request.repository_name)
        await self._served.unload(ModelName(check_id(request.model_name)))
        return pb.RepositoryModelUnloadResponse()

    def _index(self, within: Scope, here: Whereabouts) -> pb.RepositoryIndexResponse:
        names = self._store.registry.version_names(within=within, limit=INDEX_LIMIT + 1)
        if len(names) > INDEX_LIMIT:
            raise InvalidSpec(
                f"there are more than {INDEX_LIMIT} versions, and an index has no pages; ask for "
                "those that are ready, or call ListModels and ListModelVersions",
                field="ready",
            )
        return convert_repository.index(names, here)


def _only_repository(name: str) -> None:
    if name:
        raise InvalidSpec("there is one repository, and it has no name", field="repository_name")
