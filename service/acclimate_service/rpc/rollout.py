"""``RolloutService``: trying a version on live traffic before an alias moves to it."""

from __future__ import annotations

from typing import Any

import grpc.aio
import structlog

from acclimate.v1 import rollout_pb2 as pb
from acclimate.v1 import rollout_pb2_grpc as pb_grpc
from acclimate_service.domain.names import ModelName, RolloutName
from acclimate_service.rpc import convert_rollouts as convert
from acclimate_service.rpc import fields
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.caller import caller
from acclimate_service.rpc.served import Served
from acclimate_service.store import Store

Context = grpc.aio.ServicerContext[Any, Any]
REASON_LENGTH = 1000


class RolloutServicer(pb_grpc.RolloutServiceServicer):
    """Converts, acts on the store in *lane*, converts back; *served* takes changes up at once."""

    def __init__(self, store: Store, *, lane: Lane, served: Served) -> None:
        self._store = store
        self._lane = lane
        self._served = served

    async def StartRollout(self, request: pb.StartRolloutRequest, context: Context) -> pb.Rollout:
        draft = convert.draft(request)
        why = fields.text("reason", request.reason, limit=REASON_LENGTH)
        begun = await self._lane.run(
            self._store.rollouts.start, draft, who=caller().who, why=why or "StartRollout"
        )
        structlog.get_logger(__name__).info(
            "rollout started", rollout=str(begun.name), candidate=str(draft.candidate)
        )
        await self._served.trials.catch_up()
        # It may have been found to stand still.
        return convert.rollout(await self._lane.run(self._store.rollouts.get, begun.name))

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Context) -> pb.Rollout:
        name = RolloutName.parse(request.name)
        return convert.rollout(await self._lane.run(self._store.rollouts.get, name))

    async def ListRollouts(
        self, request: pb.ListRolloutsRequest, context: Context
    ) -> pb.ListRolloutsResponse:
        model = ModelName.parse(request.parent)
        await self._lane.run(self._store.registry.get_model, model)
        page = await self._lane.run(
            self._store.rollouts.list, model, request.page_size, request.page_token
        )
        return pb.ListRolloutsResponse(
            rollouts=[convert.rollout(item) for item in page.items], next_page_token=page.next_token
        )

    async def StopRollout(self, request: pb.StopRolloutRequest, context: Context) -> pb.Rollout:
        name = RolloutName.parse(request.name)
        why = fields.text("reason", request.reason, limit=REASON_LENGTH)
        ended = await self._lane.run(
            self._store.rollouts.stop, name, who=caller().who, why=why or "StopRollout"
        )
        await self._served.trials.catch_up()
        return convert.rollout(ended)
