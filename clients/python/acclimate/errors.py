"""Everything that can go wrong, as one tree.

A refusal by the service carries its stable ``reason`` (AIP-193), a message that
says the next step, the facts of the case as ``metadata``, and, where trying
again later makes sense, after how many seconds. The classes tell apart what a
caller would do about it; the reason tells apart the cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class AcclimateError(Exception):
    """The base of every error that this package raises on purpose."""

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.retry_after = retry_after  # seconds; None: the service gave no delay

    def __reduce__(self) -> tuple[Any, ...]:
        """For a pool of processes: an error that is none on the other side breaks it."""
        facts = self.message, self.reason, dict(self.metadata), self.retry_after
        return _made_again, (type(self), *facts)


def _made_again(
    kind: type[AcclimateError],
    message: str,
    reason: str,
    metadata: Mapping[str, str],
    retry_after: float | None,
) -> AcclimateError:
    error = kind.__new__(kind, message)
    AcclimateError.__init__(
        error, message, reason=reason, metadata=metadata, retry_after=retry_after
    )
    return error


class InvalidRequest(AcclimateError):
    """The request is wrong in itself; sending it again will not help."""


class NotFound(AcclimateError):
    """Nothing has the name that was asked for."""


class AlreadyExists(AcclimateError):
    """The id is taken, or the request_id was used for another request."""


class Conflict(AcclimateError):
    """The state of things does not allow it: a job has ended, an alias has moved."""


class NotAllowed(AcclimateError):
    """The caller is not known, or may not do this."""


class Overloaded(AcclimateError):
    """A bounded queue of the service is full; try again after ``retry_after``."""


class Unavailable(AcclimateError):
    """The service cannot be reached, is draining, or broke off."""


class DeadlineExceeded(AcclimateError, TimeoutError):
    """No answer in time."""


class ServiceFault(AcclimateError):
    """The service broke a promise: a fault on its side, or an answer that makes no sense."""


class UploadMismatch(AcclimateError):
    """The examples differ from those that an upload of this request_id began with."""

    def __init__(self, index: int) -> None:
        super().__init__(
            f"the first {index} examples are not those that this upload began with; "
            "pass the same examples in the same order, or use a new request_id",
            reason="UPLOAD_MISMATCH",
            metadata={"index": str(index)},
        )
