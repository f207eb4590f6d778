"""What surrounds every call: each method's handler is replaced by one that takes raw bytes.

For the transport's own parser answers malformed messages with UNKNOWN and an exception's
text. What happens around a call is in ``call``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
from opentelemetry.trace import Tracer

from acclimate_service.rpc.brake import Brake
from acclimate_service.rpc.call import Call, Context, Method, Rule, Surroundings
from acclimate_service.rpc.door import Door, Visit
from acclimate_service.rpc.idle import Idle
from acclimate_service.rpc.metrics import Metrics
from acclimate_service.rpc.queues import APART
from acclimate_service.rpc.sparing import Sparing
from acclimate_service.rpc.time_limit import TimeLimit

# Of a service's name, and handlers by their method's. Quoted: generic in the stubs only.
Register: TypeAlias = "Callable[[str, dict[str, grpc.RpcMethodHandler[Any, Any]]], None]"

_END: Final = object()
LINES_PER_SECOND: Final = 20.0  # of refusals in the log, twice as many at once
_QUIET: Final = ("/grpc.health.", "/grpc.reflection.")  # not worth a span each
_UNGATED: Final = Rule(gate=None, seconds=None, idle=True)


class Interceptor(grpc.GenericRpcHandler):
    """Stands before all services: add them to it, and it to the server, as its one handler.

    Each method's handler is wrapped once, for all of its calls. *door* decides who may make
    them. *rules* are by full method name (``/package.Service/Method``); *default* holds for
    unary methods without one. Health checks pass without a gate.

    Not an interceptor in gRPC's sense, which costs each call a chain of coroutines. Of the
    methods those with a queue of their own (see ``queues``) are registered with *register*, the
    server's ``add_registered_method_handlers``; all others are looked up when they are called.

    ``idle`` holds the waits that are broken off when the server stops.
    """

    def __init__(
        self,
        *,
        door: Door,
        rules: Mapping[str, Rule],
        default: Rule,
        metrics: Metrics,
        register: Register,
        tracer: Tracer | None = None,
    ) -> None:
        self._register = register
        self._rules = rules
        self._default = default
        self.idle = Idle()
        self._around = Surroundings(
            door=door,
            metrics=metrics,
            sparing=Sparing(LINES_PER_SECOND),
            brake=Brake(),
            idle=self.idle,
            tracer=tracer,
        )
        self._services: list[grpc.GenericRpcHandler] = []
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}  # by full method name

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        """Add services, as one does to a server."""
        self._services += generic_rpc_handlers

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Register the few that are ``APART``: generated code adds all as a service as well."""
        few = {
            name: self._wrap(method, handler)
            for name, handler in method_handlers.items()
            if (method := f"/{service_name}/{name}") in APART
        }
        if few:
            self._register(service_name, few)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The wrapped handler of a method; None if no service has it."""
        wrapped = self._wrapped.get(handler_call_details.method)
        if wrapped is None:
            found = (one.service(handler_call_details) for one in self._services)
            handler = next(filter(None, found), None)
            if handler is None:
                return None
            method = handler_call_details.method
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        quiet = method.startswith(_QUIET)
        calls = _Calls(
            Method(
                name=method,
                rule=self._rules.get(method, _UNGATED if quiet else self._default),
                quiet=quiet,
                parse=handler.request_deserializer or bytes,
                around=self._around,
            )
        )
        write = handler.response_serializer
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                calls.unary_unary(handler.unary_unary), None, write
            )
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                calls.stream_unary(handler.stream_unary), None, write
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                calls.unary_stream(handler.unary_stream), None, write
            )
        return grpc.stream_stream_rpc_method_handler(
            calls.stream_stream(handler.stream_stream), None, write
        )


class _Calls:
    """The calls of one method, in the four shapes that there are."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._idle = method.around.idle
        seconds = method.rule.seconds
        self._in_time: AbstractContextManager[object] = (
            nullcontext() if seconds is None else TimeLimit(seconds)
        )

    def unary_unary(self, act: Any) -> Any:
        async def answer(raw: bytes, context: Context) -> Any:
            call = Call(self._method, context, len(raw))
            async with call as visit:
                with self._in_time:
                    message = call.parse(raw)
                    await visit.admit(message, len(raw))
                    return await act(message, context)

        return answer

    def stream_unary(self, act: Any) -> Any:
        async def answer(raws: AsyncIterator[bytes], context: Context) -> Any:
            call = Call(self._method, context)
            async with call as visit:
                with self._in_time:
                    return await act(self._messages(call, raws, visit), context)

        return answer

    def unary_stream(self, act: Any) -> Any:
        async def answer(raw: bytes, context: Context) -> AsyncIterator[Any]:
            call = Call(self._method, context, len(raw))
            async with call as visit:
                request = await _admitted(call, raw, visit)
                async for message in self._written(act(request, context), visit):
                    yield message

        return answer

    def stream_stream(self, act: Any) -> Any:
        async def answer(raws: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            call = Call(self._method, context)
            async with call as visit:
                answers = act(self._messages(call, raws, visit), context)
                async for message in self._written(answers, visit):
                    yield message

        return answer

    async def _messages(
        self, call: Call, raws: AsyncIterator[bytes], visit: Visit
    ) -> AsyncIterator[Any]:
        while (raw := await self._idle.wait(anext(raws, None))) is not None:
            # Admission may wait for its turn, which must not hold up a server that stops.
            yield await self._idle.wait(_admitted(call, raw, visit))

    async def _written(self, outcome: Any, visit: Visit) -> AsyncIterator[Any]:
        """The messages of a handler, written as a generator or with ``context.write``."""
        idle = self._method.rule.idle
        if not hasattr(outcome, "__aiter__"):
            await (self._idle.wait(outcome) if idle else outcome)
            return
        try:
            while True:
                following = anext(outcome, _END)
                message = await (self._idle.wait(following) if idle else following)
                if message is _END:
                    return
                visit.check()  # what follows a job for hours must not outlive its token
                yield message
        finally:
            # Not left to the garbage collector: a handler's own `finally` gives back
            # what the call holds.
            await outcome.aclose()


async def _admitted(call: Call, raw: bytes, visit: Visit) -> Any:
    message = call.parse(raw)
    await visit.admit(message, len(raw))
    return message
