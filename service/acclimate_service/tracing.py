"""Traces across processes: a caller's span, the server's call, the worker's phases.

OpenTelemetry with W3C trace context. Off, and free, unless the environment says where
spans go (``OTEL_EXPORTER_OTLP_ENDPOINT``, and the SDK's other variables); the extra
``otel`` brings the SDK. A job carries its trace in the facts of its first event.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from acclimate_service.domain.errors import InvalidSpec

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FACT = "traceparent"  # of a job's first event
_NAME = "acclimate"


def configure(process: str) -> Tracer | None:
    """Send this process's spans where the environment says; None if it says nothing.

    Raises:
        InvalidSpec: it says so, but the SDK is not installed.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise InvalidSpec(
            f"{ENDPOINTS[0]} is set, but spans cannot be sent: pip install 'acclimate[otel]'"
        ) from error
    named = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or process})
    provider = TracerProvider(resource=named)  # flushes when the process ends
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer(_NAME)


def begin_call(tracer: Tracer, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Span:
    """A server's span of one call, under the caller's if it sent one; from now on the current.

    Each call runs in a context of its own, so it is never taken off again.
    """
    sent = {key: value for key, value in metadata if isinstance(value, str)}
    parent = propagate.extract(sent, context=contexts.Context())
    service, _, name = method.lstrip("/").partition("/")
    span = tracer.start_span(
        method.lstrip("/"),
        context=parent,
        kind=SpanKind.SERVER,
        attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
    )
    contexts.attach(trace.set_span_in_context(span))
    return span


def end_call(span: Span, code: int, name: str, *, fault: bool) -> None:
    """End a call's span with its gRPC code; a refusal is no error of the server's."""
    span.set_attribute("rpc.grpc.status_code", code)
    if fault:
        span.set_status(Status(StatusCode.ERROR, name))
    span.end()


def facts() -> dict[str, str]:
    """What a job's first event must say for its worker to go on with the current trace."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {FACT: carrier[FACT]} if FACT in carrier else {}


class Phases:
    """The spans of one job in its worker: one for the attempt, one for each phase in it."""

    def __init__(
        self, tracer: Tracer | None, accepted: Mapping[str, object], **attributes: str | int
    ) -> None:
        self._tracer = tracer or trace.NoOpTracer()
        sent = {FACT: str(accepted[FACT])} if FACT in accepted else {}
        parent = propagate.extract(sent, context=contexts.Context())
        self._attempt = self._tracer.start_span(
            "job", context=parent, kind=SpanKind.CONSUMER, attributes=attributes
        )
        self._phase: Span | None = None

    def enter(self, name: str) -> None:
        """Begin a phase, and end the one before."""
        self._leave()
        within = trace.set_span_in_context(self._attempt)
        self._phase = self._tracer.start_span(name, context=within)

    def tell(self, message: str) -> None:
        """Note an event of the phase."""
        span = self._phase or self._attempt
        span.add_event(message[:500], timestamp=time.time_ns())

    def end(self) -> None:
        """The attempt is over: its last spans end."""
        self._leave()
        self._attempt.end()

    def _leave(self) -> None:
        if self._phase is not None:
            self._phase.end()
            self._phase = None
