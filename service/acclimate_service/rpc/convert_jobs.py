"""Domains, batches, jobs and their events: only proto ↔ domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from acclimate.v1 import adaptation_pb2 as pb
from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.examples import Domain, LabeledBatch, Role, Split
from acclimate_service.domain.guard import GuardPolicy
from acclimate_service.domain.job import EventKind, Job, JobEvent, JobKind, JobSpec, JobState, Phase
from acclimate_service.domain.names import DomainName, ModelName, check_id
from acclimate_service.rpc import fields
from acclimate_service.rpc.convert import guard_overrides
from acclimate_service.store.intake import Answer, Outcome

TAG_COUNT: Final = 16
TAG_LENGTH: Final = 100  # characters
ID_LENGTH: Final = 300  # characters; an uploader's file name

_ROLES: Final = {
    pb.ROLE_TRAIN: Role.TRAIN,
    pb.ROLE_HOLDOUT: Role.HOLDOUT,
    pb.ROLE_REPLAY: Role.REPLAY,
    pb.ROLE_AUTO: Role.AUTO,
}
_ROLES_OUT: Final = {role: number for number, role in _ROLES.items()}
_STATES: Final = {
    pb.AdaptationJob.STATE_QUEUED: JobState.QUEUED,
    pb.AdaptationJob.STATE_RUNNING: JobState.RUNNING,
    pb.AdaptationJob.STATE_SUCCEEDED: JobState.SUCCEEDED,
    pb.AdaptationJob.STATE_REJECTED: JobState.REJECTED,
    pb.AdaptationJob.STATE_INCONCLUSIVE: JobState.INCONCLUSIVE,
    pb.AdaptationJob.STATE_FAILED: JobState.FAILED,
    pb.AdaptationJob.STATE_CANCELLED: JobState.CANCELLED,
}
_STATES_OUT: Final = {state: number for number, state in _STATES.items()}
_KINDS_OUT: Final = {
    JobKind.REGISTER: pb.AdaptationJob.KIND_REGISTER,
    JobKind.BOOTSTRAP: pb.AdaptationJob.KIND_BOOTSTRAP,
    JobKind.ADAPT: pb.AdaptationJob.KIND_ADAPT,
}
_PHASES_OUT: Final = {
    None: pb.AdaptationJob.PHASE_UNSPECIFIED,
    Phase.PREPARING: pb.AdaptationJob.PHASE_PREPARING,
    Phase.PROBING: pb.AdaptationJob.PHASE_PROBING,
    Phase.TUNING: pb.AdaptationJob.PHASE_TUNING,
    Phase.BLENDING: pb.AdaptationJob.PHASE_BLENDING,
    Phase.EXPORTING: pb.AdaptationJob.PHASE_EXPORTING,
    Phase.JUDGING: pb.AdaptationJob.PHASE_JUDGING,
}
_EVENTS_OUT: Final = {
    None: pb.JobEvent.KIND_UNSPECIFIED,
    EventKind.STATE: pb.JobEvent.KIND_STATE,
    EventKind.PHASE: pb.JobEvent.KIND_PHASE,
    EventKind.EPOCH: pb.JobEvent.KIND_EPOCH,
    EventKind.DECISION: pb.JobEvent.KIND_DECISION,
    EventKind.WARNING: pb.JobEvent.KIND_WARNING,
    EventKind.VERDICT: pb.JobEvent.KIND_VERDICT,
}
_ANSWERS_OUT: Final = {
    Answer.ACCEPTED: pb.UploadBatchResponse.Acknowledgement.OUTCOME_ACCEPTED,
    Answer.DUPLICATE: pb.UploadBatchResponse.Acknowledgement.OUTCOME_DUPLICATE,
    Answer.REJECTED: pb.UploadBatchResponse.Acknowledgement.OUTCOME_REJECTED,
}
_LIMITS: Final = tuple(name for name in GuardPolicy.model_fields if name != "base")
_OPTIONAL: Final = (
    "epochs",
    "budget_seconds",
    "batch_size",
    "seed",
    "replay_per_class",
    "views",
)


@dataclass(frozen=True, kw_only=True)
class NewDomain:
    """A domain as asked for."""

    name: DomainName
    labels: tuple[str, ...]
    description: str
    request_id: str


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How an upload begins."""

    domain: DomainName
    role: Role
    request_id: str


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job as asked for. ``base`` is the name of a version or an alias, or empty.

    The spec's guard is the default one until :meth:`spec_under` a model's policy.
    """

    model: ModelName
    domain: DomainName
    base: str
    spec: JobSpec
    preset: str
    overrides: dict[str, Any]
    request_id: str

    def spec_under(self, policy: GuardPolicy | None) -> JobSpec:
        """The spec with the guard asked for, which starts from the model's *policy*.

        Raises:
            InvalidSpec: the guard refuses an override.
        """
        values = (policy or GuardPolicy()).derived(self.preset, self.overrides)
        guard = fields.checked(GuardPolicy, values, field="spec.guard_overrides")
        return self.spec.model_copy(update={"guard": guard})

    def asks_for(self, spec: JobSpec) -> bool:
        """Whether *spec* can be what was asked for, under whatever policy the model had."""
        limits = {name: value for name, value in self.overrides.items() if name != "reason"}
        return (
            self.spec.model_copy(update={"guard": spec.guard}) == spec
            and self.preset in ("", spec.guard.base)
            and limits.items() <= spec.guard.model_dump(mode="json").items()
        )


def new_domain(request: pb.CreateDomainRequest) -> NewDomain:
    """Read a domain.

    Raises:
        InvalidName: the id is not a slug.
        InvalidSpec: fewer than two labels, or a field that makes no sense.
    """
    labels = fields.labels("labels", request.labels)
    if len(labels) < 2:
        raise InvalidSpec("labels: a domain needs at least two", field="labels")
    return NewDomain(
        name=DomainName(check_id(request.domain_id)),
        labels=labels,
        description=fields.text("description", request.description, limit=2000),
        request_id=fields.request_id(request.request_id),
    )


def domain(value: Domain, counts: Mapping[str, Mapping[Split, int]] | None) -> pb.Domain:
    """Write a domain; *counts* are label → split → committed images, None to leave them out."""
    return pb.Domain(
        name=str(value.name),
        labels=value.labels,
        description=value.description,
        counts=[
            pb.LabelCount(
                label=label,
                train=splits[Split.TRAIN],
                select=splits[Split.SELECT],
                verify=splits[Split.VERIFY],
            )
            for label, splits in (counts or {}).items()
        ],
        create_time=fields.timestamp(value.created_at),
    )


def opening(message: pb.UploadBatchRequest.Open) -> Opening:
    """Read how an upload begins.

    Raises:
        InvalidName: ``parent`` is not a domain's name.
        InvalidSpec: no role, or no request_id, without which nothing is resumable.
    """
    if message.role not in _ROLES:
        raise InvalidSpec("role must be TRAIN, HOLDOUT, REPLAY or AUTO", field="role")
    return Opening(
        domain=DomainName.parse(message.parent),
        role=_ROLES[message.role],
        request_id=fields.request_id(message.request_id, required=True),
    )


def check_example(message: pb.Example) -> None:
    """Refuse an example whose words could not be stored or shown. The image is not looked at.

    Raises:
        InvalidSpec: the id, the label or a tag is no plain line or too long, or a tag
            is given twice.
    """
    fields.text("id", message.id, limit=ID_LENGTH)
    fields.text("label", message.label, limit=fields.LABEL_LENGTH)
    if len(message.tags) > TAG_COUNT:
        raise InvalidSpec(f"an example has at most {TAG_COUNT} tags", field="tags")
    for index, tag in enumerate(message.tags):
        fields.text(f"tags[{index}]", tag, limit=TAG_LENGTH, required=True)
    if len(set(message.tags)) != len(message.tags):
        raise InvalidSpec("tags: one is given twice", field="tags")


def opened(value: LabeledBatch) -> pb.UploadBatchResponse:
    """Write where an upload goes on."""
    return pb.UploadBatchResponse(
        opened=pb.UploadBatchResponse.Opened(
            batch=str(value.name), next_index=value.received, chain=value.chain
        )
    )


def acknowledgement(value: Outcome) -> pb.UploadBatchResponse:
    """Write the answer to one example."""
    message = pb.UploadBatchResponse.Acknowledgement(
        index=value.index, id=value.id, outcome=_ANSWERS_OUT[value.answer]
    )
    if value.refusal is not None:
        message.reason = value.refusal.reason
        message.message = value.refusal.message
    return pb.UploadBatchResponse(acknowledgement=message)


def batch(value: LabeledBatch) -> pb.LabeledBatch:
    """Write a batch."""
    return pb.LabeledBatch(
        name=str(value.name),
        role=_ROLES_OUT[value.role],
        committed=value.committed,
        accepted=value.accepted,
        duplicates=value.duplicates,
        rejected=value.rejected,
        create_time=fields.timestamp(value.created_at),
    )


def new_job(request: pb.CreateAdaptationJobRequest) -> NewJob:
    """Read a job.

    Raises:
        InvalidName: a resource name has the wrong form.
        InvalidSpec: the spec makes no sense.
    """
    preset = fields.text("guard_preset", request.spec.guard_preset, limit=64)
    overrides = dict(fields.json_of("guard_overrides", request.spec.guard_overrides))
    if "base" in overrides:
        raise InvalidSpec("the preset goes into guard_preset", field="guard_overrides.base")
    # The values wait for the model's own policy, which they change; the names need not.
    for name in sorted(overrides.keys() - set(_LIMITS)):
        raise InvalidSpec(
            f"guard_overrides: no limit {name[:100]!r}, only {', '.join(_LIMITS)}",
            field=f"guard_overrides.{name[:100]}",
        )
    return NewJob(
        model=ModelName.parse(request.model),
        domain=DomainName.parse(request.domain),
        base=fields.text("base", request.base, limit=300),
        spec=spec(request.spec),
        preset=preset,
        overrides=overrides,
        request_id=fields.request_id(request.request_id),
    )


def spec(message: pb.AdaptationSpec) -> JobSpec:
    """Read a spec but for its guard; unset fields take ``JobSpec``'s defaults.

    Raises:
        InvalidSpec: a value is out of range.
    """
    given: dict[str, object] = {
        name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)
    }
    if message.strategy:
        given["strategy"] = message.strategy
    if message.promote_to:
        given["promote_to"] = check_id(message.promote_to)
    given["variants"] = tuple(dict.fromkeys(message.variants))  # named twice is asked for once
    return fields.checked(JobSpec, {**given, "extend_labels": message.extend_labels}, field="spec")


def spec_out(value: JobSpec) -> pb.AdaptationSpec:
    """Write a spec with every field filled in: what the job really does."""
    message = pb.AdaptationSpec(
        strategy=value.strategy,
        epochs=value.epochs,
        batch_size=value.batch_size,
        seed=value.seed,
        replay_per_class=value.replay_per_class,
        views=value.views,
        extend_labels=value.extend_labels,
        promote_to=value.promote_to or "",
        guard_preset=value.guard.base,
        guard_overrides=guard_overrides(value.guard),
        variants=value.variants,
    )
    if value.budget_seconds is not None:
        message.budget_seconds = value.budget_seconds
    return message


def job_states(number: int) -> tuple[JobState, ...]:
    """The states to list; none means all.

    Raises:
        InvalidSpec: there is no such state.
    """
    if number == pb.AdaptationJob.STATE_UNSPECIFIED:
        return ()
    if number not in _STATES:
        raise InvalidSpec(f"state: {number} is no state of a job", field="state")
    return (_STATES[pb.AdaptationJob.State.ValueType(number)],)


def job(value: Job) -> pb.AdaptationJob:
    """Write a job."""
    return pb.AdaptationJob(
        name=str(value.name),
        kind=_KINDS_OUT[value.draft.kind],
        model=str(value.draft.model),
        incumbent=str(value.draft.incumbent or ""),
        source_domain=str(value.draft.source or ""),
        target_domain=str(value.draft.target or ""),
        spec=spec_out(value.draft.spec),
        state=_STATES_OUT[value.state],
        phase=_PHASES_OUT[value.phase],
        attempt=value.attempt,
        cancel_requested=value.cancel_requested,
        version=str(value.version or ""),
        failure_reason=value.failure.reason if value.failure else "",
        failure_message=value.failure.message if value.failure else "",
        summary=fields.struct_of(value.summary),
        create_time=fields.timestamp(value.created_at),
        start_time=fields.timestamp(value.started_at),
        end_time=fields.timestamp(value.ended_at),
    )


def event(value: JobEvent, state: JobState) -> pb.JobEvent:
    """Write one line of a job's story, sent while the job was in *state*."""
    return pb.JobEvent(
        sequence=value.sequence,
        time=fields.timestamp(value.at),
        kind=_EVENTS_OUT[value.kind],
        phase=_PHASES_OUT[value.phase],
        message=value.message,
        facts=fields.struct_of(value.facts),
        state=_STATES_OUT[state],
    )
