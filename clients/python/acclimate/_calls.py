"""Calls as values: what is asked where, how its answer reads, whether it may be repeated.

What the client and the asyncio client both offer stands here once; each only makes the call.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar, Unpack

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from acclimate import _names, _wire
from acclimate.resources import Alias, Domain, Health, JobSnapshot, Json, Prediction
from acclimate.v1 import adaptation_pb2, inference_pb2, registry_pb2

STREAM_SECONDS = 300.0  # the deadline of one resumable stream; the next one goes on from there
BULK_SECONDS = 3600.0  # of a call that carries a model's files, whose size sets its time
LOAD_SECONDS = 300.0  # of a call that loads a version before it answers, as the service allows

_ADAPTATION = "/acclimate.v1.AdaptationService"
_INFERENCE = "/acclimate.v1.InferenceService"
_REGISTRY = "/acclimate.v1.RegistryService"

Answer = TypeVar("Answer", bound=Message)
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Answer, Found]):
    """One unary call.

    Args:
        method: as gRPC writes it: ``/package.Service/Method``.
        request: what is asked.
        answer: the class of what comes back.
        read: what a caller gets of it.
        repeatable: whether a second one, if only the answer got lost, does no harm.
        seconds: for the call, its repetitions included; None means the client's.
    """

    method: str
    request: Message
    answer: type[Answer]
    read: Callable[[Answer], Found]
    repeatable: bool = True
    seconds: float | None = None


class PredictOptions(TypedDict, total=False):
    """What to ask beside the likeliest labels; each as in `Client.predict`."""

    domain: str
    top_k: int
    probabilities: bool
    logits: bool
    embeddings: bool
    priority: int
    routing_key: str


class AdaptOptions(TypedDict, total=False):
    """How to spend the adaptation budget; each as in `Client.adapt`."""

    strategy: str
    epochs: int | None
    budget_seconds: float | None
    batch_size: int | None
    seed: int | None
    replay_per_class: int | None
    views: int | None
    extend_labels: bool
    base: str
    promote_to: str
    variants: Sequence[str]
    guard_preset: str
    guard: Mapping[str, Json] | None
    request_id: str | None


def new_request_id() -> str:
    """A request_id for a caller who gave none."""
    return str(uuid.uuid4())


def create_domain(
    name: str, labels: Iterable[str], *, description: str, request_id: str | None
) -> Call[adaptation_pb2.Domain, Domain]:
    """Create a domain."""
    return Call(
        method=f"{_ADAPTATION}/CreateDomain",
        request=adaptation_pb2.CreateDomainRequest(
            domain_id=name.removeprefix("domains/"),
            labels=labels,
            description=description,
            request_id=request_id or new_request_id(),
        ),
        answer=adaptation_pb2.Domain,
        read=_wire.domain,
    )


def domain(name: str) -> Call[adaptation_pb2.Domain, Domain]:
    """One domain, with its counts of images."""
    return Call(
        method=f"{_ADAPTATION}/GetDomain",
        request=adaptation_pb2.GetDomainRequest(name=_names.domain_name(name)),
        answer=adaptation_pb2.Domain,
        read=_wire.domain,
    )


def adapt(
    model: str, name: str, **options: Unpack[AdaptOptions]
) -> Call[adaptation_pb2.AdaptationJob, JobSnapshot]:
    """Start the job that adapts *model* to the domain *name*."""
    guard = options.get("guard")
    spec = adaptation_pb2.AdaptationSpec(
        strategy=options.get("strategy", "auto"),
        epochs=options.get("epochs"),
        budget_seconds=options.get("budget_seconds"),
        batch_size=options.get("batch_size"),
        seed=options.get("seed"),
        replay_per_class=options.get("replay_per_class"),
        views=options.get("views"),
        extend_labels=options.get("extend_labels", False),
        promote_to=options.get("promote_to", ""),
        variants=options.get("variants", ()),
        guard_preset=options.get("guard_preset", ""),
        guard_overrides=_wire.struct_of(guard) if guard else None,
    )
    return Call(
        method=f"{_ADAPTATION}/CreateAdaptationJob",
        request=adaptation_pb2.CreateAdaptationJobRequest(
            model=_names.model_name(model),
            domain=_names.domain_name(name),
            spec=spec,
            request_id=options.get("request_id") or new_request_id(),
            base=_names.base_name(options.get("base", ""), model=model),
        ),
        answer=adaptation_pb2.AdaptationJob,
        read=_wire.job,
    )


def job(name: str) -> Call[adaptation_pb2.AdaptationJob, JobSnapshot]:
    """Where a job stands, by its full name."""
    return Call(
        method=f"{_ADAPTATION}/GetAdaptationJob",
        request=adaptation_pb2.GetAdaptationJobRequest(name=name),
        answer=adaptation_pb2.AdaptationJob,
        read=_wire.job,
    )


def cancel(name: str, *, reason: str) -> Call[adaptation_pb2.AdaptationJob, JobSnapshot]:
    """Ask for a job's end as CANCELLED, by its full name."""
    return Call(
        method=f"{_ADAPTATION}/CancelAdaptationJob",
        request=adaptation_pb2.CancelAdaptationJobRequest(name=name, reason=reason),
        answer=adaptation_pb2.AdaptationJob,
        read=_wire.job,
    )


