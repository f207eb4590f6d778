"""One trace from a caller through the server to the worker's phases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Tracer
from tests.acceptance.processes import wait_for
from tests.contract.builders import SOURCE, claimed, furnish
from tests.integration.rpc_server import fresh_store, running

from acclimate import Client
from acclimate.errors import NotFound
from acclimate_service.domain.job import EventKind, Phase
from acclimate_service.rpc.server import Limits
from acclimate_service.store import Store
from acclimate_service.tracing import Phases
from acclimate_service.worker.story import Story


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Tracer:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = fresh_store(tmp_path)
    furnish(store)
    yield store
    store.close()


@pytest.fixture
def client(store: Store, tracer: Tracer) -> Iterator[Client]:
    with (
        running(store, Limits(poll_seconds=0.05), tracer=tracer) as service,
        Client(f"127.0.0.1:{service.port}") as client,
    ):
        yield client


def spans(exporter: InMemorySpanExporter, name: str, count: int = 1) -> list[ReadableSpan]:
    """The finished spans of this name; a call's ends just after its caller has the answer."""

    def found() -> list[ReadableSpan]:
        ended = [span for span in exporter.get_finished_spans() if span.name.endswith(name)]
        return ended if len(ended) == count else []

    return wait_for(found, 5, f"{count} spans {name}")


def named(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    (found,) = spans(exporter, name)
    return found


def trace_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id


def test_a_call_lies_in_its_callers_trace(
    client: Client, tracer: Tracer, exporter: InMemorySpanExporter
) -> None:
    with tracer.start_as_current_span("caller") as caller:
        client.domain("amazon")
    client.domain("amazon")
    inside, alone = spans(exporter, "GetDomain", 2)
    assert inside.kind is SpanKind.SERVER
    assert inside.parent is not None
    assert inside.parent.span_id == caller.get_span_context().span_id
    assert alone.parent is None
    assert trace_of(alone) != trace_of(inside)


def test_a_refusal_is_told_and_is_no_error_of_the_servers(
    client: Client, exporter: InMemorySpanExporter
) -> None:
    with pytest.raises(NotFound):
        client.domain("nowhere")
    span = named(exporter, "GetDomain")
    assert span.attributes is not None
    assert span.attributes["rpc.grpc.status_code"] == 5
    assert span.status.is_unset


def test_a_jobs_phases_lie_in_the_trace_of_whoever_asked_for_it(
    client: Client, store: Store, tracer: Tracer, exporter: InMemorySpanExporter
) -> None:
    with tracer.start_as_current_span("caller") as caller:
        client.register_model(
            "m", "timm/resnet18", labels=["mug", "pen"], source_domain=SOURCE.domain
        )
    job, lease = claimed(store)
    (accepted,) = store.jobs.events(job.name, limit=1)
    told = Phases(tracer, accepted.facts, job=str(job.name))
    story = Story(store=store, lease=lease, sign_of_life=lambda: None, spans=told)
    story.enter(Phase.PREPARING)
    story.tell(EventKind.DECISION, "as asked", {})
    story.enter(Phase.EXPORTING)
    told.end()
    attempt, phase = named(exporter, "job"), named(exporter, "PREPARING")
    assert {trace_of(s) for s in (attempt, phase, named(exporter, "EXPORTING"))} == {
        caller.get_span_context().trace_id
    }
    assert phase.parent is not None
    assert phase.parent == attempt.get_span_context()
    assert [event.name for event in phase.events] == ["as asked"]


def test_nothing_of_the_sdk_is_loaded_and_nothing_traced_unless_asked() -> None:
    code = (
        "import sys; from acclimate_service import tracing; import acclimate_service.serve; "
        "assert tracing.configure('x') is None; "
        "assert not any(m.startswith('opentelemetry.sdk') for m in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_asking_for_traces_without_what_sends_them_is_refused() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; "
        "from acclimate_service import tracing; tracing.configure('x')"
    )
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "acclimate[otel]" in done.stderr


def test_a_caller_needs_to_import_nothing_but_what_makes_its_spans() -> None:
    code = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from acclimate._terms import Terms
terms = Terms(target="127.0.0.1:1", timeout=1, patience=1, retries=0, token=None, tls=None)
assert terms.metadata == ()
with TracerProvider().get_tracer("caller").start_as_current_span("call"):
    assert dict(terms.metadata).keys() == {"traceparent"}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_client_sends_no_trace_where_nobody_traces(
    client: Client, exporter: InMemorySpanExporter
) -> None:
    client.domain("amazon")
    assert named(exporter, "GetDomain").parent is None
