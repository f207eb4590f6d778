from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import grpc
import pytest
import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from acclimate_service.domain import errors
from acclimate_service.rpc import status

M = TypeVar("M", bound=Message)


def tree(root: type[errors.ServiceError]) -> Iterator[type[errors.ServiceError]]:
    for child in root.__subclasses__():
        yield child
        yield from tree(child)


def detail(answer: status_pb2.Status, found: M) -> M:
    """The one detail of the kind of *found*, read into it."""
    matching = [packed for packed in answer.details if packed.Is(found.DESCRIPTOR)]
    assert len(matching) == 1
    matching[0].Unpack(found)
    return found


def test_every_error_has_a_status() -> None:
    assert set(tree(errors.ServiceError)) == set(status.CODES)


def test_every_reason_is_its_own() -> None:
    reasons = [error.reason for error in status.CODES]
    assert len(reasons) == len(set(reasons))


def test_no_refusal_looks_like_a_bug_or_like_success() -> None:
    vague = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.OK}
    assert not vague & set(status.CODES.values())


def test_an_error_carries_its_reason_and_its_facts() -> None:
    answer = status.status_of(errors.VersionNotFound("models/digits/versions/9"))
    info = detail(answer, error_details_pb2.ErrorInfo())
    assert (info.reason, info.domain) == ("VERSION_NOT_FOUND", "acclimate.dev")
    assert info.metadata["name"] == "models/digits/versions/9"
    assert status.grpc_code(answer) is grpc.StatusCode.NOT_FOUND


def test_an_overloaded_server_says_when_to_come_back() -> None:
    answer = status.status_of(errors.Overloaded("the queue", retry_after=2.5))
    retry = detail(answer, error_details_pb2.RetryInfo())
    assert retry.retry_delay.ToMilliseconds() == 2500


def test_a_full_disk_is_named_and_says_when_to_come_back() -> None:
    answer = status.status_of(errors.StoreFull("the database"))
    assert status.grpc_code(answer) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "disk under the database is full" in answer.message
    assert detail(answer, error_details_pb2.ErrorInfo()).reason == "STORE_FULL"
    assert detail(answer, error_details_pb2.RetryInfo()).retry_delay.seconds == 5


def test_an_invalid_field_is_named_as_a_violation() -> None:
    answer = status.status_of(errors.InvalidSpec("epochs must be positive", field="spec.epochs"))
    request = detail(answer, error_details_pb2.BadRequest())
    assert request.field_violations[0].field == "spec.epochs"


def test_an_unexpected_error_tells_the_client_an_id_and_the_log_the_rest() -> None:
    with structlog.testing.capture_logs() as logs:
        answer = status.unexpected(RuntimeError("password=hunter2"))
    assert status.grpc_code(answer) is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(answer)
    info = detail(answer, error_details_pb2.ErrorInfo())
    assert logs[0]["error_id"] == info.metadata["error_id"]
    assert "hunter2" in str(logs[0]["exc_info"])


@pytest.mark.parametrize("text", ["a\nINFO forged line", "a\x1b[2Jb", "a\u2028b", "a\x00b"])
def test_no_message_can_forge_a_line_of_the_log(text: str) -> None:
    answer = status.status_of(errors.InvalidSpec(text, field=text))
    assert answer.message.isprintable()
    info = detail(answer, error_details_pb2.ErrorInfo())
    assert info.metadata["field"].isprintable()


def test_messages_stay_within_what_a_header_carries() -> None:
    answer = status.status_of(errors.InvalidSpec("x" * 10**6, field="y" * 10**6))
    assert answer.ByteSize() < 8192


def test_what_a_driver_says_of_the_database_stays_in_the_log() -> None:
    said = 'connection to server at "10.1.2.3", port 5432 failed: no password for user "ada"'
    error = errors.StoreUnavailable("the database is out of reach", detail=said)
    assert said in str(error)
    told = status.status_of(error).SerializeToString().decode("utf-8", "replace")
    assert "out of reach" in told
    assert "10.1.2.3" not in told
    assert "ada" not in told