def predict(
    request: inference_pb2.PredictRequest, *, seconds: float | None
) -> Call[inference_pb2.PredictResponse, list[Prediction]]:
    """Predict on the images of one request."""
    return Call(
        method=f"{_INFERENCE}/Predict",
        request=request,
        answer=inference_pb2.PredictResponse,
        read=_wire.predictions,
        seconds=seconds,
    )


def promote(
    model: str, version: str, *, alias: str, expected: str | None, reason: str
) -> Call[registry_pb2.Alias, Alias]:
    """Load and warm a version, then point an alias at it."""
    return Call(
        method=f"{_REGISTRY}/SetAlias",
        request=registry_pb2.SetAliasRequest(
            name=_names.alias_name(model, alias),
            version=_names.version_name(version, model=model),
            expected_version=_names.version_name(expected, model=model) if expected else "",
            reason=reason,
        ),
        answer=registry_pb2.Alias,
        read=_wire.alias,
        repeatable=not expected,  # the second of two equal calls would be refused
        seconds=LOAD_SECONDS,
    )


def rollback(model: str, *, alias: str, reason: str) -> Call[registry_pb2.Alias, Alias]:
    """Point an alias back at where it pointed before."""
    return Call(
        method=f"{_REGISTRY}/RollbackAlias",
        request=registry_pb2.RollbackAliasRequest(
            name=_names.alias_name(model, alias), reason=reason
        ),
        answer=registry_pb2.Alias,
        read=_wire.alias,
        repeatable=False,
        seconds=LOAD_SECONDS,
    )


def aliases(model: str) -> Call[registry_pb2.ListAliasesResponse, list[Alias]]:
    """All aliases of a model."""
    return Call(
        method=f"{_REGISTRY}/ListAliases",
        request=registry_pb2.ListAliasesRequest(parent=_names.model_name(model)),
        answer=registry_pb2.ListAliasesResponse,
        read=lambda answer: [_wire.alias(message) for message in answer.aliases],
    )


def health(service: str) -> Call[health_pb2.HealthCheckResponse, Health]:
    """Whether the service, or a part of it, says that it can answer."""
    return Call(
        method="/grpc.health.v1.Health/Check",
        request=health_pb2.HealthCheckRequest(service=service),
        answer=health_pb2.HealthCheckResponse,
        read=_health,
    )


def _health(answer: health_pb2.HealthCheckResponse) -> Health:
    status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return Health(serving=status == "SERVING", status=status)
