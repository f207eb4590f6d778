"""The guard: whether a candidate may become a version."""

from __future__ import annotations

from acclimate_service.domain.evidence import Evidence, FileFacts, Floats, Ints, Paired
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.verdict import Check, Decision, Verdict

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
    """Weigh what the candidate forgot against what it gained."""
    n = len(evidence.target)
    return _undecided(f"under {policy.base} limits, nothing was checked on {n} target images")


def judge_first(
    policy: GuardPolicy, *, labels: Ints, probabilities: Floats, majority: float | None = None
) -> Verdict:
    """Weigh a first version, which has no incumbent, against the majority class."""
    return _undecided(f"under {policy.base} limits, nothing was checked on {len(labels)} images")


def _undecided(summary: str) -> Verdict:
    return Verdict(decision=Decision.INCONCLUSIVE, checks=(), summary=summary, needed=None)
