"""Registry messages: only proto ↔ domain. Jobs and uploads are in `convert_jobs`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf import struct_pb2

from acclimate.v1 import registry_pb2 as pb
from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.model import (
    Alias,
    Architecture,
    Decoding,
    Model,
    ModelVersion,
    Origin,
    Preprocessing,
    WeightsSource,
)
from acclimate_service.domain.names import AliasName, DomainName, ModelName, VersionName, check_id
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.rpc import fields

_WEIGHTS: Final = {
    pb.WeightsSource.KIND_HUB: "HUB",
    pb.WeightsSource.KIND_FILE: "FILE",
    pb.WeightsSource.KIND_PACKAGE: "PACKAGE",
}
_WEIGHTS_OUT: Final = {kind: number for number, kind in _WEIGHTS.items()}
_DECODINGS: Final[dict[pb.Decoding.ValueType, Decoding]] = {
    pb.DECODING_FULL: "full",
    pb.DECODING_SCALED: "scaled",
}
_DECODINGS_OUT: Final = {decoding: number for number, decoding in _DECODINGS.items()}
_ORIGIN_OUT: Final = {
    Origin.REGISTERED: pb.ModelVersion.ORIGIN_REGISTERED,
    Origin.ACCEPTED: pb.ModelVersion.ORIGIN_ACCEPTED,
    Origin.FORCED: pb.ModelVersion.ORIGIN_FORCED,
}


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What a caller asks to register. ``promote_to`` is an alias id, or None."""

    model: ModelName
    architecture: Architecture
    weights: WeightsSource
    labels: tuple[str, ...]
    preprocessing: Preprocessing | None
    decoding: Decoding
    source_domain: DomainName | None
    promote_to: str | None
    request_id: str


def registration(draft: pb.RegisterModelRequest.Draft) -> Registration:
    """Read a registration's draft.

    Raises:
        InvalidName: an id or a resource name has the wrong form.
        InvalidSpec: a field is missing or makes no sense.
    """
    model = ModelName(check_id(draft.model_id))
    promote_to = check_id(draft.promote_to) if draft.promote_to else None
    labels = fields.labels("labels", draft.labels)
    if len(labels) == 1:
        raise InvalidSpec("labels: a classifier needs at least two", field="labels")
    if promote_to is not None and not labels:
        raise InvalidSpec(
            "promote_to: a bare backbone has no version yet; give it to its bootstrap job",
            field="promote_to",
        )
    decoding = _decoding(draft.decoding, trained=bool(labels))
    return Registration(
        model=model,
        architecture=architecture(draft.architecture),
        weights=weights(draft.weights),
        labels=labels,
        preprocessing=(
            preprocessing(draft.preprocessing, decoding)
            if draft.HasField("preprocessing")
            else None
        ),
        decoding=decoding,
        source_domain=DomainName.parse(draft.source_domain) if draft.source_domain else None,
        promote_to=promote_to,
        request_id=fields.request_id(draft.request_id),
    )


def architecture(message: pb.Architecture) -> Architecture:
    """Read a backbone's name.

    Raises:
        InvalidSpec: the library is unknown, or the name cannot be one.
    """
    return fields.checked(
        Architecture,
        {"library": message.library, "name": message.name},
        field="architecture",
    )


def weights(message: pb.WeightsSource) -> WeightsSource:
    """Read where the weights come from. A file's digest is filled in when it has arrived.

    Raises:
        InvalidSpec: the kind is not given, or the reference is not a plain name.
    """
    if message.kind not in _WEIGHTS:
        raise InvalidSpec("weights.kind must be HUB, FILE or PACKAGE", field="weights.kind")
    kind = _WEIGHTS[message.kind]
    reference = fields.text("weights.reference", message.reference, limit=200)
    # A reference goes into a library's own look-up, never into a path or a URL.
    if any(character in reference for character in "/\\") or ".." in reference:
        raise InvalidSpec(
            "weights.reference is a tag or a package's name, not a path", field="weights.reference"
        )
    if kind == "FILE" and reference:
        raise InvalidSpec(
            "weights.reference: a file is known by its bytes; leave this empty",
            field="weights.reference",
        )
    if kind == "PACKAGE" and not reference:
        raise InvalidSpec("weights.reference must name the package", field="weights.reference")
    return fields.checked(WeightsSource, {"kind": kind, "reference": reference}, field="weights")


def _decoding(asked: pb.Decoding.ValueType, *, trained: bool) -> Decoding:
    """How JPEGs are to be decoded that are much larger than the input.

    Whoever does not ask gets what the weights know: those that come *trained* for their
    labels saw all pixels, and those that are trained here see what will be served.

    Raises:
        InvalidSpec: there is no such way.
    """
    if asked == pb.DECODING_UNSPECIFIED:
        return "full" if trained else "scaled"
    if asked not in _DECODINGS:
        raise InvalidSpec("decoding must be FULL or SCALED", field="decoding")
    return _DECODINGS[asked]


