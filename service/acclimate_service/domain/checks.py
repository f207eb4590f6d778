"""The guard's questions, one function each: evidence in, a Check with its sentence out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from acclimate_service.domain.calibration import Calibration, Estimate
from acclimate_service.domain.evidence import Evidence, Floats, Ints, Paired, Since
from acclimate_service.domain.groups import Group, enlarged, groups, weigh
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.statistics import drop_interval, mcnemar
from acclimate_service.domain.tolerance import Tolerance
from acclimate_service.domain.verdict import Check, Decision
from acclimate_service.domain.wording import at_worst, more_images, points, some, sure

ACCURACY = "drop in accuracy"
UNDECIDED = Decision.INCONCLUSIVE

# What is assumed of a set nobody has seen: of a hundred images one lost, one gained.
_ASSUMED = 0.01


def tolerance(policy: GuardPolicy, role: str, evidence: Evidence) -> Tolerance:
    """The limits of *role*: "source", "target" or "earlier"."""
    if role == "target":
        better = policy.target_goal == "better"
        limit, margin = 0.0, 0.0 if better else policy.target_margin
    elif role == "source":
        limit, margin = policy.source_drop_limit, policy.source_margin
    else:
        limit, margin = policy.earlier_drop_limit, policy.earlier_margin
    return Tolerance(limit=limit, margin=margin, level=policy.level, looks=evidence.looks)


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
        unit="images without a probability distribution",
        observed=float(bad.sum()),
        limit=0.0,
        n=len(bad),
        message=f"{name}: for {bad.sum()} of {len(bad)} images the answer is not a probability "
        "distribution (NaN, infinite, negative, or not adding up to 1)",
    )


def accuracy(name: str, pairs: Paired | None, allowed: Tolerance) -> Check:
    """Whether the drop in accuracy on one set is tolerated."""
    if pairs is None or not len(pairs):
        return _unseen(name, allowed)
    n, before, after = len(pairs), pairs.before, pairs.after
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    decision = allowed.decide(lost, gained, n)
    interval = drop_interval(lost, gained, n, low_level=allowed.level, high_level=allowed.spent)
    undecided = decision is UNDECIDED
    needed = allowed.needed(lost / n, gained / n, n) if undecided else None
    drop = (lost - gained) / n

    if allowed.within(lost, gained, n):
        reason = f"{at_worst(interval[1])} with {sure(allowed.spent)} confidence"
        reason += f" at look {allowed.looks + 1}" if allowed.looks else ""
        excluded = points(allowed.margin) if allowed.margin else "that it is no better"
        reason += f", which does not exclude {excluded}" if undecided else ""
    else:
        reason = f"a drop of {points(drop)}, over the limit of {points(allowed.limit)}, "
        reason += "which may be chance" if undecided else "more than chance explains"
        reason += f" (exact p = {mcnemar(lost, gained):.2g})"
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
        message=(
            f"{name}: {before.mean():.1%} right before, {after.mean():.1%} after "
            f"({lost} lost, {gained} gained of {n} images); {reason}"
            + (f"; {more_images(needed, n)}" if undecided else "")
        ),
    )


def creep(name: str, since: Since, allowed: Tolerance) -> Check:
    """Whether many small drops have added up, by the version that set the standard.

    Each version is weighed against the one before, and may lose what *allowed* allows; a
    chain of them would lose without end ("bio-creep" in non-inferiority trials:
    Everson-Stewart and Emerson, Statistics in Medicine 29 (2010), 2769-2780). All of them
    together may lose one margin as observed, and two must be excluded.
    """
    over_all = replace(allowed, limit=allowed.margin, margin=min(2 * allowed.margin, 0.99))
    found = accuracy(f"{name} since {since.version}", since.pairs, over_all)
    return replace(found, name=f"{name} creep")


def _unseen(name: str, allowed: Tolerance) -> Check:
    """The answer where there is no image to judge by."""
    gained = _ASSUMED if allowed.margin else 11 * _ASSUMED  # better by ten points, to show a gain
    needed = allowed.needed(_ASSUMED, gained, 0)
    return Check(
        name=f"{name} accuracy",
        decision=UNDECIDED,
        unit=ACCURACY,
        observed=None,
        interval=None,
        limit=allowed.limit,
        n=0,
        lost=0,
        gained=0,
        needed=needed,
        message=f"{name}: there is no verify image, so nothing is known; {more_images(needed, 0)}",
    )


def classes(
    name: str, pairs: Paired, parts: Mapping[str, Ints], *, limit: float, level: float
) -> Check:
    """Whether any class is harmed while the set is not."""
    return _parts(f"{name} classes", groups(pairs, parts, level), len(pairs), limit, level)


def slices(
    name: str, pairs: Paired, parts: Mapping[str, Ints], *, limit: float, level: float
) -> Check:
    """Whether any slice (camera, shift, light) is harmed while the set is not."""
    return _parts(f"{name} slices", groups(pairs, parts, level), len(pairs), limit, level)


def _parts(name: str, found: tuple[Group, ...], n: int, limit: float, level: float) -> Check:
    harmed = [g for g in found if weigh(g, limit=limit, level=level) is Decision.REJECT]
    alarming = [g for g in found if weigh(g, limit=limit, level=level) is UNDECIDED]
    small = [group.name for group in found if not group.judged]
    needed = None
    if harmed:
        decision = Decision.REJECT
        message = f"{name}: more was lost than chance explains: {some(map(_loss, harmed))}"
    elif alarming:
        decision = UNDECIDED
        family = max(1, sum(group.judged for group in found))
        factor = max(enlarged(group, family=family, level=level) for group in alarming)
        needed = math.ceil(n * factor)
        message = (
            f"{name}: {some(map(_loss, alarming))}: too few images to tell harm from chance, too "
            f"drastic to pass; {more_images(needed, n)}"
        )
    else:
        decision = Decision.ACCEPT
        message = f"{name}: none of {len(found)} is shown to be harmed"
    worst = max(harmed or alarming or found, key=lambda group: group.drop, default=None)
    return Check(
        name=name,
        decision=decision,
        unit=f"{ACCURACY}, the worst one",
        observed=None if worst is None else worst.drop,
        interval=None,
        limit=limit,
        n=0 if worst is None else worst.n,
        lost=0 if worst is None else worst.lost,
        gained=0 if worst is None else worst.gained,
        needed=needed,
        message=message + (f"; too small to judge: {some(small)}" if small else ""),
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
        UNDECIDED if short else Decision.ACCEPT,
        unit="classes with too few images",
        observed=float(len(short)),
        limit=0.0,
        n=len(pairs),
        needed=needed,
        message=f"{name}: class {some(labels)} has {few}, so harm to it would go unseen; hold out "
        "images of it"
        if short
        else f"{name}: every class has at least {minimum} verify images",
    )


def confidence(name: str, measured: Calibration, policy: GuardPolicy) -> tuple[Check, Check]:
    """Whether the candidate's probabilities are trusted no less: NLL, then ECE.

    A rise in ECE is no harm where NLL has fallen beyond doubt: NLL is a proper scoring
    rule and ECE is none (Gneiting and Raftery, JASA 102 (2007), 359-378). A candidate
    that is right far more often, and modest about it, is not to be held up for that.
    """
    n = measured.n
    nll = _rise(f"{name} NLL", "rise in NLL, nats", measured.nll_rise, policy.nll_rise_limit, n)
    ece = _rise(f"{name} ECE", "rise in ECE", measured.ece_rise, policy.ece_rise_limit, n)
    if ece.decision is not Decision.ACCEPT and measured.nll_rise.high < 0:
        ece = replace(
            ece,
            decision=Decision.ACCEPT,
            needed=None,
            message=f"{name} ECE changed by {measured.ece_rise.value:+.3f}, while NLL fell by "
            f"{-measured.nll_rise.value:.2f} nats for sure: it tells more than before",
        )
    return nll, ece


def _rise(name: str, unit: str, rise: Estimate, limit: float, n: int) -> Check:
    needed = None
    seen = f"{name} changed by {rise.value:+.3f} (90% bootstrap interval {rise.low:+.3f} to "
    seen += f"{rise.high:+.3f}, limit {limit:+g})"
    if rise.value <= limit:
        decision, message = Decision.ACCEPT, seen
    elif rise.low > limit:
        decision, message = Decision.REJECT, f"{seen}: its probabilities mean less than before"
    else:
        decision = UNDECIDED
        # The interval shrinks with the root of n.
        needed = n + max(
            1, math.ceil(n * ((rise.value - rise.low) / (rise.value - limit)) ** 2) - n
        )
        message = f"{seen}: undecided; {more_images(needed, n)}"
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


def labels(policy: GuardPolicy, *, train: float, held_out: float) -> tuple[Check, Check]:
    """Whether the labels learned from can be believed, and those judged by.

    *train* and *held_out* are the shares that were screened as suspect. Wrong labels to
    learn from are harm; wrong ones to judge by only leave it unknown.
    """
    return (
        _believed("labels", "train", train, policy.label_suspects_limit, Decision.REJECT),
        _believed("held-out labels", "verify", held_out, policy.label_suspects_limit, UNDECIDED),
    )


def _believed(name: str, split: str, share: float, limit: float, otherwise: Decision) -> Check:
    return _plain(
        name,
        Decision.ACCEPT if share <= limit else otherwise,
        unit=f"share of suspect {split} labels",
        observed=share,
        limit=limit,
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
        unit="candidate / incumbent",
        observed=ratio,
        limit=limit,
        message=f"{name}: {ratio:.2f} times the incumbent's, the limit is {limit:g}",
    )


def _loss(group: Group) -> str:
    return (
        f"{group.name} ({group.right_before} of {group.n} right before, {group.right_after} after)"
    )


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
