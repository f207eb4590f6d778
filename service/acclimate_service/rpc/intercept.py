"""What surrounds every call: parsing, bounds, a time limit, the log, the status.

Handlers are replaced by wrappers that take the raw bytes, because the transport's own
parser answers malformed messages with UNKNOWN and an exception's text.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

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
from acclimate_service.rpc.rates import Bucket

Context = grpc.aio.ServicerContext[Any, Any]
# Quoted: generic in the stubs only.
Continuation: TypeAlias = (
    "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]"
)

REQUEST_ID_KEY: Final = "x-request-id"
_END: Final = object()
_FAULTS: Final = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,
)
_AT_THE_DOOR: Final = (Unauthenticated, PermissionDenied, RateExceeded)
LINES_PER_SECOND: Final = 20.0  # of refusals in the log, twice as many at once
_QUIET: Final = ("/grpc.health.", "/grpc.reflection.")  # not worth a span each


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


_UNGATED: Final = Rule(gate=None, seconds=None, idle=True)


class Sparing:
    """Lets through so many lines a second: whoever is refused can be as often as they like."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bucket = Bucket(rate, clock())
        self._held = 0

    def line(self) -> dict[str, int] | None:
        """What to add to the next line, that some were held back before it; None: no line."""
        if self._bucket.wait(self._clock(), 1) > 0:
            self._held += 1
            return None
        self._bucket.take(1)
        held, self._held = self._held, 0
        return {"not_logged_before": held} if held else {}


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps each method's handler, once for each call.

    *door* decides who may make it. *rules* are by full method name
    (``/package.Service/Method``); *default* holds for unary methods without one. Health
    checks pass without a gate.

    ``idle`` holds the waits that are broken off when the server stops.
    """

    def __init__(
        self,
        *,
        door: Door,
        rules: Mapping[str, Rule],
        default: Rule,
        metrics: Metrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._door = door
        self._rules = rules
        self._default = default
        self._metrics = metrics
        self._tracer = tracer
        self._sparing = Sparing(LINES_PER_SECOND)
        self._brake = Brake()
        self.idle = Idle()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:  # a handler of the same kind as the one found, or None
        """Find the handler and wrap it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        metadata = dict(handler_call_details.invocation_metadata or ())
        given = metadata.get(REQUEST_ID_KEY, "")
        if not (isinstance(given, str) and fields.REQUEST_ID.fullmatch(given)):
            given = uuid.uuid4().hex
        quiet = method.startswith(_QUIET)
        call = _Call(
            method=method,
            call_id=given,
            door=self._door,
            metadata=metadata,
            rule=self._rules.get(method, _UNGATED if quiet else self._default),
            quiet=quiet,
            idle=self.idle,
            sparing=self._sparing,
            brake=self._brake,
            metrics=self._metrics,
            tracer=None if quiet else self._tracer,
            parse=handler.request_deserializer,
        )
        write = handler.response_serializer
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                call.unary_unary(handler.unary_unary), None, write
            )
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                call.stream_unary(handler.stream_unary), None, write
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                call.unary_stream(handler.unary_stream), None, write
            )
        return grpc.stream_stream_rpc_method_handler(
            call.stream_stream(handler.stream_stream), None, write
        )


