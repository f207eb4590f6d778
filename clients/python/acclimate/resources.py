"""What the service tells about: immutable values, one class for each kind of thing.

Names are full resource names (``models/digits/versions/3``), times are
timezone-aware, accuracies and probabilities lie in [0, 1]. An empty string
means that there is none.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class Role(enum.Enum):
    """What an image is given for."""

    TRAIN = "TRAIN"  # to learn from
    HOLDOUT = "HOLDOUT"  # never trained on
    REPLAY = "REPLAY"  # source images that may be shown again, against forgetting
    AUTO = "AUTO"  # let each image's content decide whether it is held out


class JobKind(enum.Enum):
    """What a job makes."""

    REGISTER = "REGISTER"
    BOOTSTRAP = "BOOTSTRAP"
    ADAPT = "ADAPT"


class JobState(enum.Enum):
    """Where a job stands. SUCCEEDED means, and only it means, the job made a version."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    REJECTED = "REJECTED"  # the guard said no; not an error
    INCONCLUSIVE = "INCONCLUSIVE"  # too few held-out images to tell
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether the state is terminal: reached once, never left."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class Phase(enum.Enum):
    """What a running job is doing, in order."""

    PREPARING = "PREPARING"
    PROBING = "PROBING"
    TUNING = "TUNING"
    BLENDING = "BLENDING"
    EXPORTING = "EXPORTING"
    JUDGING = "JUDGING"


class EventKind(enum.Enum):
    """What an event of a job's story tells."""

    STATE = "STATE"
    PHASE = "PHASE"
    EPOCH = "EPOCH"
    DECISION = "DECISION"
    WARNING = "WARNING"
    VERDICT = "VERDICT"
    UNSPECIFIED = "UNSPECIFIED"  # another, of a newer service


class Origin(enum.Enum):
    """Why a version exists."""

    REGISTERED = "REGISTERED"
    ACCEPTED = "ACCEPTED"
    FORCED = "FORCED"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One labelled image: an encoded file (JPEG, PNG, WebP) of at most 20 MiB.

    ``id`` is your own name for it; ``tags`` name slices to judge separately
    (``camera=3``).
    """

    image: bytes
    label: str
    id: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelCount:
    """How many committed images a domain has of one label, by what they are used for."""

    label: str
    train: int
    select: int
    verify: int


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A place images come from: a camera, a site, a season."""

    name: str
    labels: tuple[str, ...]
    description: str
    counts: tuple[LabelCount, ...]
    created_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class LabeledBatch:
    """One upload: immutable once committed, seen by no job before."""

    name: str
    role: Role
    committed: bool
    accepted: int
    duplicates: int
    rejected: int
    created_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Acknowledgement:
    """The service's answer to one example of an upload. An accepted one is on its disk."""

    index: int
    id: str
    outcome: Literal["ACCEPTED", "DUPLICATE", "REJECTED"]
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class UploadResult:
    """A committed upload.

    ``accepted`` and ``duplicates`` count images. ``rejected`` names the refused
    ones; those whose answer was lost with a broken connection are only counted,
    in ``batch.rejected``.
    """

    batch: LabeledBatch
    accepted: int
    duplicates: int
    rejected: tuple[Acknowledgement, ...]
    request_id: str


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A backbone by the name its library gives it (``timm``/``tf_efficientnet_lite0``)."""

    library: str
    name: str

    def __str__(self) -> str:
        return f"{self.library}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an upright RGB image becomes the network's input.

    ``size`` is in pixels a side; ``crop`` is the central share of the shorter
    side that is kept; ``mean`` and ``std`` are for pixels in [0, 1], and empty
    means ImageNet's.
    """

    size: int
    crop: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


