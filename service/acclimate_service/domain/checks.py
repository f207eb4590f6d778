"""The guard's questions, one function each: evidence in, a Check with its sentence out.

Those that one number answers are in ``ceilings.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from acclimate_service.domain.calibration import Calibration, Estimate
from acclimate_service.domain.comparison import Comparison, Relation, at_least, within
from acclimate_service.domain.evidence import Evidence, Ints, Paired, Since
from acclimate_service.domain.groups import Group, enlarged, groups, weigh
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.statistics import drop_interval, mcnemar
from acclimate_service.domain.tolerance import MOST, Tolerance
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


def accuracy(name: str, pairs: Paired | None, allowed: Tolerance) -> Check:
    """Whether the drop in accuracy on one set is tolerated."""
    if pairs is None or not len(pairs):
        return _unseen(name, allowed)
    n, before, after = len(pairs), pairs.before, pairs.after
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    decision = allowed.decide(lost, gained, n)
    low, high = drop_interval(lost, gained, n, low_level=allowed.level, high_level=allowed.spent)
    undecided = decision is UNDECIDED
    needed = allowed.needed(lost / n, gained / n, n) if undecided else None
    drop = (lost - gained) / n
    kept = allowed.within(lost, gained, n)
    if kept:  # the bound is found by halving, the answer is exact: it may not contradict it
        high = max(high, allowed.margin) if undecided else min(high, allowed.margin)

    if kept:
        reason = f"{at_worst(high)} with {sure(allowed.spent)} confidence"
        reason += f" at look {allowed.looks + 1}" if allowed.looks else ""
        excluded = points(allowed.margin) if allowed.margin else "that it is no better"
        reason += f", which does not exclude {excluded}" if undecided else ""
    else:
        reason = f"a drop of {points(drop)}, over the limit of {points(allowed.limit)}, "
        reason += "which may be chance" if undecided else "more than chance explains"
        reason += f" (exact p = {mcnemar(lost, gained):.2g})"
    drops = Comparison(
        what="drop",
        value=drop,
        relation="≤" if kept else ">",
        limit=allowed.limit,
        measure="points",
    )
    told: Relation = "<" if high < allowed.margin else "≤"
    bound = Comparison(
        what="at worst",
        value=high,
        relation="≥" if undecided else told,
        limit=allowed.margin,
        measure="points",
    )
    chance = within("p", mcnemar(lost, gained), allowed.level, "p")
    return Check(
        name=f"{name} accuracy",
        decision=decision,
        unit=ACCURACY,
        observed=drop,
        interval=(low, high),
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
        decided_by=(drops, bound if kept else chance),
    )


def creep(name: str, since: Since, allowed: Tolerance) -> Check:
    """Whether many small drops have added up, by the version that set the standard.

    Each version is weighed against the one before, and may lose what its own limits allow;
    a chain of them would lose without end ("bio-creep" in non-inferiority trials:
    Everson-Stewart and Emerson, Statistics in Medicine 29 (2010), 2769-2780). *allowed* is
    what all of them may lose together.
    """
    found = accuracy(f"{name} since {since.version}", since.pairs, allowed)
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
        decided_by=(at_least("images", 0, 1, "count"),),
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
        decided_by=_worst_of(found, worst, limit=limit, level=level),
    )


def _worst_of(
    found: tuple[Group, ...], worst: Group | None, *, limit: float, level: float
) -> tuple[Comparison, ...]:
    """What the answer about groups rests on: the worst drop; if over the limit, its p-value.

    Where none is harmed it is the least p-value of all that are over the limit; a drop that
    alarms is so large that chance is no excuse for it.
    """
    if worst is None:
        return ()
    drop = within("worst drop", worst.drop, limit, "points")
    if worst.drop <= limit:
        return (drop,)
    if worst.p_adjusted <= level:
        return drop, within("p", worst.p_adjusted, level, "p")
    if worst.drastic is not None:
        drop = at_least("worst drop", worst.drop, worst.drastic, "points")
        return drop, within("p", worst.p_adjusted, level, "p")
    least = min(group.p_adjusted for group in found if group.drop > limit)
    return drop, within("least p", least, level, "p")


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
            decided_by=(
                ece.decided_by[0],
                Comparison(
                    what="NLL at most",
                    value=measured.nll_rise.high,
                    relation="<",
                    limit=0.0,
                    measure="rise",
                ),
            ),
        )
    return nll, ece


def _rise(name: str, unit: str, rise: Estimate, limit: float, n: int) -> Check:
    needed = None
    seen = f"{name} changed by {rise.value:+.3f} (90% bootstrap interval {rise.low:+.3f} to "
    seen += f"{rise.high:+.3f}, limit {limit:+g})"
    by: tuple[Comparison, ...] = (within("rise", rise.value, limit, "rise"),)
    if rise.value <= limit:
        decision, message = Decision.ACCEPT, seen
    elif rise.low > limit:
        decision, message = Decision.REJECT, f"{seen}: its probabilities mean less than before"
    else:
        decision = UNDECIDED
        # The interval shrinks with the root of n.
        more = n * ((rise.value - rise.low) / (rise.value - limit)) ** 2
        needed = max(n + 1, math.ceil(more)) if more <= MOST else None
        message = f"{seen}: undecided; {more_images(needed, n)}"
    if decision is not Decision.ACCEPT:
        by = (*by, within("at least", rise.low, limit, "rise"))
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
        decided_by=by,
    )


def _loss(group: Group) -> str:
    return (
        f"{group.name} ({group.right_before} of {group.n} right before, {group.right_after} after)"
    )
