"""The report document as the page reads it: typed, its text made safe to show.

Only what the page shows is named here; whatever else the document has is passed over.
Text that users gave (labels, ids, reasons) is cleaned of what cannot be printed and cut
to a length that a page can hold; escaping is the template's work.
"""

from __future__ import annotations

from typing import Literal

import pydantic

from acclimate_service.domain.verdict import Decision
from acclimate_service.worker.printable import Name, Part, Prose
from acclimate_service.worker.told_images import CopiesTold, ScreeningTold, Suspect


class Spec(Part):
    """What was asked for, as advice repeats it; the page lists every setting as it stands.

    Defaults are those of ``JobSpec``, which nobody has to write.
    """

    strategy: Name = "auto"
    epochs: int = 15
    budget_seconds: float | None = None
    batch_size: int = 32
    seed: int = 0
    replay_per_class: int = 20
    views: int = 4
    extend_labels: bool = False
    variants: tuple[Name, ...] = ()
    promote_to: Name | None = None


class JobTold(Part):
    """Which job it was. Names are resource names: ``domains/night``."""

    name: Name
    kind: Literal["REGISTER", "BOOTSTRAP", "ADAPT"]
    model: Name
    incumbent: Name | None = None
    source: Name | None = None
    target: Name | None = None
    attempt: int = 1
    created_at: Name
    started_at: Name | None = None
    spec: Spec


class ComparisonTold(Part):
    """A number beside its limit; see ``domain.comparison.Comparison``."""

    text: Name


class CheckTold(Part):
    """One check of the guard's; see ``domain.verdict.Check``."""

    name: Name
    decision: Decision
    unit: Name
    observed: float | None
    interval: tuple[float, float] | None
    limit: float
    n: int
    lost: int
    gained: int
    needed: int | None
    message: Prose
    decided_by: tuple[ComparisonTold, ...]

    @property
    def title(self) -> str:
        """Whose check it is: "source", "target", "earlier domains/webcam", or nothing's."""
        return self.name.rpartition(" ")[0]

    @property
    def kind(self) -> str:
        """What it asks about: "accuracy", "classes", "NLL", "size" and so on."""
        return self.name.rpartition(" ")[2]


class Estimate(Part):
    """A number with its interval; None where there was nothing to measure."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Drop(Estimate):
    """A drop in accuracy, with what was tolerated of it."""

    limit: float
    margin: float
    level_high: float


class GroupTold(Part):
    """One class or slice before and after; see ``domain.groups.Group``."""

    name: Name
    n: int
    right_before: int
    right_after: int
    lost: int
    gained: int
    p_adjusted: float
    judged: bool


class CalibrationTold(Part):
    """How far probabilities can be trusted, before and after."""

    n: int
    ece_before: Estimate
    ece_after: Estimate
    ece_rise: Estimate
    nll_before: Estimate
    nll_after: Estimate
    nll_rise: Estimate


class Measured(Part):
    """What the guard measured on one set of verify images."""

    role: Name
    name: Name
    n: int
    looks_before: int
    accuracy_before: Estimate
    accuracy_after: Estimate
    drop: Drop
    lost: int
    gained: int
    mcnemar_p: float
    classes: tuple[GroupTold, ...] = ()
    slices: tuple[GroupTold, ...] = ()
    calibration: CalibrationTold | None = None


class FirstClass(Part):
    """One class of a first version, which has no before."""

    name: Name
    n: int
    right: int


class Measurements(Part):
    """``sets`` of an adaptation; ``accuracy`` to ``classes`` of a first version."""

    sets: tuple[Measured, ...] = ()
    looks: int = 0
    same_as: Name | None = None
    policy: dict[str, pydantic.JsonValue] = pydantic.Field(default_factory=dict)
    overrides: dict[str, pydantic.JsonValue] = pydantic.Field(default_factory=dict)
    accuracy: Estimate | None = None
    majority: float | None = None
    ece: float | None = None
    nll: float | None = None
    classes: tuple[FirstClass, ...] = ()


class VerdictTold(Part):
    """The guard's answer."""

    decision: Decision
    summary: Prose
    needed: int | None
    checks: tuple[CheckTold, ...]
    measurements: Measurements


Cell = tuple[int, int, int]  # label, answer, images


class Flip(Part):
    """An image whose answer changed sides."""

    id: Name
    blob: str
    label: int
    before: int
    after: int
    confidence: float | None


