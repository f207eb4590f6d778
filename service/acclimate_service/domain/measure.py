"""What a report shows of a set of verify images beside the checks, as JSON values."""

from __future__ import annotations

from collections.abc import Sequence

import pydantic

from acclimate_service.domain.calibration import Calibration, Estimate
from acclimate_service.domain.evidence import Paired
from acclimate_service.domain.groups import Group, classes_of, groups
from acclimate_service.domain.statistics import mcnemar, wilson
from acclimate_service.domain.tolerance import Tolerance
from acclimate_service.domain.verdict import Check

Json = dict[str, pydantic.JsonValue]

SLICES_MOST = 500  # rows of a set; a manifest holds them, and every server reads it


def share(successes: int, n: int) -> Json:
    """A share with Wilson's two-sided 95 % interval; None where there is no image."""
    low, high = wilson(successes, n, 0.025)
    return {"value": successes / n if n else None, "low": low, "high": high}


def measure(
    pairs: Paired,
    check: Check,
    allowed: Tolerance,
    confidence: Calibration | None,
    names: tuple[str, ...],
) -> Json:
    """One set: accuracies, the drop, flips by class and slice, calibration.

    ``check`` is the accuracy check of this set; the drop's interval is its own.
    """
    return {
        "name": pairs.name,
        "n": len(pairs),
        "looks_before": allowed.looks,
        "accuracy_before": share(int(pairs.before.sum()), len(pairs)),
        "accuracy_after": share(int(pairs.after.sum()), len(pairs)),
        "drop": {
            "value": check.observed,
            "low": None if check.interval is None else check.interval[0],
            "high": None if check.interval is None else check.interval[1],
            "limit": allowed.limit,
            "margin": allowed.margin,
            "level_low": allowed.level,
            "level_high": allowed.spent,
        },
        "lost": check.lost,
        "gained": check.gained,
        "mcnemar_p": mcnemar(check.lost, check.gained),
        "classes": [
            group.to_json() for group in groups(pairs, classes_of(pairs, names), allowed.level)
        ],
        "slices": _telling(groups(pairs, pairs.slices, allowed.level)),
        "slices_in_all": len(pairs.slices),
        "calibration": None if confidence is None else calibration_json(confidence),
    }


def _telling(found: Sequence[Group]) -> list[pydantic.JsonValue]:
    """The rows of all groups; of more than ``SLICES_MOST`` those that changed most."""
    if len(found) > SLICES_MOST:
        changed = sorted(found, key=lambda group: (-group.lost - group.gained, -group.n))
        kept = {group.name for group in changed[:SLICES_MOST]}
        found = [group for group in found if group.name in kept]
    return [group.to_json() for group in found]


def calibration_json(found: Calibration) -> Json:
    """ECE and NLL before, after and their rise, each with its bootstrap interval."""
    return {
        "n": found.n,
        "ece_before": _estimate(found.ece_before),
        "ece_after": _estimate(found.ece_after),
        "ece_rise": _estimate(found.ece_rise),
        "nll_before": _estimate(found.nll_before),
        "nll_after": _estimate(found.nll_after),
        "nll_rise": _estimate(found.nll_rise),
    }


def _estimate(found: Estimate) -> Json:
    return {"value": found.value, "low": found.low, "high": found.high}
