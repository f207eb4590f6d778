"""The only place where an error becomes a gRPC status (AIP-193).

Every refusal leaves as a ``google.rpc.Status`` with an ``ErrorInfo`` whose reason is
the error class's own, so that a client can decide without reading the message. What
was not raised on purpose leaves as INTERNAL with an id that the log knows, and never
with the exception's text.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import uuid
from typing import Final

import grpc
import structlog
from google.protobuf import any_pb2, message
from google.rpc import error_details_pb2, status_pb2

from acclimate_service.domain import errors

DOMAIN: Final = "acclimate.dev"
DETAILS_KEY: Final = "grpc-status-details-bin"  # where gRPC carries a google.rpc.Status
MESSAGE_LIMIT: Final = 2000  # characters; status and details travel in HTTP/2 headers
METADATA_LIMIT: Final = 500  # characters a value

_Code = grpc.StatusCode

CODES: Final[dict[type[errors.ServiceError], grpc.StatusCode]] = {
    errors.InvalidName: _Code.INVALID_ARGUMENT,
    errors.InvalidSpec: _Code.INVALID_ARGUMENT,
    errors.BadImage: _Code.INVALID_ARGUMENT,
    errors.UnknownLabel: _Code.INVALID_ARGUMENT,
    errors.HoldoutLeak: _Code.FAILED_PRECONDITION,
    errors.LabelConflict: _Code.FAILED_PRECONDITION,
    errors.EmptyBatch: _Code.FAILED_PRECONDITION,
    # Not wrong, only broken off: the same call again goes on where this one ended.
    errors.UploadIncomplete: _Code.ABORTED,
    errors.RequestIdReused: _Code.ALREADY_EXISTS,
    errors.WeightsMismatch: _Code.INVALID_ARGUMENT,
    errors.WeightsUnavailable: _Code.FAILED_PRECONDITION,
    errors.UnsupportedArchitecture: _Code.INVALID_ARGUMENT,
    errors.InputMismatch: _Code.INVALID_ARGUMENT,
    errors.Unauthenticated: _Code.UNAUTHENTICATED,
    errors.PermissionDenied: _Code.PERMISSION_DENIED,
    errors.TLSUnusable: _Code.FAILED_PRECONDITION,
    errors.OpenDoor: _Code.FAILED_PRECONDITION,
    errors.AddressUnusable: _Code.FAILED_PRECONDITION,
    errors.NotFound: _Code.NOT_FOUND,
    errors.VersionNotFound: _Code.NOT_FOUND,
    errors.AliasNotFound: _Code.NOT_FOUND,
    errors.DomainNotServed: _Code.NOT_FOUND,
    errors.BlobNotFound: _Code.DATA_LOSS,
    errors.AlreadyExists: _Code.ALREADY_EXISTS,
    errors.NoIncumbent: _Code.FAILED_PRECONDITION,
    errors.NotEnoughExamples: _Code.FAILED_PRECONDITION,
    errors.JobEnded: _Code.FAILED_PRECONDITION,
    errors.NotReady: _Code.FAILED_PRECONDITION,
    errors.InUse: _Code.FAILED_PRECONDITION,
    errors.VersionInUse: _Code.FAILED_PRECONDITION,
    errors.RolloutRunning: _Code.FAILED_PRECONDITION,
    errors.ImageInUse: _Code.FAILED_PRECONDITION,
    errors.VersionUnloadable: _Code.FAILED_PRECONDITION,
    errors.ProviderUnavailable: _Code.UNAVAILABLE,
    errors.VariantUnsuitable: _Code.FAILED_PRECONDITION,
    errors.AliasMoved: _Code.ABORTED,
    errors.LeaseLost: _Code.ABORTED,
    errors.Overloaded: _Code.RESOURCE_EXHAUSTED,
    errors.RateExceeded: _Code.RESOURCE_EXHAUSTED,
    errors.DeadlineTooShort: _Code.DEADLINE_EXCEEDED,
    errors.ServerStopping: _Code.UNAVAILABLE,
    errors.BlobCorrupt: _Code.DATA_LOSS,
    errors.StoreUnavailable: _Code.UNAVAILABLE,
    errors.StoreFull: _Code.RESOURCE_EXHAUSTED,
    errors.ExportMismatch: _Code.FAILED_PRECONDITION,
    errors.TrainingDiverged: _Code.FAILED_PRECONDITION,
    errors.AttemptsExhausted: _Code.FAILED_PRECONDITION,
}

_NUMBERS: Final[dict[grpc.StatusCode, int]] = {code: code.value[0] for code in grpc.StatusCode}
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def code_of(error: errors.ServiceError) -> grpc.StatusCode:
    """The status of an error: its class's row in ``CODES``."""
    return CODES[type(error)]


def printable(text: str, limit: int) -> str:
    """*text* without control characters and half surrogates, cut to *limit* characters.

    What a client sent may stand in a message; in a log or a terminal it must stay
    one harmless line.
    """
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)[:limit]


def status_of(error: errors.ServiceError) -> status_pb2.Status:
    """The full status of an error raised on purpose."""
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=DOMAIN,
            metadata={
                printable(key, 64): printable(value, METADATA_LIMIT)
                for key, value in error.metadata.items()
            },
        )
    ]
    text = printable(error.told, MESSAGE_LIMIT)
    if isinstance(error, errors.Overloaded | errors.StoreUnavailable):
        details.append(retry_info(error.retry_after))
    if isinstance(error, errors.InvalidSpec) and "field" in error.metadata:
        field = printable(error.metadata["field"], METADATA_LIMIT)
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    return _status(code_of(error), text, details)


def retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    """After how many seconds it makes sense to try again; never less than a millisecond."""
    milliseconds = max(1, math.ceil(seconds * 1000))
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromTimedelta(dt.timedelta(milliseconds=milliseconds))
    return info


def unexpected(error: BaseException) -> status_pb2.Status:
    """The status of an error that nobody meant to raise.

    The traceback is logged under an id; the client is told the id and nothing else.
    """
    error_id = uuid.uuid4().hex
    structlog.get_logger(__name__).error("unexpected error", error_id=error_id, exc_info=error)
    info = error_details_pb2.ErrorInfo(
        reason="INTERNAL", domain=DOMAIN, metadata={"error_id": error_id}
    )
    return _status(_Code.INTERNAL, f"internal error; the server's log has it as {error_id}", [info])


def refusal(code: grpc.StatusCode, reason: str, text: str) -> status_pb2.Status:
    """The status of what the transport itself refuses: bytes that do not parse, lost time."""
    return _status(code, text, [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)])


def trailing(status: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries *status*."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def reason_of(status: status_pb2.Status) -> str:
    """The reason in the ErrorInfo with which every refusal's details begin."""
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return str(info.reason)


def grpc_code(status: status_pb2.Status) -> grpc.StatusCode:
    """The gRPC code of a ``google.rpc.Status``."""
    return next(code for code, number in _NUMBERS.items() if number == status.code)


def _status(code: grpc.StatusCode, text: str, details: list[message.Message]) -> status_pb2.Status:
    packed = []
    for detail in details:
        holder = any_pb2.Any()
        holder.Pack(detail)
        packed.append(holder)
    return status_pb2.Status(code=_NUMBERS[code], message=text, details=packed)
