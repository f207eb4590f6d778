"""One call: let in or refused, parsed, bounded, counted, logged, and ended with a status."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from opentelemetry.trace import Span, Tracer

from acclimate_service import tracing
from acclimate_service.domain.errors import (
    InvalidSpec,
    PermissionDenied,
    RateExceeded,
    ServerStopping,
    ServiceError,
    Unauthenticated,
)
from acclimate_service.rpc import fields, status
from acclimate_service.rpc.bounds import Gate
from acclimate_service.rpc.brake import Brake
from acclimate_service.rpc.door import Door, Visit
from acclimate_service.rpc.idle import Idle
from acclimate_service.rpc.metrics import Metrics
from acclimate_service.rpc.sparing import Sparing

Context = grpc.aio.ServicerContext[Any, Any]

REQUEST_ID_KEY: Final = "x-request-id"
_FAULTS: Final = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,
)
_AT_THE_DOOR: Final = (Unauthenticated, PermissionDenied, RateExceeded)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one method is bounded: who shares its gate, and how long a unary call may take.

    ``idle`` says that a stream of answers mostly waits for something to happen, and so
    is broken off when the server stops.
    """

    gate: Gate | None
    seconds: float | None  # None: as long as the client likes (streams)
    idle: bool = False
    message_bytes: int = 4 * 2**20  # of one message; parsed, small fields take many times that


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What all calls of a server have in common."""

    door: Door
    metrics: Metrics
    sparing: Sparing
    brake: Brake
    idle: Idle
    tracer: Tracer | None


@dataclass(frozen=True, kw_only=True)
class Method:
    """What all calls of a method have in common.

    ``quiet`` ones are answered also by a server that stops, and are not worth a span each.
    """

    name: str  # /package.Service/Method
    rule: Rule
    quiet: bool
    parse: Callable[[bytes], Any]
    around: Surroundings


class Call:
    """One call of *method*, in an ``async with`` statement: within it the caller was let in.

    Whatever is raised there ends the call with the status that it stands for. ``size`` are the
    bytes of the message that it was opened with.
    """

    def __init__(self, method: Method, context: Context, size: int = 0) -> None:
        self._method = method
        self._around = method.around
        self._context = context
        self._size = size
        self._code = grpc.StatusCode.OK
        self._visit: Visit | None = None
        self._inside: Gate | None = None
        self._span: Span | None = None
        self._started = time.monotonic()

    async def __aenter__(self) -> Visit:
        self._around.metrics.began(self._method.name)
        try:
            return self._enter()
        # Everything: this and the end are the places behind which only the transport is left.
        except BaseException as error:
            await self._end(error)
            raise  # never: what ends with an error has raised

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._inside is not None:
            self._inside.release()
        if error is None and self._visit is not None and self._visit.changes:
            try:
                await self._visit.leave()
            except BaseException as late:  # noqa: BLE001
                error = late
        await self._end(error)

    def parse(self, raw: bytes) -> Any:
        """The message.

        Raises:
            InvalidSpec: it is larger than the method takes.
            DecodeError: the bytes are none.
        """
        if len(raw) > self._method.rule.message_bytes:
            raise InvalidSpec(
                f"the message has {len(raw)} bytes; {self._method.name} takes at most "
                f"{self._method.rule.message_bytes}"
            )
        return self._method.parse(raw)

    def _enter(self) -> Visit:
        around, method = self._around, self._method
        metadata = dict(self._context.invocation_metadata() or ())
        # Each call runs in a context of its own, so nothing has to be unbound.
        if around.tracer is not None and not method.quiet:
            self._span = tracing.begin_call(around.tracer, method.name, metadata.items())
        given = _request_id(metadata)
        try:
            if around.idle.stopping and not method.quiet:
                raise ServerStopping  # noqa: TRY301 - refused like any other call
            visit = around.door.knock(method.name, metadata, self._context)
        except BaseException:
            peer = status.printable(self._context.peer(), 100)
            structlog.contextvars.bind_contextvars(rpc=method.name, request_id=given, peer=peer)
            raise
        visit.enter()
        caller = visit.caller
        structlog.contextvars.bind_contextvars(
            rpc=method.name, request_id=given, peer=caller.peer, who=caller.principal.name
        )
        if method.rule.gate is not None:
            method.rule.gate.acquire()
            self._inside = method.rule.gate
        self._visit = visit
        return visit

    async def _end(self, error: BaseException | None) -> None:
        """Count the call; refused where there is an *error*.

        Raises:
            AbortError: see ``_refuse``.
        """
        try:
            if error is not None:
                await self._refuse(error)
        finally:
            seconds = time.monotonic() - self._started
            self._around.metrics.ended(self._method.name, self._code.name, seconds)
            if self._span is not None:
                number, name = self._code.value[0], self._code.name
                tracing.end_call(self._span, number, name, fault=self._code in _FAULTS)

    async def _refuse(self, error: BaseException) -> None:
        """End the call with the status that *error* stands for.

        Raises:
            AbortError: always, unless *error* itself must go through: the client's
                cancellation, or a status that was set before.
        """
        context, around = self._context, self._around
        if isinstance(error, asyncio.CancelledError) and around.idle.stopping:
            error = ServerStopping()  # the wait that was broken off had just ended
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)) or context.cancelled():
            self._code = grpc.StatusCode.CANCELLED
            raise error
        if isinstance(error, grpc.aio.AbortError):
            self._code = _spoken(context)
            raise error
        answer = self._status(error)
        self._code = status.grpc_code(answer)
        around.metrics.refused.labels(self._method.name, status.reason_of(answer)).inc()
        facts = around.sparing.line()
        if facts is not None:
            message = str(error) if isinstance(error, ServiceError) else answer.message
            structlog.get_logger(__name__).info(
                "call refused", code=self._code.name, message=message, **facts
            )
        if isinstance(error, _AT_THE_DOOR):
            await around.brake.hold(context.peer().rpartition(":")[0], self._size)
        await context.abort(self._code, answer.message, status.trailing(answer))

    def _status(self, error: BaseException) -> status_pb2.Status:
        if isinstance(error, ServiceError):
            return status.status_of(error)
        if isinstance(error, DecodeError):
            return status.refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "MALFORMED_MESSAGE",
                "the bytes are not a message of this method's type, or nest too deeply",
            )
        if isinstance(error, TimeoutError):
            return status.refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "TIME_LIMIT",
                "the call took longer than the server allows; it may still take effect, so "
                "repeat it with the same request_id",
            )
        if isinstance(error, NotImplementedError):  # a method that a newer proto has
            return status.refusal(
                grpc.StatusCode.UNIMPLEMENTED,
                "UNIMPLEMENTED",
                f"{self._method.name} is not served here",
            )
        return status.unexpected(error)


def _request_id(metadata: Mapping[str, object]) -> str:
    """The id that the client gave the call, or a new one."""
    given = metadata.get(REQUEST_ID_KEY)
    if isinstance(given, str) and fields.REQUEST_ID.fullmatch(given):
        return given
    # No secret. The system's own randomness would let Python's lock go, and wait for it again.
    return f"{random.getrandbits(128):032x}"


def _spoken(context: Context) -> grpc.StatusCode:
    """The code that a handler set itself; the transport keeps it as its bare number."""
    number: object = context.code()
    for code in grpc.StatusCode:
        if number in (code, code.value[0]):
            return code
    return grpc.StatusCode.UNKNOWN
