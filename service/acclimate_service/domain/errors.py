"""Every way a request or a job can be refused.

One tree. Each class carries a stable ``reason`` (part of the API, AIP-193), the
facts of the case as ``metadata``, and a message that says the next step. Which
gRPC status a class has is said once, in ``rpc/status.py``.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """The base of everything that is refused on purpose."""

    reason: ClassVar[str]

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata = {key: str(value) for key, value in metadata.items()}

    @property
    def told(self) -> str:
        """The message as a caller on another machine may read it."""
        return str(self)


# ── the request is wrong ─────────────────────────────────────────────────────


class InvalidName(ServiceError):
    """A resource name or id has the wrong form."""

    reason = "INVALID_NAME"

    def __init__(self, text: str, pattern: str) -> None:
        ids = "an id is 1 to 63 of a-z 0-9 _ - between letters or digits"
        super().__init__(f"{text[:80]!r} is not of the form {pattern}; {ids}", pattern=pattern)


class InvalidSpec(ServiceError):
    """A field of a request has a value that makes no sense; the message names it."""

    reason = "INVALID_SPEC"


class BadImage(ServiceError):
    """An image is refused: unreadable, truncated, of a format we do not take, or too large."""

    reason = "BAD_IMAGE"


class UnknownLabel(ServiceError):
    """An example's label is not in its domain's label set."""

    reason = "UNKNOWN_LABEL"

    def __init__(self, label: str, domain: str) -> None:
        told = f"{domain} has no label {label[:80]!r} and can get none; see GetDomain, CreateDomain"
        super().__init__(told, label=label[:80], domain=domain)


class HoldoutLeak(ServiceError):
    """The same content is already held out (or already trained on); it cannot be both."""

    reason = "HOLDOUT_LEAK"


class LabelConflict(ServiceError):
    """The same content was uploaded to this domain before, with another label."""

    reason = "LABEL_CONFLICT"


class EmptyBatch(ServiceError):
    """A batch was committed without one accepted example."""

    reason = "EMPTY_BATCH"

    def __init__(self, rejected: int) -> None:
        told = f"the batch holds no accepted example ({rejected} were rejected); nothing was stored"
        super().__init__(told, rejected=rejected)


class UploadIncomplete(ServiceError):
    """The upload ended without its commit, or the commit's count or digest does not match."""

    reason = "UPLOAD_INCOMPLETE"


class RequestIdReused(ServiceError):
    """This request_id was used before, for a different request."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str, *, then: str = "use a new one") -> None:
        super().__init__(f"request_id {request_id!r} belongs to another request; {then}")


class WeightsMismatch(ServiceError):
    """Weights do not fit the architecture; the message names the tensors."""

    reason = "WEIGHTS_MISMATCH"


class UnsupportedArchitecture(ServiceError):
    """No backbone of this name is known, or it cannot be cut into stages."""

    reason = "UNSUPPORTED_ARCHITECTURE"


class WeightsUnavailable(ServiceError):
    """Weights cannot be fetched from where they are said to be."""

    reason = "WEIGHTS_UNAVAILABLE"


class InputMismatch(ServiceError):
    """A tensor's shape, dtype or values are not what the model takes."""

    reason = "INPUT_MISMATCH"


# ── the caller is not known, or may not ──────────────────────────────────────


class Unauthenticated(ServiceError):
    """The call shows no token, or one that is not (or no longer) good."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(ServiceError):
    """The caller is known, and may not do this, or not to this."""

    reason = "PERMISSION_DENIED"


class TLSUnusable(ServiceError):
    """A certificate, a key or an authority cannot be used; the message names the file."""

    reason = "TLS_UNUSABLE"


class OpenDoor(ServiceError):
    """The settings would let in everyone who reaches the address."""

    reason = "OPEN_DOOR"


class AddressUnusable(ServiceError):
    """The address that the settings name cannot be listened on: taken, or not this machine's."""

    reason = "ADDRESS_UNUSABLE"


# ── it is not there, or there already ────────────────────────────────────────


class NotFound(ServiceError):
    """Nothing has this name."""

    reason = "NOT_FOUND"

    def __init__(self, name: str, *, see: str, kind: str = "") -> None:
        super().__init__(f"there is no {kind}{name!r}; see {see}", name=name)


class VersionNotFound(ServiceError):
    """No model version has this name."""

    reason = "VERSION_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"no model version {name!r}; see ListModelVersions", name=name)


class AliasNotFound(ServiceError):
    """The model has no alias of this name, so nothing is served under it."""

    reason = "ALIAS_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"nothing is served as {name!r}; see ListAliases, SetAlias", name=name)


class DomainNotServed(ServiceError):
    """The model has no version of its own for this domain, and no other answers in its place."""

    reason = "DOMAIN_NOT_SERVED"

    def __init__(self, model: str, domain: str) -> None:
        told = f"{model} serves nothing for {domain!r}: adapt it to that domain with promote_to "
        told += f"{domain!r}, or set its alias {domain!r}; without a domain, production answers"
        super().__init__(told, model=model, domain=domain)


class BlobNotFound(ServiceError):
    """The blob store holds nothing under this digest."""

    reason = "BLOB_NOT_FOUND"

    def __init__(self, digest: str) -> None:
        super().__init__(f"no blob {digest}; the store is incomplete", digest=digest)


