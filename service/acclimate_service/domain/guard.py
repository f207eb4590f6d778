"""The guard: whether a candidate may become a version.

The rule, in full. It fails closed: a candidate is ACCEPTed only if every check
accepts, REJECTed if any check shows harm, and INCONCLUSIVE otherwise, with the
number of verify images that would decide.

* **Source**: the observed drop is at most ``source_drop_limit`` *and* a true drop
  of ``source_margin`` is excluded. Over the limit and not by chance: REJECT.
* **Every domain accepted earlier**: the same, with its own limit and margin.
* **Creep** on each of them: against the version that set the standard, which may be
  many versions ago, ``source_creep_limit`` may be lost, and ``source_creep_margin`` is excluded.
* **Target**: not worse as observed, and a drop of ``target_margin`` is excluded;
  or, where the goal is "better", a gain is shown. A variant of a version has none.
* **Classes and slices** of every set: REJECT for a loss that stands after Holm's
  correction; INCONCLUSIVE for a drastic one that too few images show.
* **Coverage**: every class the incumbent knows has source-verify images, every
  class it does not know has target-verify images.
* **NLL and ECE**, the **size** and **latency** of the file, **suspect labels**:
  within their limits (suspect verify labels beyond it: INCONCLUSIVE, as nothing that
  they show can be believed). Answers that are no probabilities are harm.

Because *all* checks must accept, each may use the whole level: a candidate that
is worse by a margin anywhere passes that one check with at most this chance
(the intersection-union principle; Berger, Technometrics 24 (1982), 295-300).
Looks are what adds up, so the level is spent over them. See ``tolerance.py`` for
the three answers to a drop and ``statistics.py`` for the bounds.
"""

from __future__ import annotations

import numpy as np
import pydantic

from acclimate_service.domain import ceilings, checks
from acclimate_service.domain.calibration import (
    Calibration,
    calibration,
    expected_calibration_error,
    losses,
)
from acclimate_service.domain.comparison import at_least, within
from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.evidence import Evidence, FileFacts, Floats, Ints, Paired
from acclimate_service.domain.groups import classes_of
from acclimate_service.domain.measure import Json, measure, share
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.statistics import wilson
from acclimate_service.domain.tolerance import MOST, Tolerance
from acclimate_service.domain.verdict import Check, Decision, Verdict
from acclimate_service.domain.wording import more_images

__all__ = [
    "Check",
    "Decision",
    "Evidence",
    "FileFacts",
    "GuardPolicy",
    "Paired",
    "Verdict",
    "judge",
    "judge_first",
]


def judge(policy: GuardPolicy, evidence: Evidence) -> Verdict:
    """Weigh what the candidate forgot against what it gained, by the rule above."""
    sets: list[tuple[str, Paired | None]] = [("source", evidence.source)]
    sets += [("earlier", pairs) for pairs in evidence.earlier]
    sets += [] if evidence.target is None else [("target", evidence.target)]

    broken = [check for role, pairs in sets for check in _unsound(role, pairs)]
    if broken:
        return _conclude(policy, broken, evidence.looks, {})

    found: list[Check] = []
    measured: list[pydantic.JsonValue] = []
    for role, pairs in sets:
        allowed = checks.tolerance(policy, role, evidence)
        accuracy = checks.accuracy(_title(role, pairs), pairs, allowed)
        found.append(accuracy)
        if pairs is not None and len(pairs):
            confidence = calibration(pairs)
            found += _beyond_accuracy(policy, role, pairs, confidence, evidence.labels)
            seen = measure(pairs, accuracy, allowed, confidence, evidence.labels)
            measured.append({"role": role, **seen})
    found += _creep(policy, evidence)
    found += ceilings.labels(
        policy, train=evidence.label_suspects, held_out=evidence.held_out_suspects
    )
    found += ceilings.costs(policy, evidence)
    return _conclude(
        policy, found, evidence.looks, {"sets": measured, **_backward_transfer(evidence)}
    )


