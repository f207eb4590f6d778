"""gRPC status → the error tree: the one place that reads status codes and rich details."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from acclimate import errors

CLASSES: dict[grpc.StatusCode, type[errors.AcclimateError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequest,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Conflict,
    grpc.StatusCode.ABORTED: errors.Conflict,
    grpc.StatusCode.PERMISSION_DENIED: errors.NotAllowed,
    grpc.StatusCode.UNAUTHENTICATED: errors.NotAllowed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.CANCELLED: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.INTERNAL: errors.ServiceFault,
    grpc.StatusCode.UNKNOWN: errors.ServiceFault,
    grpc.StatusCode.DATA_LOSS: errors.ServiceFault,
    grpc.StatusCode.UNIMPLEMENTED: errors.ServiceFault,
}

# What gRPC itself calls a connection that broke under a call, depending on the moment.
# The last is asyncio's, of a message that was being written when the stream ended: it hides
# why that did, which the next attempt is told.
_BROKEN_CONNECTION = (
    "Stream removed",
    "RST_STREAM",
    "Connection reset",
    "Socket closed",
    "Internal error from Core",
)
# What it says of a message over the limit of either side, with the code of a full queue.
_TOO_LARGE = "message larger than max"


# What it says where TLS does not come about, with the code of an absent service.
_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED(?:: (?P<why>[^:]+))?")
_MISNAMED = "Hostname Verification Check failed"
TLS_REFUSED = "TLS_REFUSED"


def error_of(failure: grpc.RpcError) -> errors.AcclimateError:
    """The error that a failed call stands for."""
    code = failure.code()
    text = failure.details() or code.name
    reason, metadata, retry_after = code.name, {}, None
    explained = False
    for detail in _details(failure):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata, explained = info.reason, dict(info.metadata), True
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    found = CLASSES[code]
    if not explained and any(sign in text for sign in _BROKEN_CONNECTION):
        found, reason = errors.Unavailable, "CONNECTION_LOST"
    if not explained and code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in text:
        found, reason = errors.InvalidRequest, "MESSAGE_TOO_LARGE"
    if not explained and (told := _distrust(text)):
        reason, text = TLS_REFUSED, told
    return found(text, reason=reason, metadata=metadata, retry_after=retry_after)


def _distrust(text: str) -> str:
    """What is wrong with TLS, if *text* says that something is."""
    if "WRONG_VERSION_NUMBER" in text:
        return (
            "the server answers in plain text; give no TLS (tls=None, no ACCLIMATE_TLS_CA), or "
            "have the server use it"
        )
    if _MISNAMED in text:
        return (
            "the server's certificate is not for the name that was called; call it by one that it "
            "is for, or say which (TLS(name=...), ACCLIMATE_TLS_NAME)"
        )
    if untrusted := _UNTRUSTED.search(text):
        return (
            f"the server's certificate is not trusted ({untrusted['why'] or 'no reason is told'}); "
            "give the authority that signed it (TLS(ca=...), ACCLIMATE_TLS_CA)"
        )
    return ""


def _details(failure: grpc.RpcError) -> Iterable[Any]:
    """The details of AIP-193; none if what answered is no Acclimate service."""
    call = cast(grpc.Call, failure)  # every RpcError that a channel raises is its call as well
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # details that contradict the status: a proxy replaced one of them
        return ()
    return () if status is None else status.details


def is_transient(error: errors.AcclimateError) -> bool:
    """Whether the same call may well succeed a moment later."""
    passing = isinstance(error, errors.Unavailable | errors.Overloaded)
    return passing and error.reason != TLS_REFUSED
