"""The guard's questions, one function each: evidence in, a Check with its sentence out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from acclimate_service.domain.calibration import Calibration, Estimate
from acclimate_service.domain.evidence import Bools, Evidence, Floats, Paired
from acclimate_service.domain.examples import SELECT_SHARE
from acclimate_service.domain.groups import Group, enlarged, groups, verdict_on
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.statistics import drop_interval, mcnemar
from acclimate_service.domain.tolerance import Tolerance
from acclimate_service.domain.verdict import Check, Decision

ACCURACY = "drop in accuracy"

# What is assumed of a set nobody has seen: of a hundred images one lost, one gained.
_ASSUMED = 0.01


def tolerance(policy: GuardPolicy, role: str, evidence: Evidence) -> Tolerance:
    """The limits of *role*: "source", "target" or "earlier"."""
    looks = evidence.looks
    if role == "target":
        better = policy.target_goal == "better"
        limit, margin = 0.0, 0.0 if better else policy.target_margin
        looks = looks if evidence.target_looks is None else evidence.target_looks
    elif role == "source":
        limit, margin = policy.source_drop_limit, policy.source_margin
    else:
        limit, margin = policy.earlier_drop_limit, policy.earlier_margin
    return Tolerance(limit=limit, margin=margin, level=policy.level, looks=looks)


def sound_probabilities(name: str, probabilities: Floats) -> Check | None:
    """A REJECT if any row is not a probability distribution, None if all are."""
    rows = probabilities.astype(np.float64)
    bad = ~np.isfinite(rows).all(axis=1)
    with np.errstate(invalid="ignore"):
        bad |= (rows < -1e-6).any(axis=1) | (np.abs(rows.sum(axis=1) - 1) > 1e-2)
    if not bad.any():
        return None
    return _plain(
        f"{name} probabilities",
        Decision.REJECT,
        unit="images without a probability distribution",
        observed=float(bad.sum()),
        limit=0.0,
        n=len(rows),
        message=f"{name}: for {bad.sum()} of {len(rows)} images the answer is not a probability "
        "distribution (NaN, infinite, negative, or not adding up to 1)",
    )


def accuracy(name: str, pairs: Paired | None, allowed: Tolerance) -> Check:
    """Whether the drop in accuracy on one set is tolerated."""
    n = 0 if pairs is None else len(pairs)
    if pairs is None or n == 0:
        needed = allowed.needed(_ASSUMED, _ASSUMED if allowed.margin else 11 * _ASSUMED, 0)
        return Check(
            name=f"{name} accuracy",
            decision=Decision.INCONCLUSIVE,
            unit=ACCURACY,
            observed=None,
            interval=None,
            limit=allowed.limit,
            n=0,
            lost=0,
            gained=0,
            needed=needed,
            message=f"{name}: there is no verify image, so nothing is known; " + _more(needed, 0),
        )
    before, after = pairs.before, pairs.after
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    decision = allowed.decide(lost, gained, n)
    interval = drop_interval(lost, gained, n, low_level=allowed.level, high_level=allowed.spent)
    needed = None
    if decision is Decision.INCONCLUSIVE:
        needed = allowed.needed(lost / n, gained / n, n)
    seen = (
        f"{name}: {before.mean():.1%} right before, {after.mean():.1%} after "
        f"({lost} lost, {gained} gained of {n} images); "
    )
    drop = (lost - gained) / n
    sure = f"{1 - allowed.spent:.1%} confidence"
    if decision is Decision.ACCEPT:
        message = seen + f"{_bound(interval[1])} with {sure}"
    elif decision is Decision.REJECT:
        message = seen + (
            f"a drop of {points(drop)}, over the limit of {points(allowed.limit)}, "
            f"and not by chance (exact p = {mcnemar(lost, gained):.2g})"
        )
    elif drop > allowed.limit + 1e-12:
        message = seen + (
            f"a drop of {points(drop)}, over the limit of {points(allowed.limit)}, which may be "
            f"chance (exact p = {mcnemar(lost, gained):.2g}); " + _more(needed, n)
        )
    else:
        excluded = points(allowed.margin) if allowed.margin else "no gain at all"
        message = seen + (
            f"{_bound(interval[1])} with {sure}, which does not exclude {excluded}; "
            + _more(needed, n)
        )
    return Check(
        name=f"{name} accuracy",
        decision=decision,
        unit=ACCURACY,
        observed=drop,
        interval=interval,
        limit=allowed.limit,
        n=n,
        lost=lost,
        gained=gained,
        needed=needed,
        message=message,
    )


def classes(
    name: str, pairs: Paired, masks: Mapping[str, Bools], *, limit: float, level: float
) -> Check:
    """Whether any class is harmed while the set is not."""
    return _parts(f"{name} classes", "class", pairs, groups(pairs, masks, level), limit, level)


def slices(
    name: str, pairs: Paired, masks: Mapping[str, Bools], *, limit: float, level: float
) -> Check:
    """Whether any slice (camera, shift, light) is harmed while the set is not."""
    return _parts(f"{name} slices", "slice", pairs, groups(pairs, masks, level), limit, level)


def _parts(
    name: str, kind: str, pairs: Paired, found: tuple[Group, ...], limit: float, level: float
) -> Check:
    decisions = [verdict_on(group, limit=limit, level=level) for group in found]
    worst = max(found, key=lambda group: (not group.p_adjusted > level, group.drop), default=None)
    small = [group.name for group in found if not group.judged]
    note = f"; too small to judge: {_some(small)}" if small else ""
    needed = None
    if Decision.REJECT in decisions:
        decision = Decision.REJECT
        harmed = [g for g, d in zip(found, decisions, strict=True) if d is Decision.REJECT]
        message = f"{name}: {_some(_loss(group) for group in harmed)}; not by chance" + note
    elif Decision.INCONCLUSIVE in decisions:
        decision = Decision.INCONCLUSIVE
        alarming = [g for g, d in zip(found, decisions, strict=True) if d is Decision.INCONCLUSIVE]
        family = max(1, sum(group.judged for group in found))
        factor = max(enlarged(group, family=family, level=level) for group in alarming)
        needed = math.ceil(len(pairs) * factor)
        message = (
            f"{name}: {_some(_loss(group) for group in alarming)}; too few images to tell "
            "harm from chance, too drastic to pass; " + _more(needed, len(pairs)) + note
        )
        worst = max(alarming, key=lambda group: group.drop)
    else:
        decision = Decision.ACCEPT
        message = f"{name}: no {kind} of {len(found)} is shown to be harmed{note}"
    return Check(
        name=name,
        decision=decision,
        unit=f"drop in accuracy of the worst {kind}",
        observed=None if worst is None else worst.drop,
        interval=None,
        limit=limit,
        n=0 if worst is None else worst.n,
        lost=0 if worst is None else worst.lost,
        gained=0 if worst is None else worst.gained,
        needed=needed,
        message=message,
    )


def coverage(
    name: str, pairs: Paired, expected: Iterable[int], names: tuple[str, ...], minimum: int
) -> Check:
    """Whether every class that must be looked at has *minimum* verify images."""
    counts = np.bincount(pairs.labels, minlength=pairs.candidate.shape[1])
    short = {index: minimum - int(counts[index]) for index in expected if counts[index] < minimum}
    labels = [names[i] if i < len(names) else f"#{i}" for i in short]
    needed = len(pairs) + sum(short.values()) if short else None
    return _plain(
        f"{name} coverage",
        Decision.INCONCLUSIVE if short else Decision.ACCEPT,
        unit="classes with too few images",
        observed=float(len(short)),
        limit=0.0,
        n=len(pairs),
        needed=needed,
        message=f"{name}: class {_some(labels)} has fewer than {minimum} verify images, so harm to "
        "it would go unseen; hold out images of it"
        if short
        else f"{name}: every class has at least {minimum} verify images",
    )


def confidence(name: str, measured: Calibration, policy: GuardPolicy) -> tuple[Check, Check]:
    """Whether the candidate's probabilities are trusted no less: NLL, then ECE."""
    n = measured.n
    nll = _rise(f"{name} NLL", "rise in NLL, nats", measured.nll_rise, policy.nll_rise_limit, n)
    ece = _rise(f"{name} ECE", "rise in ECE", measured.ece_rise, policy.ece_rise_limit, n)
    return nll, ece


