from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.rpc import code_pb2
from tests.unit.client.fake_service import Service

from acclimate import TLS, Client, errors
from acclimate._status import CLASSES
from acclimate._terms import is_loopback
from acclimate.v1 import adaptation_pb2

UNAVAILABLE = (code_pb2.UNAVAILABLE, "STORE_UNAVAILABLE", None)


def test_every_status_but_ok_has_a_class() -> None:
    assert set(CLASSES) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


def test_a_refusal_carries_reason_message_and_facts(client: Client) -> None:
    with pytest.raises(errors.NotFound) as caught:
        client.domain("elsewhere")
    assert caught.value.reason == "NOT_FOUND"
    assert caught.value.metadata == {"name": "domains/elsewhere"}
    assert str(caught.value) == "there is no 'domains/elsewhere'; see ListDomains"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (code_pb2.INVALID_ARGUMENT, errors.InvalidRequest),
        (code_pb2.ALREADY_EXISTS, errors.AlreadyExists),
        (code_pb2.FAILED_PRECONDITION, errors.Conflict),
        (code_pb2.ABORTED, errors.Conflict),
        (code_pb2.UNAUTHENTICATED, errors.NotAllowed),
        (code_pb2.INTERNAL, errors.ServiceFault),
        (code_pb2.DATA_LOSS, errors.ServiceFault),
    ],
)
def test_what_will_not_get_better_is_raised_at_once(
    service: Service, client: Client, code: int, expected: type[errors.AcclimateError]
) -> None:
    service.faults.calls = [(code, "A_REASON", None)]
    with pytest.raises(expected) as caught:
        client.domain("pens")
    assert caught.value.reason == "A_REASON"
    assert len(service.seen) == 1


def test_a_read_is_repeated_until_it_succeeds(service: Service, client: Client) -> None:
    service.faults.calls = [UNAVAILABLE] * 3
    assert client.domain("pens").labels == ("1", "2")
    assert len(service.seen) == 4


def test_a_read_is_not_repeated_for_ever(service: Service, target: str) -> None:
    service.faults.calls = [UNAVAILABLE] * 100
    with Client(target, retries=2) as client, pytest.raises(errors.Unavailable):
        client.domain("pens")
    assert len(service.seen) == 3


def test_the_services_delay_is_kept(service: Service, client: Client) -> None:
    service.faults.calls = [(code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED", 0.5)]
    began = time.monotonic()
    client.domain("pens")
    assert time.monotonic() - began >= 0.5


def test_a_delay_beyond_the_deadline_is_not_waited_for(service: Service, target: str) -> None:
    service.faults.calls = [(code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED", 0.9)]
    began = time.monotonic()
    with Client(target, timeout=0.5) as client, pytest.raises(errors.Overloaded) as caught:
        client.domain("pens")
    assert caught.value.retry_after == pytest.approx(0.9)
    assert time.monotonic() - began < 0.5


def test_what_must_not_happen_twice_is_not_repeated(service: Service, client: Client) -> None:
    for call in (
        lambda: client.rollback("digits"),
        lambda: client.promote("digits", "2", expected="1"),
        lambda: client.force("j1", reason="why not"),
        lambda: client.delete_version("digits/1"),
        lambda: client.delete_model("digits"),
        lambda: client.delete_domain("pens"),
        lambda: client.delete_batch("domains/pens/batches/b1"),
    ):
        service.faults.calls = [UNAVAILABLE]
        before = len(service.seen)
        with pytest.raises(errors.Unavailable):
            call()
        assert len(service.seen) == before + 1


def test_a_repeated_creation_keeps_its_request_id(service: Service, client: Client) -> None:
    service.faults.calls = [UNAVAILABLE] * 2
    client.adapt("digits", "pens")
    ids = [
        request.request_id
        for _, request in service.seen
        if isinstance(request, adaptation_pb2.CreateAdaptationJobRequest)
    ]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert ids[0]


def test_two_creations_have_two_request_ids(service: Service, client: Client) -> None:
    client.create_domain("a", ["x"])
    client.create_domain("b", ["x"])
    first, second = (
        request
        for _, request in service.seen
        if isinstance(request, adaptation_pb2.CreateDomainRequest)
    )
    assert first.request_id != second.request_id


def test_a_listing_has_every_page(client: Client) -> None:
    assert [domain.name for domain in client.domains()] == [f"domains/d{i}" for i in range(3)]


def test_a_token_goes_with_every_call(service: Service, target: str) -> None:
    with Client(target, token="secret") as client:
        client.domain("pens")
    assert service.metadata[0]["authorization"] == "Bearer secret"


def test_arguments_of_the_wrong_kind_are_refused_before_anything_is_sent(
    service: Service, client: Client
) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        Client("localhost")
    with pytest.raises(TypeError, match="examples_from_folder"):
        client.upload("pens", "photos/pens")  # type: ignore[arg-type]
    assert service.seen == []


def test_a_token_never_leaves_the_machine_in_plain_text() -> None:
    with pytest.raises(ValueError, match="plain text"):
        Client("service.example:443", token="secret")
    Client("service.example:443", token="secret", tls=TLS()).close()


def test_a_file_for_tls_that_is_not_there_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone.pem"
    for tls in (TLS(ca=gone), TLS(certificate=gone, key=gone)):
        with pytest.raises(FileNotFoundError) as caught:
            Client("service.example:443", tls=tls)
        assert caught.value.filename == str(gone)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:/tmp/socket", True),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
        ("[2001:db8::1]:1", False),
        ("127.example.com:1", False),
        ("dns:///10.0.0.1:1", False),
    ],
)
def test_loopback_is_told_from_the_rest(target: str, expected: bool) -> None:
    assert is_loopback(target) is expected


def test_nobody_there_is_unavailable_within_the_deadline() -> None:
    began = time.monotonic()
    with Client("127.0.0.1:1", timeout=2) as client, pytest.raises(errors.Unavailable):
        client.health()
    assert time.monotonic() - began < 2.5


def test_threads_share_a_client(client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.domain("pens").name, range(64)))
    assert answers == ["domains/pens"] * 64


def test_health_is_true_only_where_something_serves(client: Client) -> None:
    assert client.health()
    part = client.health("elsewhere")
    assert not part
    assert part.status == "NOT_SERVING"


@pytest.mark.parametrize("kind", [*dict.fromkeys(CLASSES.values()), errors.UploadMismatch])
def test_an_error_survives_the_way_out_of_another_process(
    kind: type[errors.AcclimateError],
) -> None:
    error = (
        errors.UploadMismatch(3)
        if kind is errors.UploadMismatch
        else kind("no", reason="A_REASON", metadata={"name": "x"}, retry_after=2.0)
    )
    told = pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    assert type(told) is kind
    assert vars(told) == vars(error)
    assert str(told) == str(error)
