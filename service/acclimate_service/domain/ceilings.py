"""The guard's questions that one number answers: coverage, labels, costs, sound answers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from acclimate_service.domain.comparison import Measure, within
from acclimate_service.domain.evidence import Evidence, Floats, Paired
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.verdict import Check, Decision
from acclimate_service.domain.wording import some


def sound_probabilities(name: str, probabilities: Floats) -> Check | None:
    """A REJECT if any row is not a probability distribution, None if all are."""
    if not probabilities.size:
        return None
    with np.errstate(invalid="ignore"):  # a NaN or an infinity fails the sum's comparison
        adds_up = np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1) <= 1e-2
        bad = ~(adds_up & (probabilities.min(axis=1) >= -1e-6))
    if not bad.any():
        return None
    return _plain(
        f"{name} probabilities",
        Decision.REJECT,
        what="images",
        unit="images without a probability distribution",
        observed=float(bad.sum()),
        limit=0.0,
        measure="count",
        n=len(bad),
        message=f"{name}: for {bad.sum()} of {len(bad)} images the answer is not a probability "
        "distribution (NaN, infinite, negative, or not adding up to 1)",
    )


def coverage(
    name: str, pairs: Paired, expected: Iterable[int], names: tuple[str, ...], minimum: int
) -> Check:
    """Whether every class that must be looked at has *minimum* verify images."""
    counts = np.bincount(pairs.labels, minlength=pairs.candidate.shape[1])
    short = {index: minimum - int(counts[index]) for index in expected if counts[index] < minimum}
    labels = [names[i] if i < len(names) else f"#{i}" for i in short]
    needed = len(pairs) + sum(short.values()) if short else None
    few = "no verify image" if minimum == 1 else f"fewer than {minimum} verify images"
    return _plain(
        f"{name} coverage",
        Decision.INCONCLUSIVE if short else Decision.ACCEPT,
        what="classes",
        unit="classes with too few images",
        observed=float(len(short)),
        limit=0.0,
        measure="count",
        n=len(pairs),
        needed=needed,
        message=f"{name}: class {some(labels)} has {few}, so harm to it would go unseen; hold out "
        "images of it"
        if short
        else f"{name}: every class has at least {minimum} verify images",
    )


def labels(policy: GuardPolicy, *, train: float, held_out: float) -> tuple[Check, Check]:
    """Whether the labels learned from can be believed, and those judged by.

    *train* and *held_out* are the shares that were screened as suspect. Wrong labels to
    learn from are harm; wrong ones to judge by only leave it unknown.
    """
    limit, unknown = policy.label_suspects_limit, Decision.INCONCLUSIVE
    return (
        _believed("labels", "train", train, limit, Decision.REJECT),
        _believed("held-out labels", "verify", held_out, limit, unknown),
    )


def _believed(name: str, split: str, share: float, limit: float, otherwise: Decision) -> Check:
    return _plain(
        name,
        Decision.ACCEPT if share <= limit else otherwise,
        what="suspect",
        unit=f"share of suspect {split} labels",
        observed=share,
        limit=limit,
        measure="share",
        message=f"{share:.1%} of the {split} labels are suspect, the limit is {limit:.1%}"
        + ("" if share <= limit else "; look at the listed images and upload them again"),
    )


def costs(policy: GuardPolicy, evidence: Evidence) -> list[Check]:
    """Size and latency of the candidate's file against the incumbent's, where measured."""
    old, new = evidence.incumbent_file, evidence.candidate_file
    if old is None or new is None:
        return []
    found = [_ratio("size", new.bytes / old.bytes, policy.size_ratio_limit)]
    if old.milliseconds and new.milliseconds:
        times = new.milliseconds / old.milliseconds
        found.append(_ratio("latency", times, policy.latency_ratio_limit))
    return found


def _ratio(name: str, ratio: float, limit: float) -> Check:
    return _plain(
        name,
        Decision.ACCEPT if ratio <= limit else Decision.REJECT,
        what=name,
        unit="candidate / incumbent",
        observed=ratio,
        limit=limit,
        measure="ratio",
        message=f"{name}: {ratio:.2f} times the incumbent's, the limit is {limit:g}",
    )


def _plain(
    name: str,
    decision: Decision,
    *,
    what: str,
    unit: str,
    observed: float,
    limit: float,
    measure: Measure,
    message: str,
    n: int = 0,
    needed: int | None = None,
) -> Check:
    """A check that rests on a number alone, without flips or an interval."""
    return Check(
        name=name,
        decision=decision,
        unit=unit,
        observed=observed,
        interval=None,
        limit=limit,
        n=n,
        lost=0,
        gained=0,
        needed=needed,
        message=message,
        decided_by=(within(what, observed, limit, measure),),
    )