class SetTold(Part):
    """One set of verify images: how both files answered."""

    role: Literal["source", "target", "earlier"]
    domain: Name
    images: int
    before: float | None = None
    after: float | None = None
    confusion_before: tuple[Cell, ...] = ()
    confusion_after: tuple[Cell, ...] = ()
    lost: tuple[Flip, ...] = ()
    gained: tuple[Flip, ...] = ()


class EpochTold(Part):
    """One line of a learning curve; see ``training.diagnosis.Epoch``."""

    epoch: int
    train_loss: float
    train_accuracy: float
    select_accuracy: float | None = None
    select_nll: float | None = None


class CandidateTold(Part):
    """What one strategy made; see ``training.candidate.Candidate``."""

    strategy: Name
    stages: tuple[Name, ...]
    best_epoch: int
    seconds: float
    history: tuple[EpochTold, ...]


class ChangeTold(Part):
    """From the incumbent to a point of the line, image by image."""

    images: int
    lost: int
    won: int
    nll_rise: float

    @property
    def gain(self) -> float:
        """The rise of accuracy, in [-1, 1]."""
        return (self.won - self.lost) / self.images


class PointTold(Part):
    """One point of the line between incumbent and candidate."""

    alpha: float
    target: ChangeTold | None
    target_accuracy: float | None
    source: ChangeTold | None


class BlendTold(Part):
    """The line, and the point taken."""

    alpha: float
    reason: Prose
    curve: tuple[PointTold, ...]

    @property
    def chosen(self) -> PointTold | None:
        """The point taken."""
        return next((point for point in self.curve if point.alpha == self.alpha), None)


class FindingTold(Part):
    """A named failure, the numbers that show it, and the response."""

    failure: Name
    evidence: Prose
    response: Prose


class TrialTold(Part):
    """One strategy tried."""

    candidate: CandidateTold
    blend: BlendTold
    findings: tuple[FindingTold, ...] = ()


class Engine(Part):
    """What was tried, and which of it was taken."""

    chosen: int
    reason: Prose
    trials: tuple[TrialTold, ...]


class ArtifactsTold(Part):
    """The files' digests and sizes."""

    onnx: Name
    weights: Name
    onnx_bytes: int
    weights_bytes: int


class Cost(Part):
    """Of one exported file."""

    bytes: int
    milliseconds: float | None = None


class Parity(Part):
    """How closely the exported file answers as the network does."""

    images: int | None = None
    max_abs_logit: float | None = None
    real: bool = True


class Files(Part):
    """What was exported. ``cost`` is the incumbent's, if there is one, then the candidate's."""

    artifacts: ArtifactsTold
    parity: Parity = Parity()
    cost: tuple[Cost, ...] = ()


class VariantTold(Part):
    """A variant that was asked for; see ``worker.variants.TriedVariant``."""

    variant: Name
    decision: Decision | None
    agreement: float | None
    images: int
    told: Prose
    sha256: Name | None
    cost: tuple[Cost, ...]  # of fp32, then of the variant; empty if it could not be made


class Told(Part):
    """The whole document."""

    job: JobTold
    state: Literal["SUCCEEDED", "REJECTED", "INCONCLUSIVE"]
    version: Name | None = None
    verdict: VerdictTold | None
    architecture: Name | None = None
    labels: tuple[Name, ...]
    sets: tuple[SetTold, ...]
    engine: Engine | None = None
    files: Files
    variants: tuple[VariantTold, ...] = ()
    digests: dict[Name, Name] = pydantic.Field(default_factory=dict)
    screening: ScreeningTold | None = None
    label_suspects: tuple[Suspect, ...] = ()
    near_copies: CopiesTold = CopiesTold()
    seconds: dict[Name, float] = pydantic.Field(default_factory=dict)
    peak_memory_mib: float | None = None
    libraries: dict[Name, Name] = pydantic.Field(default_factory=dict)

    def label(self, index: int) -> str:
        """The name of a label by its place."""
        return self.labels[index] if index < len(self.labels) else f"#{index}"

    def of(self, role: str) -> SetTold | None:
        """The set of verify images in this role, the first one of several."""
        return next((one for one in self.sets if one.role == role), None)

    def measured(self, shown: SetTold) -> Measured | None:
        """What the guard measured on a set."""
        sets = () if self.verdict is None else self.verdict.measurements.sets
        named = [one for one in sets if one.name == shown.domain]
        return next((one for one in named if one.role == shown.role), named[0] if named else None)


def short(name: str | None) -> str:
    """The last part of a resource name: ``night`` of ``domains/night``."""
    return "" if name is None else name.rpartition("/")[2]
