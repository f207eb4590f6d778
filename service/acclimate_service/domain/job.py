"""Jobs: what was asked, where it stands, what it said on the way."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass, field

import pydantic

from acclimate_service.domain.guard import GuardPolicy
from acclimate_service.domain.model import Reduced
from acclimate_service.domain.names import DomainName, JobName, ModelName, VersionName


class JobKind(enum.Enum):
    """What a job makes."""

    REGISTER = "REGISTER"  # weights that came with their labels -> the first version
    BOOTSTRAP = "BOOTSTRAP"  # a backbone + a labelled source domain -> the first version
    ADAPT = "ADAPT"  # an incumbent + a target domain -> the next version


class JobState(enum.Enum):
    """Where a job stands. SUCCEEDED means, and only it means, the job made a version."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    REJECTED = "REJECTED"  # the guard said no; not an error
    INCONCLUSIVE = "INCONCLUSIVE"  # too little holdout to tell
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether the state is terminal: reached once, never left."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class Phase(enum.Enum):
    """What a running job is doing, in order."""

    PREPARING = "PREPARING"  # open the incumbent, decode, cache the trunk
    PROBING = "PROBING"  # the head alone
    TUNING = "TUNING"  # later stages and the head
    BLENDING = "BLENDING"  # choose a point between incumbent and candidate
    EXPORTING = "EXPORTING"
    JUDGING = "JUDGING"

    @classmethod
    def known(cls, text: str | None) -> Phase | None:
        """The phase of this name; None for none, or for one that a newer worker tells of."""
        return cls(text) if text in cls._value2member_map_ else None


class JobSpec(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How to spend the adaptation budget. The defaults are meant to be left alone.

    ``strategy`` names a row of ``training/strategies.py``; ``auto`` measures and
    chooses. ``promote_to`` moves that alias when, and only when, the guard accepts.
    ``variants`` are made of the version once it is accepted, each judged by itself.
    """

    strategy: str = pydantic.Field(default="auto", pattern=r"^[a-z0-9_:,.+-]{1,100}$")
    epochs: int = pydantic.Field(default=15, ge=1, le=1000)
    budget_seconds: float | None = pydantic.Field(default=None, gt=0, le=7 * 86400)
    batch_size: int = pydantic.Field(default=32, ge=1, le=4096)
    seed: int = pydantic.Field(default=0, ge=0, lt=2**31)
    replay_per_class: int = pydantic.Field(default=20, ge=0, le=100_000)
    views: int = pydantic.Field(default=4, ge=1, le=64)
    extend_labels: bool = False
    promote_to: str | None = pydantic.Field(default=None, pattern=r"^[a-z0-9_-]{1,63}$")
    variants: tuple[Reduced, ...] = ()
    guard: GuardPolicy = GuardPolicy()


@dataclass(frozen=True, kw_only=True)
class JobDraft:
    """A job as asked for: everything that is pinned when it is accepted."""

    kind: JobKind
    model: ModelName
    source: DomainName | None
    target: DomainName | None
    incumbent: VersionName | None
    spec: JobSpec


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job FAILED: a stable reason and a message."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """An accepted job. ``attempt`` counts the workers that claimed it."""

    name: JobName
    draft: JobDraft
    request_id: str
    state: JobState
    phase: Phase | None
    attempt: int
    cancel_requested: bool
    version: VersionName | None
    failure: Failure | None
    summary: dict[str, pydantic.JsonValue] = field(default_factory=dict)
    report_html: str = ""  # blob digests, empty until the job has a report
    report_json: str = ""
    reads_up_to: int | None = None  # of the order in which uploads were committed; None: all
    created_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None


class EventKind(enum.Enum):
    """What an event of a job's story tells."""

    STATE = "STATE"
    PHASE = "PHASE"
    EPOCH = "EPOCH"
    DECISION = "DECISION"  # a choice the job made, with its measurements
    WARNING = "WARNING"  # a named failure and the response to it
    VERDICT = "VERDICT"

    @classmethod
    def known(cls, text: str) -> EventKind | None:
        """The kind of this name; None for one that a newer worker tells of."""
        return cls(text) if text in cls._value2member_map_ else None


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One line of a job's story. ``sequence`` counts from 1, without gaps."""

    job: JobName
    sequence: int
    at: dt.datetime
    kind: EventKind | None  # None: only a newer Acclimate knows it
    phase: Phase | None
    message: str
    facts: dict[str, pydantic.JsonValue]


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A worker's right to write to a job. Every write names it; a lost one writes nothing."""

    job: JobName
    worker: str
    attempt: int