# How JPEGs that are much larger than a model's input are decoded: all of their pixels, or
# at 1/2, 1/4 or 1/8 of their size, where that leaves at least twice what is wanted.
Decoding = Literal["full", "scaled"]


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Where a model's first weights come from: a hub, a file, or a Python package."""

    kind: Literal["HUB", "FILE", "PACKAGE"]
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class Model:
    """An architecture with a label space; its versions differ in weights only.

    ``labels`` is empty while the model is a bare backbone that waits for its
    bootstrap job. The guard's preset and overrides are what jobs take over; empty:
    nobody has set any, and it is ``balanced``. ``decoding`` is how JPEGs are decoded that
    are much larger than the input.
    """

    name: str
    architecture: Architecture
    weights: WeightsSource
    labels: tuple[str, ...]
    preprocessing: Preprocessing | None
    source_domain: str
    created_at: dt.datetime
    guard_preset: str = ""
    guard_overrides: dict[str, Json] = field(default_factory=dict)
    decoding: Decoding = "full"


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One set of weights: exported, judged, immutable. ``sha256`` is of its model.onnx."""

    name: str
    parent: str
    job: str
    origin: Origin
    forced_by: str
    forced_reason: str
    sha256: str
    onnx_bytes: int
    manifest: Mapping[str, Json]
    created_at: dt.datetime

    @property
    def variants(self) -> tuple[str, ...]:
        """What the guard accepted beside the fp32 file: ``int8``, ``fp16``."""
        files = self.manifest.get("artifacts")
        found = files.get("variants") if isinstance(files, dict) else None
        return tuple(sorted(found)) if isinstance(found, dict) else ()


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A movable pointer to a version. ``previous`` is where a rollback goes."""

    name: str
    version: str
    previous: str
    moved_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class JobSnapshot:
    """A job as it stood when it was asked about.

    ``summary`` holds accuracies, the verdict and seconds by phase; see docs/report.md.
    """

    name: str
    kind: JobKind
    model: str
    incumbent: str
    source_domain: str
    target_domain: str
    spec: Mapping[str, Json]
    state: JobState
    phase: Phase | None
    attempt: int
    cancel_requested: bool
    version: str
    failure_reason: str
    failure_message: str
    summary: Mapping[str, Json]
    created_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One line of a job's story. ``sequence`` counts from 1, without gaps."""

    sequence: int
    at: dt.datetime
    kind: EventKind
    phase: Phase | None
    message: str
    facts: Mapping[str, Json]
    state: JobState


@dataclass(frozen=True, kw_only=True)
class RankedLabel:
    """One label of a prediction and its probability."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one image, and exactly which version said it.

    ``sha256`` is of the file that answered, ``variant`` what that holds: ``fp32``, or
    ``int8`` or ``fp16`` where the server prefers these and the guard accepted them.
    ``classes`` are the likeliest labels, best first. ``probabilities``,
    ``logits`` and ``embedding`` are empty unless they were asked for.
    """

    version: str
    sha256: str
    classes: tuple[RankedLabel, ...]
    probabilities: tuple[float, ...] = ()
    logits: tuple[float, ...] = ()
    embedding: tuple[float, ...] = ()
    variant: str = ""

    @property
    def label(self) -> str:
        """The likeliest label."""
        return self.classes[0].label

    @property
    def probability(self) -> float:
        """The probability of the likeliest label."""
        return self.classes[0].probability


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of answering requests: how often, and how many seconds in all."""

    count: int
    seconds: float

    @property
    def mean(self) -> float:
        """Seconds each time; 0 if it never happened."""
        return self.seconds / self.count if self.count else 0.0


@dataclass(frozen=True, kw_only=True)
class VersionStatistics:
    """What one server was asked of a version since it started, and where the time went.

    ``succeeded``, ``failed`` and ``cancelled`` count requests, from submission to
    answer; ``queue``, ``decode`` and ``infer`` are parts of those that succeeded, and
    ``encode`` comes after them. What several threads did at once is summed. ``variant``
    and ``sha256`` tell which of the version's files was loaded last.
    """

    version: str
    images: int
    runs: int
    pending: int
    succeeded: Stage
    failed: Stage
    cancelled: Stage
    queue: Stage
    decode: Stage
    infer: Stage
    encode: Stage
    variant: str = ""
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why one image of a prediction stream was refused; the stream goes on."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """An exported version's files, in one folder, and their digests."""

    folder: Path
    files: tuple[str, ...]
    sha256: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Health:
    """Whether the service, or one part of it, says that it can answer; true if it does."""

    serving: bool
    status: str

    def __bool__(self) -> bool:
        return self.serving
