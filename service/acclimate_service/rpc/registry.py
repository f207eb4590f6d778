"""``RegistryService``: models, versions, aliases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio
import structlog
from google.protobuf import empty_pb2

from acclimate.v1 import registry_pb2 as pb
from acclimate.v1 import registry_pb2_grpc as pb_grpc
from acclimate_service.domain.names import AliasName, JobName, ModelName, VersionName
from acclimate_service.rpc import convert, fields
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.caller import caller
from acclimate_service.rpc.chunks import blob_chunks
from acclimate_service.rpc.registration import Registrations
from acclimate_service.rpc.served import Served
from acclimate_service.store import Store

Context = grpc.aio.ServicerContext[Any, Any]

REASON_LENGTH: Final = 1000  # characters


class RegistryServicer(pb_grpc.RegistryServiceServicer):
    """Converts, acts on the store or on what is *served*, converts back.

    The store is called in *lane*, for whole files in *files*.
    """

    def __init__(
        self,
        store: Store,
        *,
        lane: Lane,
        files: Lane,
        registrations: Registrations,
        served: Served,
    ) -> None:
        self._store = store
        self._lane = lane
        self._files = files
        self._registrations = registrations
        self._served = served

    # ── models ───────────────────────────────────────────────────────────────

    async def RegisterModel(
        self, request_iterator: AsyncIterator[pb.RegisterModelRequest], context: Context
    ) -> pb.RegisterModelResponse:
        model, job = await self._registrations.take(request_iterator)
        return pb.RegisterModelResponse(model=convert.model(model), job=job)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:
        name = ModelName.parse(request.name)
        return convert.model(await self._lane.run(self._store.registry.get_model, name))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        page = await self._lane.run(
            self._store.registry.list_models,
            request.page_size,
            request.page_token,
            within=caller().models,
        )
        return pb.ListModelsResponse(
            models=[convert.model(item) for item in page.items], next_page_token=page.next_token
        )

    async def DeleteModel(
        self, request: pb.DeleteModelRequest, context: Context
    ) -> empty_pb2.Empty:
        await self._lane.run(self._store.registry.delete_model, ModelName.parse(request.name))
        return empty_pb2.Empty()

    async def SetModelGuard(self, request: pb.SetModelGuardRequest, context: Context) -> pb.Model:
        name, policy, why = convert.model_guard(request)
        model = await self._lane.run(
            self._store.registry.set_guard, name, policy, who=caller().who, why=why
        )
        structlog.get_logger(__name__).info(
            "guard set", model=str(name), preset=policy.base, reason=why
        )
        return convert.model(model)

    # ── versions ─────────────────────────────────────────────────────────────

    async def GetModelVersion(
        self, request: pb.GetModelVersionRequest, context: Context
    ) -> pb.ModelVersion:
        name = VersionName.parse(request.name)
        found = self._store.registry.get_version
        return await self._lane.run(lambda: convert.version(found(name)))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> pb.ListModelVersionsResponse:
        return await self._lane.run(self._list_versions, request)

    def _list_versions(self, request: pb.ListModelVersionsRequest) -> pb.ListModelVersionsResponse:
        # Written here, too: a manifest names every label, and a page may hold a thousand.
        page = self._store.registry.list_versions(
            ModelName.parse(request.parent), request.page_size, request.page_token
        )
        return pb.ListModelVersionsResponse(
            versions=[convert.version(item) for item in page.items],
            next_page_token=page.next_token,
            unreadable=page.unreadable,
        )

    async def DeleteModelVersion(
        self, request: pb.DeleteModelVersionRequest, context: Context
    ) -> empty_pb2.Empty:
        name = VersionName.parse(request.name)
        await self._served.delete(name)
        structlog.get_logger(__name__).info("version deleted", version=str(name))
        return empty_pb2.Empty()

    async def ExportModelVersion(
        self, request: pb.ExportModelVersionRequest, context: Context
    ) -> AsyncIterator[pb.ExportModelVersionResponse]:
        name = VersionName.parse(request.name)
        version = await self._lane.run(self._store.registry.get_version, name)
        files = version.manifest.artifacts
        variants = {f"model.{name}.onnx": one.onnx for name, one in files.variants.items()}
        named = {"model.onnx": files.onnx, **variants, "weights.safetensors": files.weights}
        for file, digest in named.items():
            async for chunk in blob_chunks(self._store.blobs, digest, lane=self._files):
                yield pb.ExportModelVersionResponse(file=file, chunk=chunk)
            yield pb.ExportModelVersionResponse(file=file, sha256=digest)
        told = version.manifest
        if files.verdict is not None:
            whole = await self._files.run(self._store.blobs.get, files.verdict)
            told = told.model_copy(update={"verdict": json.loads(whole)})
        manifest = told.model_dump_json(indent=2).encode()
        yield pb.ExportModelVersionResponse(
            file="manifest.json", chunk=manifest, sha256=hashlib.sha256(manifest).hexdigest()
        )

    async def ForceModelVersion(
        self, request: pb.ForceModelVersionRequest, context: Context
    ) -> pb.ModelVersion:
        job = JobName.parse(request.job)
        reason = fields.text("reason", request.reason, limit=REASON_LENGTH, required=True)
        version = await self._lane.run(
            self._store.registry.force_version, job, who=caller().who, why=reason
        )
        structlog.get_logger(__name__).warning(
            "version forced", job=str(job), version=str(version.name), reason=reason
        )
        return convert.version(version)

    # ── aliases ──────────────────────────────────────────────────────────────

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.Alias:
        alias, version, expected = convert.alias_move(request)
        moved = await self._served.promote(
            alias, version, expect=expected, who=caller().who, why=request.reason or "SetAlias"
        )
        return convert.alias(moved)

    async def RollbackAlias(self, request: pb.RollbackAliasRequest, context: Context) -> pb.Alias:
        alias = AliasName.parse(request.name)
        why = fields.text("reason", request.reason, limit=REASON_LENGTH)
        moved = await self._served.rollback(alias, who=caller().who, why=why or "RollbackAlias")
        return convert.alias(moved)

    async def ListAliases(
        self, request: pb.ListAliasesRequest, context: Context
    ) -> pb.ListAliasesResponse:
        model = ModelName.parse(request.parent)
        aliases = await self._lane.run(self._list_aliases, model)
        return pb.ListAliasesResponse(aliases=aliases)

    def _list_aliases(self, model: ModelName) -> list[pb.Alias]:
        self._store.registry.get_model(model)  # an empty list would hide a mistyped name
        return [convert.alias(item) for item in self._store.registry.list_aliases(model)]

    async def DeleteAlias(
        self, request: pb.DeleteAliasRequest, context: Context
    ) -> empty_pb2.Empty:
        await self._served.drop(
            AliasName.parse(request.name), who=caller().who, why=request.reason or "DeleteAlias"
        )
        return empty_pb2.Empty()