def _rise(name: str, unit: str, rise: Estimate, limit: float, n: int) -> Check:
    needed = None
    seen = f"{name} changed by {rise.value:+.3f} (90 % bootstrap interval {rise.low:+.3f} to "
    seen += f"{rise.high:+.3f}, limit {limit:+g})"
    if rise.value <= limit:
        decision, message = Decision.ACCEPT, seen
    elif rise.low > limit:
        decision, message = Decision.REJECT, f"{seen}: its probabilities mean less than before"
    else:
        decision = Decision.INCONCLUSIVE
        # The interval shrinks with the root of n.
        needed = n + max(
            1, math.ceil(n * ((rise.value - rise.low) / (rise.value - limit)) ** 2) - n
        )
        message = f"{seen}: undecided; {_more(needed, n)}"
    return Check(
        name=name,
        decision=decision,
        unit=unit,
        observed=rise.value,
        interval=(rise.low, rise.high),
        limit=limit,
        n=n,
        lost=0,
        gained=0,
        needed=needed,
        message=message,
    )


def label_noise(policy: GuardPolicy, share: float) -> Check:
    """Whether the labels that the candidate learned from can be believed."""
    limit = policy.label_suspects_limit
    return _plain(
        "labels",
        Decision.ACCEPT if share <= limit else Decision.REJECT,
        unit="share of suspect train labels",
        observed=share,
        limit=limit,
        message=f"{share:.1%} of the target's train labels are suspect, the limit is {limit:.1%}"
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
        unit="candidate / incumbent",
        observed=ratio,
        limit=limit,
        message=f"{name}: {ratio:.2f} times the incumbent's, the limit is {limit:g}",
    )


def points(share: float) -> str:
    """A difference of shares in percentage points, for people."""
    return f"{100 * share:.1f} points"


def _bound(high: float) -> str:
    """What the upper bound of the drop says, as a loss or as a gain."""
    if high < 0:
        return f"better by at least {points(-high)}"
    return f"worse by at most {points(high)}"


def _loss(group: Group) -> str:
    return (
        f"{group.name} ({group.right_before} of {group.n} right before, {group.right_after} after)"
    )


def _more(needed: int | None, n: int) -> str:
    """What to do about being undecided."""
    if needed is None:
        return "no number of images would decide at these rates"
    held_out = math.ceil((needed - n) / (1 - SELECT_SHARE))
    return (
        f"about {needed} verify images would decide "
        f"(hold out {held_out} more images; {1 - SELECT_SHARE:.0%} of them verify)"
    )


def _some(names: Iterable[str], most: int = 5) -> str:
    """The first few of *names*, and how many more there are."""
    listed = list(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest


def _plain(
    name: str,
    decision: Decision,
    *,
    unit: str,
    observed: float,
    limit: float,
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
    )