def preprocessing(message: pb.Preprocessing, decoding: Decoding) -> Preprocessing:
    """Read a preprocessing; unset fields take the documented defaults.

    Raises:
        InvalidSpec: a value is out of range.
    """
    given: dict[str, object] = {"size": message.size, "decoding": decoding}
    if message.crop:
        given["crop"] = message.crop
    if message.interpolation:
        given["interpolation"] = message.interpolation
    if message.mean:
        given["mean"] = _three("preprocessing.mean", message.mean, above=-math.inf)
    if message.std:
        given["std"] = _three("preprocessing.std", message.std, above=0.0)
    return fields.checked(Preprocessing, given, field="preprocessing")


def _three(field: str, values: Sequence[float], *, above: float) -> tuple[float, float, float]:
    """One finite number for each of red, green and blue."""
    if len(values) != 3 or not all(math.isfinite(value) and value > above for value in values):
        raise InvalidSpec(f"{field} must be three finite numbers above {above:g}", field=field)
    return values[0], values[1], values[2]


def guard_overrides(policy: GuardPolicy) -> struct_pb2.Struct:
    """Write the limits of a policy that differ from its preset, and why."""
    told = {name: getattr(policy, name) for name in policy.overrides}
    return fields.struct_of(told | ({"reason": policy.reason} if policy.reason else {}))


def model_guard(request: pb.SetModelGuardRequest) -> tuple[ModelName, GuardPolicy, str]:
    """Read a model's new policy, and the reason for it.

    Raises:
        InvalidName: ``name`` is not a model's.
        InvalidSpec: no reason, no such preset or limit, or a value out of range.
    """
    why = fields.text("reason", request.reason, limit=1000, required=True)
    given = fields.json_of("overrides", request.overrides)
    if stray := given.keys() & {"base", "reason"}:
        raise InvalidSpec(f"overrides: {min(stray)} has a field of its own", field="overrides")
    values = GuardPolicy().derived(request.preset or "balanced", given)
    values |= {"reason": why} if given else {}
    return (
        ModelName.parse(request.name),
        fields.checked(GuardPolicy, values, field="overrides"),
        why,
    )


def model(value: Model) -> pb.Model:
    """Write a model."""
    message = pb.Model(
        name=str(value.name),
        architecture=pb.Architecture(
            library=value.architecture.library, name=value.architecture.name
        ),
        weights=pb.WeightsSource(
            kind=_WEIGHTS_OUT[value.weights.kind], reference=value.weights.reference
        ),
        labels=value.labels,
        source_domain=str(value.source_domain or ""),
        create_time=fields.timestamp(value.created_at),
        decoding=_DECODINGS_OUT[value.decoding],
    )
    if value.guard is not None:
        message.guard_preset = value.guard.base
        message.guard_overrides.CopyFrom(guard_overrides(value.guard))
    if (given := value.preprocessing) is not None:
        message.preprocessing.CopyFrom(
            pb.Preprocessing(
                size=given.size,
                crop=given.crop,
                interpolation=given.interpolation,
                mean=given.mean,
                std=given.std,
            )
        )
    return message


def version(value: ModelVersion) -> pb.ModelVersion:
    """Write a version, manifest included."""
    return pb.ModelVersion(
        name=str(value.name),
        parent=str(value.parent or ""),
        job=str(value.job),
        origin=_ORIGIN_OUT[value.origin],
        forced_by=value.forced_by,
        forced_reason=value.forced_reason,
        sha256=value.manifest.artifacts.onnx,
        onnx_bytes=value.manifest.artifacts.onnx_bytes,
        manifest=fields.struct_of(value.manifest.model_dump(mode="json")),
        create_time=fields.timestamp(value.created_at),
    )


def alias(value: Alias) -> pb.Alias:
    """Write an alias."""
    return pb.Alias(
        name=str(value.name),
        version=str(value.version),
        previous=str(value.previous or ""),
        update_time=fields.timestamp(value.moved_at),
    )


def alias_move(request: pb.SetAliasRequest) -> tuple[AliasName, VersionName, VersionName | None]:
    """Read a promotion: the alias, the version, and the version it must point at now.

    Raises:
        InvalidName: a name has the wrong form.
        InvalidSpec: alias and version are of different models.
    """
    name = AliasName.parse(request.name)
    version_name = VersionName.parse(request.version)
    expected = VersionName.parse(request.expected_version) if request.expected_version else None
    if version_name.model != name.model:
        raise InvalidSpec(
            f"version: {version_name} is not a version of models/{name.model}", field="version"
        )
    return name, version_name, expected