def judge_first(
    policy: GuardPolicy,
    *,
    labels: Ints,
    probabilities: Floats,
    majority: float | None = None,
    names: tuple[str, ...] = (),
    label_suspects: float = 0.0,
    held_out_suspects: float = 0.0,
) -> Verdict:
    """Weigh a first version, which has no incumbent.

    It must beat the majority class on the source-verify images: Wilson's lower
    bound of its accuracy above the rate of always answering the most frequent
    class (of *majority*, if given, and what these *labels* [N] say, the larger).
    Fewer than ``first_minimum`` images, or a class without any, is INCONCLUSIVE.
    The suspect labels count as in :class:`Evidence`.
    """
    pairs = Paired(name="source", labels=labels, incumbent=probabilities, candidate=probabilities)
    unsound = ceilings.sound_probabilities("source", probabilities)
    if unsound is not None:
        return _conclude(policy, [unsound], 0, {})
    n = len(labels)
    counts = np.bincount(labels, minlength=1)
    most = float(counts.max()) / n if n else 1 / probabilities.shape[1]
    rate = max(most, float(majority or 0.0))
    if not 0 < rate <= 1:
        raise InvalidSpec("majority must be a share in (0, 1]")
    found = [_beats_majority(policy, int(pairs.after.sum()), n, rate)]
    every = range(probabilities.shape[1])
    found.append(ceilings.coverage("source", pairs, every, names, policy.class_minimum))
    found += ceilings.labels(policy, train=label_suspects, held_out=held_out_suspects)
    measurements: Json = {
        "n": n,
        "accuracy": share(int(pairs.after.sum()), n),
        "majority": rate,
        "ece": expected_calibration_error(probabilities, labels),
        "nll": float(losses(probabilities, labels).mean()) if n else None,
        "classes": [
            {"name": name, "n": len(places), "right": int(pairs.after[places].sum())}
            for name, places in classes_of(pairs, names).items()
        ],
    }
    return _conclude(policy, found, 0, measurements)


def _title(role: str, pairs: Paired | None) -> str:
    """What checks and messages call a set: "source", "target", "earlier domains/webcam"."""
    return f"earlier {pairs.name}" if role == "earlier" and pairs is not None else role


def _unsound(role: str, pairs: Paired | None) -> list[Check]:
    """The REJECTs for answers that are no probabilities."""
    if pairs is None:
        return []
    name = _title(role, pairs)
    files = {f"{name} incumbent": pairs.incumbent, f"{name} candidate": pairs.candidate}
    found = [ceilings.sound_probabilities(file, answers) for file, answers in files.items()]
    return [check for check in found if check is not None]


def _creep(policy: GuardPolicy, evidence: Evidence) -> list[Check]:
    """The checks on what all versions since a standard lost together."""
    found = []
    for since in evidence.since:
        of_source = evidence.source is not None and since.pairs.name == evidence.source.name
        limits = policy.creep("source" if of_source else "earlier")
        if limits is not None and len(since.pairs):
            limit, margin = limits
            allowed = Tolerance(
                limit=limit, margin=margin, level=policy.level, looks=evidence.looks
            )
            title = _title("source" if of_source else "earlier", since.pairs)
            found.append(checks.creep(title, since, allowed))
    return found


def _beyond_accuracy(
    policy: GuardPolicy,
    role: str,
    pairs: Paired,
    confidence: Calibration | None,
    labels: tuple[str, ...],
) -> list[Check]:
    """The checks on classes, slices, coverage and calibration of one set."""
    name, level = _title(role, pairs), policy.level
    classes, slices = classes_of(pairs, labels), pairs.slices
    found = [checks.classes(name, pairs, classes, limit=policy.class_drop_limit, level=level)]
    if slices:
        found.append(checks.slices(name, pairs, slices, limit=policy.slice_drop_limit, level=level))
    known, every = pairs.incumbent.shape[1], pairs.candidate.shape[1]
    if role == "source":
        found.append(ceilings.coverage(name, pairs, range(known), labels, policy.class_minimum))
    elif role == "target" and every > known:
        found.append(
            ceilings.coverage(name, pairs, range(known, every), labels, policy.class_minimum)
        )
    if confidence is not None:
        found += checks.confidence(name, confidence, policy)
    return found


