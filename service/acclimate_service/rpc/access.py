"""``AccessService``: tokens and the audit log."""

from __future__ import annotations

from typing import Any

import grpc.aio
import structlog

from acclimate.v1 import access_pb2 as pb
from acclimate.v1 import access_pb2_grpc as pb_grpc
from acclimate_service.domain.names import TokenName
from acclimate_service.rpc import convert_access as convert
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.caller import caller
from acclimate_service.rpc.keyring import Keyring
from acclimate_service.store import Store

Context = grpc.aio.ServicerContext[Any, Any]


class AccessServicer(pb_grpc.AccessServiceServicer):
    """Converts, acts on the store in *lane*, converts back; a change counts here at once."""

    def __init__(self, store: Store, *, lane: Lane, keyring: Keyring) -> None:
        self._store = store
        self._lane = lane
        self._keyring = keyring

    async def CreateToken(
        self, request: pb.CreateTokenRequest, context: Context
    ) -> pb.CreateTokenResponse:
        draft = convert.token_draft(request)
        minted = await self._lane.run(self._store.tokens.create, draft, by=caller().who)
        await self._tell(minted.token.id, "token made")
        return pb.CreateTokenResponse(token=convert.token(minted.token), secret=minted.secret)

    async def RotateToken(
        self, request: pb.RotateTokenRequest, context: Context
    ) -> pb.RotateTokenResponse:
        rotation = convert.rotation(request)
        minted = await self._lane.run(
            self._store.tokens.rotate,
            rotation.principal,
            overlap=rotation.overlap,
            lifetime=rotation.lifetime,
            by=caller().who,
        )
        await self._tell(minted.token.id, "token rotated")
        return pb.RotateTokenResponse(token=convert.token(minted.token), secret=minted.secret)

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Context) -> pb.Token:
        name = TokenName.parse(request.name)
        token = await self._lane.run(self._store.tokens.revoke, name)
        await self._tell(token.id, "token revoked")
        return convert.token(token)

    async def ListTokens(
        self, request: pb.ListTokensRequest, context: Context
    ) -> pb.ListTokensResponse:
        page = await self._lane.run(self._store.tokens.list, request.page_size, request.page_token)
        return pb.ListTokensResponse(
            tokens=[convert.token(item) for item in page.items], next_page_token=page.next_token
        )

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        page = await self._lane.run(
            self._store.audit.list,
            convert.audit_filter(request),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListAuditEntriesResponse(
            entries=[convert.audit_entry(item) for item in page.items],
            next_page_token=page.next_token,
        )

    async def _tell(self, token: str, what: str) -> None:
        structlog.get_logger(__name__).info(what, token=token)
        await self._keyring.catch_up()
