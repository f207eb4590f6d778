"""proto ↔ values: nothing but conversion."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping

from google.protobuf import json_format, struct_pb2, timestamp_pb2

from acclimate import resources
from acclimate.resources import Json
from acclimate.v1 import adaptation_pb2, inference_pb2, registry_pb2

OUTCOMES = adaptation_pb2.UploadBatchResponse.Acknowledgement.Outcome


def role_number(role: resources.Role) -> adaptation_pb2.Role.ValueType:
    """The proto's number of a role."""
    return adaptation_pb2.Role.Value(f"ROLE_{role.value}")


def example_message(example: resources.Example) -> adaptation_pb2.Example:
    """An example as it is sent."""
    return adaptation_pb2.Example(
        image=example.image, label=example.label, id=example.id, tags=example.tags
    )


def struct_of(values: Mapping[str, Json]) -> struct_pb2.Struct:
    """A mapping of JSON values as a Struct."""
    struct = struct_pb2.Struct()
    json_format.ParseDict(dict(values), struct)
    return struct


def mapping_of(struct: struct_pb2.Struct) -> dict[str, Json]:
    """A Struct as JSON values; whole numbers become ints again, since a Struct knows none."""
    return {key: _json(value) for key, value in struct.fields.items()}


def _json(value: struct_pb2.Value) -> Json:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return mapping_of(value.struct_value)
        case "list_value":
            return [_json(item) for item in value.list_value.values]
        case _:
            return None


def _time(stamp: timestamp_pb2.Timestamp) -> dt.datetime:
    return stamp.ToDatetime(tzinfo=dt.UTC)


def domain(message: adaptation_pb2.Domain) -> resources.Domain:
    """A domain."""
    return resources.Domain(
        name=message.name,
        labels=tuple(message.labels),
        description=message.description,
        counts=tuple(
            resources.LabelCount(
                label=count.label, train=count.train, select=count.select, verify=count.verify
            )
            for count in message.counts
        ),
        created_at=_time(message.create_time),
    )


def batch(message: adaptation_pb2.LabeledBatch) -> resources.LabeledBatch:
    """A batch."""
    return resources.LabeledBatch(
        name=message.name,
        role=resources.Role(adaptation_pb2.Role.Name(message.role).removeprefix("ROLE_")),
        committed=message.committed,
        accepted=message.accepted,
        duplicates=message.duplicates,
        rejected=message.rejected,
        created_at=_time(message.create_time),
    )


def acknowledgement(
    message: adaptation_pb2.UploadBatchResponse.Acknowledgement,
) -> resources.Acknowledgement:
    """The answer to one example."""
    outcome = OUTCOMES.Name(message.outcome).removeprefix("OUTCOME_")
    if outcome not in ("ACCEPTED", "DUPLICATE", "REJECTED"):
        raise ValueError(f"an acknowledgement without an outcome: {message}")
    return resources.Acknowledgement(
        index=message.index,
        id=message.id,
        outcome=outcome,  # type: ignore[arg-type]  # checked above
        reason=message.reason,
        message=message.message,
    )


def model(message: registry_pb2.Model) -> resources.Model:
    """A model."""
    kind = registry_pb2.WeightsSource.Kind.Name(message.weights.kind).removeprefix("KIND_")
    return resources.Model(
        name=message.name,
        architecture=resources.Architecture(
            library=message.architecture.library, name=message.architecture.name
        ),
        weights=resources.WeightsSource(
            kind=kind,  # type: ignore[arg-type]  # the enum's names
            reference=message.weights.reference,
        ),
        labels=tuple(message.labels),
        preprocessing=(
            _preprocessing(message.preprocessing) if message.HasField("preprocessing") else None
        ),
        source_domain=message.source_domain,
        created_at=_time(message.create_time),
        guard_preset=message.guard_preset,
        guard_overrides=mapping_of(message.guard_overrides),
        # An older server names none, and knows no other.
        decoding="scaled" if message.decoding == registry_pb2.DECODING_SCALED else "full",
    )


def _preprocessing(message: registry_pb2.Preprocessing) -> resources.Preprocessing:
    return resources.Preprocessing(
        size=message.size,
        crop=message.crop,
        interpolation=message.interpolation,
        mean=tuple(message.mean),
        std=tuple(message.std),
    )


def draft_message(
    *,
    model_id: str,
    architecture: resources.Architecture,
    weights: resources.WeightsSource,
    labels: tuple[str, ...],
    preprocessing: resources.Preprocessing | None,
    source_domain: str,
    request_id: str,
    promote_to: str,
    decoding: resources.Decoding | None,
) -> registry_pb2.RegisterModelRequest.Draft:
    """The first message of a registration."""
    sent = None
    if preprocessing is not None:
        sent = registry_pb2.Preprocessing(
            size=preprocessing.size,
            crop=preprocessing.crop,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
        )
    return registry_pb2.RegisterModelRequest.Draft(
        model_id=model_id,
        architecture=registry_pb2.Architecture(
            library=architecture.library, name=architecture.name
        ),
        weights=registry_pb2.WeightsSource(
            kind=registry_pb2.WeightsSource.Kind.Value(f"KIND_{weights.kind}"),
            reference=weights.reference,
        ),
        labels=labels,
        preprocessing=sent,
        source_domain=source_domain,
        request_id=request_id,
        promote_to=promote_to,
        decoding=registry_pb2.Decoding.Value(f"DECODING_{(decoding or 'unspecified').upper()}"),
    )