def _beats_majority(policy: GuardPolicy, right: int, n: int, rate: float) -> Check:
    low, high = wilson(right, n, policy.level)
    needed = None
    seen = f"source: {right} of {n} images right (at least {low:.1%}); always answering the most "
    seen += f"frequent class would get {rate:.1%}"
    seen = seen if n else "source: no image is held out to judge by"
    by = (within("accuracy at least", low, rate, "share"),)
    if n < policy.first_minimum:
        decision, needed = Decision.INCONCLUSIVE, policy.first_minimum
        message = f"{seen}; a first version is judged on at least {needed} verify images"
        by = (at_least("images", n, needed, "count"),)
    elif low > rate:
        decision, message = Decision.ACCEPT, seen
    elif right / n <= rate:  # as the rate was divided: times n, it may fall short of itself
        decision, message = Decision.REJECT, f"{seen}, which is no worse"
        by = (within("accuracy", right / n, rate, "share"),)
    else:
        decision, needed = Decision.INCONCLUSIVE, _enough_for(right / n, n, rate, policy.level)
        message = f"{seen}, which is not excluded; "
        message += f"about {needed} verify images would decide" if needed else more_images(None, n)
    return Check(
        name="source accuracy",
        decision=decision,
        unit="accuracy",
        observed=right / n if n else None,
        interval=(low, high) if n else None,
        limit=rate,
        n=n,
        lost=0,
        gained=0,
        needed=needed,
        message=message,
        decided_by=by,
    )


def _enough_for(accuracy: float, n: int, rate: float, level: float) -> int | None:
    """How many images would put the lower bound above *rate* < *accuracy*, if any would."""
    while wilson(round(accuracy * n), n, level)[0] <= rate:
        n += max(1, n // 20)
        if n > MOST:
            return None
    return n


def _backward_transfer(evidence: Evidence) -> Json:
    """What this job did to the domains accepted earlier: accuracy after minus before.

    Lopez-Paz and Ranzato, NeurIPS 2017, but against the incumbent.
    """
    drops = {
        pairs.name: float(pairs.after.mean() - pairs.before.mean())
        for pairs in evidence.earlier
        if len(pairs)
    }
    return {
        "backward_transfer": dict(drops),
        "mean_backward_transfer": sum(drops.values()) / len(drops) if drops else None,
    }


def _conclude(policy: GuardPolicy, found: list[Check], looks: int, measurements: Json) -> Verdict:
    """The decision of all checks together, in one sentence, with the policy it rests on."""
    rejecting = [check for check in found if check.decision is Decision.REJECT]
    undecided = [check for check in found if check.decision is Decision.INCONCLUSIVE]
    needed = None
    if rejecting:
        decision, summary = Decision.REJECT, _sentence("Rejected", rejecting)
    elif undecided or not found:
        decision, summary = Decision.INCONCLUSIVE, _sentence("Inconclusive", undecided)
        needed = max((check.needed for check in undecided if check.needed), default=None)
    else:
        decision = Decision.ACCEPT
        summary = _sentence("Accepted", [c for c in found if c.name.endswith(" accuracy")])
    overrides: Json = dict(policy.overrides)
    limits: Json = policy.model_dump(mode="json")
    return Verdict(
        decision=decision,
        checks=tuple(found),
        summary=summary,
        needed=needed,
        measurements={
            **measurements,
            "looks": looks,
            "policy": limits,
            "overrides": overrides,
        },
    )


def _sentence(word: str, because: list[Check]) -> str:
    rest = len(because) - 3
    reasons = "; ".join(check.message for check in because[:3])
    return f"{word}: {reasons}" + (f"; and {rest} more." if rest > 0 else ".")