class AlreadyExists(ServiceError):
    """The id is taken by something else."""

    reason = "ALREADY_EXISTS"

    def __init__(self, name: str, *, then: str = "choose another id") -> None:
        super().__init__(f"{name!r} exists already; {then}", name=name)


# ── not now ──────────────────────────────────────────────────────────────────


class NoIncumbent(ServiceError):
    """There is no version to adapt from or to go back to."""

    reason = "NO_INCUMBENT"


class NotEnoughExamples(ServiceError):
    """A domain has too few images in a role for what was asked."""

    reason = "NOT_ENOUGH_EXAMPLES"


class JobEnded(ServiceError):
    """The job has reached its end; it cannot be cancelled or written to."""

    reason = "JOB_ENDED"

    def __init__(self, name: str, state: str) -> None:
        super().__init__(f"{name} has ended: {state}", name=name, state=state)


class NotReady(ServiceError):
    """What was asked for will exist later (a report of a running job, say)."""

    reason = "NOT_READY"


class InUse(ServiceError):
    """Something rests on this model, domain or batch, or may yet; it cannot be deleted."""

    reason = "IN_USE"


class VersionInUse(ServiceError):
    """An alias or a running job needs this version; it cannot be deleted."""

    reason = "VERSION_IN_USE"


class RolloutRunning(ServiceError):
    """The alias has a rollout that runs; it has one at a time."""

    reason = "ROLLOUT_RUNNING"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} runs on this alias; wait for its end or stop it", name=name)


class ImageInUse(ServiceError):
    """Jobs that have not ended may have read the image, which cannot be erased beside them."""

    reason = "IMAGE_IN_USE"


class VersionUnloadable(ServiceError):
    """A version cannot be loaded or warmed; the one before it serves on."""

    reason = "VERSION_UNLOADABLE"


class ProviderUnavailable(ServiceError):
    """The execution provider that was asked for is absent; nothing falls back silently."""

    reason = "PROVIDER_UNAVAILABLE"


class VariantUnsuitable(ServiceError):
    """A variant cannot be made of this version, or what runs here could not serve it."""

    reason = "VARIANT_UNSUITABLE"


class AliasMoved(ServiceError):
    """The alias no longer points where the caller believed."""

    reason = "ALIAS_MOVED"


class LeaseLost(ServiceError):
    """Another worker holds this job now, or it ended; this one must write nothing."""

    reason = "LEASE_LOST"


class Overloaded(ServiceError):
    """A bounded queue is full. Carries after how many seconds to try again."""

    reason = "OVERLOADED"

    def __init__(self, what: str, *, retry_after: float) -> None:
        super().__init__(f"{what} is full; try again in {retry_after:g} s", what=what)
        self.retry_after = retry_after


class RateExceeded(Overloaded):
    """The caller sends more than its share. Carries after how many seconds to try again."""

    reason = "RATE_EXCEEDED"

    def __init__(self, what: str, *, retry_after: float) -> None:
        ServiceError.__init__(self, f"too many {what}; go on in {retry_after:.3g} s", what=what)
        self.retry_after = retry_after


class DeadlineTooShort(ServiceError):
    """The request cannot be answered before its deadline, so it is refused at once."""

    reason = "DEADLINE_TOO_SHORT"


class ServerStopping(ServiceError):
    """This server is draining; another one, or the same one later, goes on."""

    reason = "SERVER_STOPPING"

    def __init__(self) -> None:
        super().__init__("the server is stopping; try again, here later or at another replica")


# ── something broke ──────────────────────────────────────────────────────────


class BlobCorrupt(ServiceError):
    """Stored bytes no longer have the digest they are named by."""

    reason = "BLOB_CORRUPT"

    def __init__(self, digest: str, found: str) -> None:
        super().__init__(f"blob {digest} has the content {found}", digest=digest, found=found)


class StoreUnavailable(ServiceError):
    """The SQL or blob store cannot be reached or written (gone, locked, full).

    *detail* is for the log of this machine: a driver's words name hosts and accounts.
    *facts* are for everyone.
    """

    reason = "STORE_UNAVAILABLE"
    retry_after = 2.0  # seconds

    def __init__(self, message: str, *, detail: str = "", **facts: object) -> None:
        super().__init__(message, **facts)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.told}: {self.detail}" if self.detail else self.told

    @property
    def told(self) -> str:
        """The message without its detail."""
        return super().__str__()


class StoreFull(StoreUnavailable):
    """The disk under the SQL or blob store has no room left."""

    reason = "STORE_FULL"
    retry_after = 5.0

    def __init__(self, what: str) -> None:
        hope = "it goes on by itself once there is room"
        super().__init__(f"the disk under {what} is full: nothing new can be stored; {hope}")


class ExportMismatch(ServiceError):
    """The exported ONNX file does not answer as the trained network does."""

    reason = "EXPORT_MISMATCH"


class TrainingDiverged(ServiceError):
    """Training stayed unstable after every bounded response."""

    reason = "TRAINING_DIVERGED"


class AttemptsExhausted(ServiceError):
    """A job's worker died or stalled as often as is allowed."""

    reason = "ATTEMPTS_EXHAUSTED"