def version(message: registry_pb2.ModelVersion) -> resources.ModelVersion:
    """A model version."""
    origin = registry_pb2.ModelVersion.Origin.Name(message.origin).removeprefix("ORIGIN_")
    return resources.ModelVersion(
        name=message.name,
        parent=message.parent,
        job=message.job,
        origin=resources.Origin(origin),
        forced_by=message.forced_by,
        forced_reason=message.forced_reason,
        sha256=message.sha256,
        onnx_bytes=message.onnx_bytes,
        manifest=mapping_of(message.manifest),
        created_at=_time(message.create_time),
    )


def alias(message: registry_pb2.Alias) -> resources.Alias:
    """An alias."""
    return resources.Alias(
        name=message.name,
        version=message.version,
        previous=message.previous,
        moved_at=_time(message.update_time),
    )


def job_state(number: adaptation_pb2.AdaptationJob.State.ValueType) -> resources.JobState:
    """A job's state by its number."""
    name = adaptation_pb2.AdaptationJob.State.Name(number)
    return resources.JobState(name.removeprefix("STATE_"))


def state_number(
    state: resources.JobState | None,
) -> adaptation_pb2.AdaptationJob.State.ValueType:
    """The proto's number of a job's state; None means unspecified."""
    return adaptation_pb2.AdaptationJob.State.Value(
        "STATE_UNSPECIFIED" if state is None else f"STATE_{state.value}"
    )


def phase(number: adaptation_pb2.AdaptationJob.Phase.ValueType) -> resources.Phase | None:
    """A phase by its number; 0 means none."""
    if not number:
        return None
    return resources.Phase(adaptation_pb2.AdaptationJob.Phase.Name(number).removeprefix("PHASE_"))


def job(message: adaptation_pb2.AdaptationJob) -> resources.JobSnapshot:
    """A job."""
    kind = adaptation_pb2.AdaptationJob.Kind.Name(message.kind).removeprefix("KIND_")
    spec: dict[str, Json] = json.loads(
        json_format.MessageToJson(message.spec, preserving_proto_field_name=True)
    )
    return resources.JobSnapshot(
        name=message.name,
        kind=resources.JobKind(kind),
        model=message.model,
        incumbent=message.incumbent,
        source_domain=message.source_domain,
        target_domain=message.target_domain,
        spec=spec,
        state=job_state(message.state),
        phase=phase(message.phase),
        attempt=message.attempt,
        cancel_requested=message.cancel_requested,
        version=message.version,
        failure_reason=message.failure_reason,
        failure_message=message.failure_message,
        summary=mapping_of(message.summary),
        created_at=_time(message.create_time),
        started_at=_time(message.start_time) if message.HasField("start_time") else None,
        ended_at=_time(message.end_time) if message.HasField("end_time") else None,
    )


def event(message: adaptation_pb2.JobEvent) -> resources.JobEvent:
    """An event."""
    kinds = adaptation_pb2.JobEvent.Kind
    known = message.kind if message.kind in kinds.values() else kinds.KIND_UNSPECIFIED
    kind = kinds.Name(known).removeprefix("KIND_")
    return resources.JobEvent(
        sequence=message.sequence,
        at=_time(message.time),
        kind=resources.EventKind(kind),
        phase=phase(message.phase),
        message=message.message,
        facts=mapping_of(message.facts),
        state=job_state(message.state),
    )


def predictions(message: inference_pb2.PredictResponse) -> list[resources.Prediction]:
    """The predictions of one answer, in the order of its images."""
    return [
        resources.Prediction(
            version=message.version,
            sha256=message.sha256,
            classes=tuple(
                resources.RankedLabel(label=ranked.label, probability=ranked.probability)
                for ranked in prediction.classes
            ),
            probabilities=tuple(prediction.probabilities),
            logits=tuple(prediction.logits),
            embedding=tuple(prediction.embedding),
            variant=message.variant,
        )
        for prediction in message.predictions
    ]


def answers(
    message: inference_pb2.PredictStreamResponse,
) -> list[resources.Prediction] | list[resources.Refusal]:
    """What one message of a stream of predictions says: of one image, if one was asked of."""
    if message.WhichOneof("part") == "refusal":
        refusal = message.refusal
        return [resources.Refusal(reason=refusal.reason, message=refusal.message)]
    return predictions(message.response)


def version_statistics(message: inference_pb2.VersionStatistics) -> resources.VersionStatistics:
    """A version's counts."""

    def stage(part: inference_pb2.VersionStatistics.Stage) -> resources.Stage:
        return resources.Stage(count=part.count, seconds=part.nanoseconds / 1e9)

    return resources.VersionStatistics(
        version=message.version,
        images=message.images,
        runs=message.runs,
        pending=message.pending,
        succeeded=stage(message.succeeded),
        failed=stage(message.failed),
        cancelled=stage(message.cancelled),
        queue=stage(message.queue),
        decode=stage(message.decode),
        infer=stage(message.infer),
        encode=stage(message.encode),
        variant=message.variant,
        sha256=message.sha256,
    )
