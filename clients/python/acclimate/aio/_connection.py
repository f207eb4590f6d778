"""The channel of an asyncio client: the same terms and repetitions, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from acclimate._calls import Call
from acclimate._status import error_of
from acclimate._terms import Terms
from acclimate._waiting import Repeats

Answer = TypeVar("Answer")
Found = TypeVar("Found")


class Connection:
    """A channel that the tasks of one event loop may share.

    Raises:
        ValueError: a file of the terms' TLS is not what it is given for.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.timeout = terms.timeout
        self.patience = terms.patience
        self.channel = (
            grpc.aio.insecure_channel(terms.target, options=terms.options)
            if terms.tls is None
            else grpc.aio.secure_channel(
                terms.target, terms.tls.credentials(), options=terms.options
            )
        )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call sends along: the token, and the caller's trace if it has one."""
        return self._terms.metadata

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self.channel.close()

    async def ask(self, call: Call[Any, Found]) -> Found:
        """Make *call*, and read its answer.

        Raises:
            AcclimateError: what the service or the connection answered instead.
        """
        method = self.channel.unary_unary(
            call.method,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.answer.FromString,
        )

        async def once(left: float) -> Any:
            return await method(call.request, timeout=left, metadata=self.metadata)

        answer = await self.attempt(once, idempotent=call.repeatable, timeout=call.seconds)
        return call.read(answer)

    async def attempt(
        self,
        once: Callable[[float], Awaitable[Answer]],
        *,
        idempotent: bool,
        timeout: float | None = None,  # noqa: ASYNC109  of the call at the service, too
    ) -> Answer:
        """*once*, given the seconds that are left, and again after transient errors.

        Raises:
            AcclimateError: the last error, when it is not transient, the call may
                not be repeated, or neither time nor retries are left.
        """
        repeats = Repeats(
            seconds=self.timeout if timeout is None else timeout,
            most=self._terms.retries if idempotent else 0,
        )
        while True:
            try:
                return await once(repeats.seconds)
            except grpc.RpcError as failure:
                error = error_of(failure)
            await asyncio.sleep(repeats.delay(error))