class _Call:
    """One call, from its first byte to its status."""

    def __init__(
        self,
        *,
        method: str,
        call_id: str,
        door: Door,
        metadata: Mapping[str, object],
        rule: Rule,
        quiet: bool,
        idle: Idle,
        sparing: Sparing,
        brake: Brake,
        metrics: Metrics,
        tracer: Tracer | None,
        parse: Callable[[bytes], Any] | None,
    ) -> None:
        self._method = method
        self._call_id = call_id
        self._door = door
        self._metadata = metadata
        self._rule = rule
        self._quiet = quiet
        self._idle = idle
        self._sparing = sparing
        self._brake = brake
        self._size = 0  # of the message that the call was opened with
        self._metrics = metrics
        self._tracer = tracer
        self._span: Span | None = None
        self._parser = parse or bytes
        self._code = grpc.StatusCode.OK
        self._started = 0.0

    # ── the four shapes of a call ────────────────────────────────────────────

    def unary_unary(self, act: Any) -> Any:
        async def answer(raw: bytes, context: Context) -> Any:
            self._size = len(raw)
            async with self._around(context) as visit, asyncio.timeout(self._rule.seconds):
                return await act(await self._admitted(raw, visit), context)

        return answer

    def stream_unary(self, act: Any) -> Any:
        async def answer(raws: AsyncIterator[bytes], context: Context) -> Any:
            async with self._around(context) as visit, asyncio.timeout(self._rule.seconds):
                return await act(self._messages(raws, visit), context)

        return answer

    def unary_stream(self, act: Any) -> Any:
        async def answer(raw: bytes, context: Context) -> AsyncIterator[Any]:
            self._size = len(raw)
            async with self._around(context) as visit:
                request = await self._admitted(raw, visit)
                async for message in self._written(act(request, context), visit):
                    yield message

        return answer

    def stream_stream(self, act: Any) -> Any:
        async def answer(raws: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            async with self._around(context) as visit:
                answers = act(self._messages(raws, visit), context)
                async for message in self._written(answers, visit):
                    yield message

        return answer

    # ── what they share ──────────────────────────────────────────────────────

    @asynccontextmanager
    async def _around(self, context: Context) -> AsyncIterator[Visit]:
        self._begin(context)
        try:
            if self._idle.stopping and not self._quiet:
                raise ServerStopping  # noqa: TRY301 - refused like any other call
            visit = self._door.knock(self._method, self._metadata, context)
            visit.enter()
            structlog.contextvars.bind_contextvars(who=visit.caller.principal.name)
            with nullcontext() if self._rule.gate is None else self._rule.gate.enter():
                yield visit
            await visit.leave()
        # Everything: this is the one place behind which only the transport is left.
        except BaseException as error:  # noqa: BLE001
            await self._refuse(error, context)
        finally:
            self._end()

    def _parse(self, raw: bytes) -> Any:
        if len(raw) > self._rule.message_bytes:
            raise InvalidSpec(
                f"the message has {len(raw)} bytes; {self._method} takes at most "
                f"{self._rule.message_bytes}"
            )
        return self._parser(raw)

    async def _admitted(self, raw: bytes, visit: Visit) -> Any:
        message = self._parse(raw)
        await visit.admit(message, len(raw))
        return message

    async def _messages(self, raws: AsyncIterator[bytes], visit: Visit) -> AsyncIterator[Any]:
        while (raw := await self._idle.wait(anext(raws, None))) is not None:
            # Admission may wait for its turn, which must not hold up a server that stops.
            yield await self._idle.wait(self._admitted(raw, visit))

    async def _written(self, outcome: Any, visit: Visit) -> AsyncIterator[Any]:
        """The messages of a handler, written as a generator or with ``context.write``."""
        if not hasattr(outcome, "__aiter__"):
            await (self._idle.wait(outcome) if self._rule.idle else outcome)
            return
        try:
            while True:
                following = anext(outcome, _END)
                message = await (self._idle.wait(following) if self._rule.idle else following)
                if message is _END:
                    return
                visit.check()  # what follows a job for hours must not outlive its token
                yield message
        finally:
            # Not left to the garbage collector: a handler's own `finally` gives back
            # what the call holds.
            await outcome.aclose()

    def _begin(self, context: Context) -> None:
        self._started = time.monotonic()
        self._metrics.began(self._method)
        # Each call runs in a context of its own, so nothing has to be unbound.
        structlog.contextvars.bind_contextvars(
            rpc=self._method, request_id=self._call_id, peer=status.printable(context.peer(), 100)
        )
        if self._tracer is not None:
            sent = context.invocation_metadata() or ()
            self._span = tracing.begin_call(self._tracer, self._method, sent)

    def _end(self) -> None:
        seconds = time.monotonic() - self._started
        self._metrics.ended(self._method, self._code.name, seconds)
        if self._span is not None:
            number, name = self._code.value[0], self._code.name
            tracing.end_call(self._span, number, name, fault=self._code in _FAULTS)

    async def _refuse(self, error: BaseException, context: Context) -> None:
        """End the call with the status that *error* stands for.

        Raises:
            AbortError: always, unless *error* itself must go through: the client's
                cancellation, or a status that was set before.
        """
        if isinstance(error, asyncio.CancelledError) and self._idle.stopping:
            error = ServerStopping()  # the wait that was broken off had just ended
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)) or context.cancelled():
            self._code = grpc.StatusCode.CANCELLED
            raise error
        if isinstance(error, grpc.aio.AbortError):
            self._code = _spoken(context)
            raise error
        answer = self._status(error)
        self._code = status.grpc_code(answer)
        self._metrics.refused.labels(self._method, status.reason_of(answer)).inc()
        facts = self._sparing.line()
        if facts is not None:
            message = str(error) if isinstance(error, ServiceError) else answer.message
            structlog.get_logger(__name__).info(
                "call refused", code=self._code.name, message=message, **facts
            )
        if isinstance(error, _AT_THE_DOOR):
            await self._brake.hold(context.peer().rpartition(":")[0], self._size)
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
                grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED", f"{self._method} is not served here"
            )
        return status.unexpected(error)


def _spoken(context: Context) -> grpc.StatusCode:
    """The code that a handler set itself; the transport keeps it as its bare number."""
    number: object = context.code()
    for code in grpc.StatusCode:
        if number in (code, code.value[0]):
            return code
    return grpc.StatusCode.UNKNOWN
