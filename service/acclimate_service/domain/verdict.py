"""What the guard says: a decision, the checks it rests on, and what would decide."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, field

import pydantic

from acclimate_service.domain.comparison import Comparison


class Decision(enum.Enum):
    """What follows from a check, or from all of them together."""

    ACCEPT = "ACCEPT"  # harm beyond the limits is excluded
    REJECT = "REJECT"  # harm is shown
    INCONCLUSIVE = "INCONCLUSIVE"  # neither; goes live as little as a rejected one


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question the guard asked, and its answer.

    ``decided_by`` are the numbers that gave the answer, each beside its limit.
    ``observed``, ``interval`` and ``limit`` are in ``unit``. A *drop* is what the
    incumbent has more than the candidate: positive means the candidate is worse.
    ``lost`` images were right before and are wrong now (negative flips),
    ``gained`` the reverse. ``needed`` is how many verify images, in all, would
    decide if the rates stay as observed; None when the check is decided or no
    number of images can help.
    """

    name: str  # "source accuracy", "domains/webcam classes", …
    decision: Decision
    unit: str
    observed: float | None
    interval: tuple[float, float] | None
    limit: float
    n: int
    lost: int
    gained: int
    needed: int | None
    message: str
    decided_by: tuple[Comparison, ...]

    def to_json(self) -> dict[str, pydantic.JsonValue]:
        """The check as JSON values."""
        return {
            **asdict(self),
            "decision": self.decision.value,
            "interval": None if self.interval is None else list(self.interval),
            "decided_by": [one.to_json() for one in self.decided_by],
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The guard's answer. ``measurements`` hold what a report shows beside the checks."""

    decision: Decision
    checks: tuple[Check, ...]
    summary: str
    needed: int | None
    measurements: dict[str, pydantic.JsonValue] = field(default_factory=dict)

    def to_json(self) -> dict[str, pydantic.JsonValue]:
        """The verdict as JSON values: no NaN, no infinity, no numpy scalars."""
        return {
            "decision": self.decision.value,
            "summary": self.summary,
            "needed": self.needed,
            "checks": [check.to_json() for check in self.checks],
            "measurements": self.measurements,
        }
