"""What the guard says: a decision, the checks it rests on, and what would decide.

A verdict is told in full once, in a file. The rows of a store, which are read with every
version and every job, have it in brief: those of a thousand versions that each know a
thousand domains would otherwise be gigabytes.
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, field

import pydantic

from acclimate_service.domain.comparison import Comparison

ROWS_MOST = 8  # domains accepted earlier whose checks a row of the store tells in full


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

    @property
    def domain(self) -> str | None:
        """The domain accepted earlier that it is about, if it is about one."""
        words = self.name.split(" ")
        return words[1] if words[0] == "earlier" else None

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

    def brief(self) -> dict[str, pydantic.JsonValue]:
        """What decides, as JSON values, whose size hardly grows with domains and classes.

        Of more than ``ROWS_MOST`` domains accepted earlier, the checks that accept are told
        by a row each under ``earlier``; the rows of classes and slices are left out.
        """
        of_domain = {check.domain for check in self.checks} - {None}
        many = len(of_domain) > ROWS_MOST
        kept = [
            check
            for check in self.checks
            if not many or check.domain is None or check.decision is not Decision.ACCEPT
        ]
        earlier: dict[str, dict[str, pydantic.JsonValue]] = {}
        for check in self.checks if many else ():
            kind = check.name.rpartition(" ")[2]
            if check.domain is not None and kind in ("accuracy", "creep"):
                row: dict[str, pydantic.JsonValue] = {"creep": check.observed}
                if kind == "accuracy":
                    row = {"n": check.n, "lost": check.lost, "gained": check.gained}
                earlier[check.domain] = {**earlier.get(check.domain, {}), **row}
        return {
            "decision": self.decision.value,
            "summary": self.summary,
            "needed": self.needed,
            "checks": [check.to_json() for check in kept],
            "earlier": {**earlier},
            "measurements": _brief(self.measurements, many=many),
        }


def _brief(
    measurements: dict[str, pydantic.JsonValue], *, many: bool
) -> dict[str, pydantic.JsonValue]:
    """Measurements without rows of classes and slices; with *many*, of source and target alone."""
    found = {key: value for key, value in measurements.items() if key != "classes"}
    if many:
        found.pop("backward_transfer", None)  # nothing was measured with answers that are unsound
    sets = found.get("sets")
    if isinstance(sets, list):
        found["sets"] = [
            {key: value for key, value in one.items() if key not in ("classes", "slices")}
            for one in sets
            if isinstance(one, dict) and not (many and one["role"] == "earlier")
        ]
    return found
