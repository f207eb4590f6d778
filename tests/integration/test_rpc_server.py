from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.rpc_server import (
    Service,
    ask,
    classifier,
    domain,
    explained,
    fresh_store,
    model,
    plain,
    promote,
    refusal,
    running,
    version,
)
from tests.integration.watching import until

from acclimate.oip import grpc_service_pb2
from acclimate.v1 import adaptation_pb2, inference_pb2, registry_pb2
from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.domain.job import JobDraft, JobKind, JobSpec
from acclimate_service.rpc import server
from acclimate_service.rpc.brake import Brake
from acclimate_service.rpc.door import Door
from acclimate_service.rpc.queues import APART
from acclimate_service.rpc.server import SERVICES, Admission, Limits
from acclimate_service.store.engine import Database


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_every_service(service: Service, version: str) -> None:
    ask = service.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    answers = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]), timeout=10)
    listed = {found.name for found in next(answers).list_services_response.service}
    assert {*SERVICES, "grpc.health.v1.Health"} <= listed


@pytest.mark.parametrize("name", ["", *SERVICES])
def test_a_ready_server_is_serving(service: Service, name: str) -> None:
    assert service.health(name) == "SERVING"


def test_the_health_of_an_unknown_model_is_not_found(service: Service) -> None:
    code, _ = refusal(lambda: service.health("models/nobody"))
    assert code is grpc.StatusCode.NOT_FOUND


def test_bytes_that_are_no_message_are_an_invalid_argument(service: Service) -> None:
    for method in ("/acclimate.v1.AdaptationService/GetDomain", "/grpc.health.v1.Health/Check"):
        call: Any = service.channel.unary_unary(method)
        code, info = refusal(partial(call, b"\xff\xff\xff", timeout=10))
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


def test_a_message_that_nests_too_deeply_is_an_invalid_argument(service: Service) -> None:
    value = b"\x1a\x00"
    for _ in range(200):  # Value.list_value.values, again and again
        inner = b"\x0a" + _varint(len(value)) + value
        value = b"\x32" + _varint(len(inner)) + inner
    entry = b"\x0a\x01a\x12" + _varint(len(value)) + value
    struct = b"\x0a" + _varint(len(entry)) + entry
    spec = b"\x5a" + _varint(len(struct)) + struct
    request = b"\x1a" + _varint(len(spec)) + spec
    call: Any = service.channel.unary_unary("/acclimate.v1.AdaptationService/CreateAdaptationJob")
    code, info = refusal(lambda: call(request, timeout=10))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def test_what_does_not_exist_is_not_found_with_a_reason(service: Service) -> None:
    code, info = refusal(
        lambda: service.adaptation.GetDomain(
            adaptation_pb2.GetDomainRequest(name="domains/nowhere"), timeout=10
        )
    )
    assert (code, info.reason, info.domain) == (
        grpc.StatusCode.NOT_FOUND,
        "NOT_FOUND",
        "acclimate.dev",
    )


def test_a_domain_is_made_once_per_request_id(service: Service) -> None:
    request = adaptation_pb2.CreateDomainRequest(
        domain_id="once", labels=["a", "b"], request_id="make-once"
    )
    first = service.adaptation.CreateDomain(request, timeout=10)
    assert service.adaptation.CreateDomain(request, timeout=10) == first
    request.labels.append("c")
    code, info = refusal(lambda: service.adaptation.CreateDomain(request, timeout=10))
    assert (code, info.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_pages_of_a_list_follow_on_each_other(service: Service) -> None:
    made = {domain(service, f"paged-{number}") for number in range(5)}
    seen: list[str] = []
    token = ""
    while True:
        page = service.adaptation.ListDomains(
            adaptation_pb2.ListDomainsRequest(page_size=2, page_token=token), timeout=10
        )
        seen += [item.name for item in page.domains]
        token = page.next_page_token
        if not token:
            break
    assert made <= set(seen)
    assert len(seen) == len(set(seen))


# ── anything at all may be sent ──────────────────────────────────────────────

WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "",
            "models/m",
            "models/../../etc/passwd",
            "models/m/versions/1",
            "models/m/aliases/production",
            "domains/d",
            "domains/d/batches/b",
            "jobs/j",
            "a\nb",
            "\x00",
            "domains/%2e%2e",
            "x" * 5000,
        ]
    ),
)


SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_STRING: WORDS,
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-2, 200),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
}


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, depth: int = 4) -> Message:
    """A message of *kind* with some of its fields set to anything that they can hold."""
    message = message_factory.GetMessageClass(kind)()
    for field in kind.fields:
        if depth == 0 or not draw(st.booleans()):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values = field.message_type.fields_by_name["value"].message_type
            assert values is not None
            entry = getattr(message, field.name)[draw(WORDS)]
            entry.MergeFrom(draw(messages(values, depth - 1)))
        elif field.message_type is not None:
            value = draw(messages(field.message_type, depth - 1))
            target = getattr(message, field.name)
            (target.add() if field.is_repeated else target).MergeFrom(value)
            if not field.is_repeated:
                target.SetInParent()
        else:
            strategy = SCALARS[field.cpp_type]
            if field.type == FieldDescriptor.TYPE_BYTES:
                strategy = st.binary(max_size=40)
            if field.is_repeated:
                getattr(message, field.name).extend(draw(st.lists(strategy, max_size=3)))
            else:
                setattr(message, field.name, draw(strategy))
    return message


METHODS = [
    method
    for module in (adaptation_pb2, registry_pb2, inference_pb2, grpc_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@given(drawn=st.data())
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_is_answered_or_refused_with_a_reason(
    service: Service, method: MethodDescriptor, drawn: st.DataObject
) -> None:
    sent = drawn.draw(
        st.lists(
            messages(method.input_type), min_size=1, max_size=4 if method.client_streaming else 1
        )
    )
    path = f"/{method.containing_service.full_name}/{method.name}"
    raw = [message.SerializeToString() for message in sent]
    channel: Any = service.channel
    refused = None
    try:
        if method.client_streaming and method.server_streaming:
            list(channel.stream_stream(path)(iter(raw), timeout=10))
        elif method.client_streaming:
            channel.stream_unary(path)(iter(raw), timeout=10)
        elif method.server_streaming:
            list(channel.unary_stream(path)(raw[0], timeout=10))
        else:
            channel.unary_unary(path)(raw[0], timeout=10)
    except grpc.RpcError as error:
        refused = error
    if refused is not None:
        code, info = explained(refused)
        assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), refused
        assert info.reason, refused


WATCH = "/acclimate.v1.AdaptationService/WatchAdaptationJob"

# ── a store that goes and comes back ─────────────────────────────────────────


def test_predictions_go_on_without_the_store_and_health_says_what_does_not(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    adaptation, registry, inference, oip, access, rollout = SERVICES
    name = model(service.store, "independent")
    promote(service, name, version(service.store, name, classifier(31)))

    def gone(*_: object, **__: object) -> object:
        raise StoreUnavailable("the test took it away")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "read", gone)
        patch.setattr(Database, "write", gone)
        until(lambda: service.health(adaptation) == "NOT_SERVING")
        for stored in (registry, access, rollout, ""):
            assert service.health(stored) == "NOT_SERVING"
        assert (service.health(inference), service.health(oip)) == ("SERVING", "SERVING")
        assert service.health(str(name)) == "SERVING"
        answer = service.inference.Predict(ask(name, plain((250, 0, 0))), timeout=10)
        assert answer.predictions[0].classes[0].label == "red"
        code, info = refusal(
            lambda: service.adaptation.ListDomains(adaptation_pb2.ListDomainsRequest(), timeout=10)
        )
        assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    until(lambda: service.health(adaptation) == "SERVING")
    assert service.health("") == "SERVING"


def test_a_message_too_large_for_its_method_is_refused_before_it_is_parsed(
    service: Service,
) -> None:
    labels = [f"{number:0100d}" for number in range(60_000)]
    request = adaptation_pb2.CreateDomainRequest(domain_id="huge", labels=labels)
    code, info = refusal(lambda: service.adaptation.CreateDomain(request, timeout=10))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SPEC")


def test_health_is_answered_while_a_thousand_streams_wait(tmp_path: Path) -> None:
    store = fresh_store(tmp_path)
    limits = Limits(watchers=300, poll_seconds=0.05)
    with running(store, limits) as service:
        name = model(store, "crowded", labels=())
        draft = JobDraft(
            kind=JobKind.REGISTER,
            model=name,
            source=None,
            target=None,
            incumbent=None,
            spec=JobSpec(),
        )
        job = str(store.jobs.enqueue(draft, request_id="").name)
        request = adaptation_pb2.WatchAdaptationJobRequest(name=job, after_sequence=1)
        watch: Any = service.adaptation.WatchAdaptationJob
        streams = [watch(request, timeout=60) for _ in range(1000)]
        until(lambda: sum(stream.done() for stream in streams) == 700, seconds=30)
        assert {stream.code() for stream in streams if stream.done()} == {
            grpc.StatusCode.RESOURCE_EXHAUSTED
        }
        waits = []
        for _ in range(50):
            began = time.monotonic()
            assert service.health() == "SERVING"
            waits.append(time.monotonic() - began)
        assert sorted(waits)[45] < 0.1
        for stream in streams:
            stream.cancel()
        until(lambda: service.server.metrics.open.labels(WATCH)._value.get() == 0)
    store.close()


def test_a_server_that_stops_tells_new_calls_to_go_elsewhere_before_it_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fresh_store(tmp_path)
    name = model(store, "leaving")
    monkeypatch.setattr(server, "REFUSING_SECONDS", 2.0)  # enough for the call to come in time
    with running(store, Limits()) as service:
        promote(service, name, version(store, name, classifier()))
        request = ask(name, plain((0, 250, 0)))
        assert service.inference.Predict(request, timeout=10).predictions
        stopping = asyncio.run_coroutine_threadsafe(service.server.stop(5), service.loop)
        while not service.server._idle.stopping:
            time.sleep(0.001)
        code, info = refusal(lambda: service.inference.Predict(request, timeout=10))
        assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
        monkeypatch.undo()
        stopping.result(30)


def test_health_and_predictions_wait_behind_no_other_calls_and_the_rest_shares_one_task(
    service: Service,
) -> None:
    async def waiting() -> list[str]:
        return [getattr(task.get_coro(), "__name__", "") for task in asyncio.all_tasks()]

    names = service.run(waiting)
    assert names.count("_request_call") == 1
    assert names.count("_request_registered_call") == len(APART)


@pytest.mark.parametrize(
    ("tokens", "code", "held"),
    [
        (True, grpc.StatusCode.UNAUTHENTICATED, ["ipv4:127.0.0.1"]),
        (False, grpc.StatusCode.NOT_FOUND, []),
    ],
)
def test_only_who_is_refused_at_the_door_is_slowed_down(
    tokens: bool,
    code: grpc.StatusCode,
    held: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = fresh_store(tmp_path)
    seen: list[str] = []

    async def hold(_: Brake, address: str, size: int) -> None:
        assert size == request.ByteSize()
        seen.append(address)

    request = registry_pb2.GetModelRequest(name="models/nobody")
    monkeypatch.setattr(Brake, "hold", hold)
    with running(store, Limits(), admission=Admission(tokens=tokens)) as service:
        found, _ = refusal(lambda: service.registry.GetModel(request, timeout=10))
    assert (found, seen) == (code, held)


def test_clients_connect_anew_now_and_then_and_no_call_and_no_stream_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = []
    knock = Door.knock

    def seen(self: Door, method: str, metadata: Any, context: Any) -> Any:
        peers.append(context.peer())
        return knock(self, method, metadata, context)

    monkeypatch.setattr(Door, "knock", seen)
    store = fresh_store(tmp_path)
    name = model(store, "m")
    with running(store, Limits(connection_seconds=1)) as service:
        promote(service, name, version(store, name, classifier(9)))
        ends = time.monotonic() + 20

        def camera() -> Iterator[inference_pb2.PredictRequest]:
            while len(set(peers)) < 3:
                assert time.monotonic() < ends
                yield ask(name, plain((250, 0, 0)))
                time.sleep(0.05)

        for answer in service.inference.PredictStream(camera(), timeout=60):
            assert answer.HasField("response")
            assert service.inference.Predict(ask(name, plain((250, 0, 0))), timeout=10).predictions
    store.close()
    assert len(set(peers)) >= 3


def test_a_call_that_takes_longer_than_the_server_allows_is_told_so_and_others_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fresh_store(tmp_path)
    model(store, "m")
    hold, looked = threading.Event(), store.registry.get_model
    monkeypatch.setattr(
        store.registry, "get_model", lambda name: hold.wait(30) and looked(name), raising=True
    )
    request = registry_pb2.GetModelRequest(name="models/m")
    with running(store, Limits(call_seconds=0.3)) as service:
        try:
            code, info = refusal(lambda: service.registry.GetModel(request, timeout=20))
            assert service.registry.ListModels(registry_pb2.ListModelsRequest(), timeout=10).models
        finally:
            hold.set()
        assert service.registry.GetModel(request, timeout=10).name == "models/m"
    store.close()
    assert (code, info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "TIME_LIMIT")
