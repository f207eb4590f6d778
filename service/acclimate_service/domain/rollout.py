"""Trying a version on live traffic: what is counted, and what the counts mean.

The counts are looked at after every few requests, so a test at a fixed level would roll
back sooner or later by chance alone. Failures and disagreements are therefore judged by
a test that stays valid however often it is looked at (see :func:`beyond`).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
from dataclasses import dataclass

import pydantic

from acclimate_service.domain.names import AliasName, RolloutName, VersionName

LEVEL = 0.01  # the chance of a rollback, over a whole rollout, of what keeps within a limit


class RolloutMode(enum.Enum):
    """How the candidate is tried."""

    SHADOW = "SHADOW"  # answers beside the incumbent, and is never returned
    CANARY = "CANARY"  # answers a share of the requests


class RolloutState(enum.Enum):
    """Where a rollout stands; all but RUNNING are ends."""

    RUNNING = "RUNNING"
    PROMOTED = "PROMOTED"
    ROLLED_BACK = "ROLLED_BACK"
    STOPPED = "STOPPED"


class RolloutLimits(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What ends a rollout. Rates are shares in [0, 1], ratios candidate / incumbent."""

    error_rate: float = pydantic.Field(default=0.01, gt=0, lt=1)
    disagreement: float = pydantic.Field(default=0.25, gt=0, lt=1)
    confidence_drop: float = pydantic.Field(default=0.1, gt=0, le=1)
    latency_ratio: float = pydantic.Field(default=3.0, gt=1, le=1000)
    minimum: int = pydantic.Field(default=500, ge=1, le=10**9)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What was seen; every number adds up over servers. Seconds and confidences are sums.

    ``confidence`` is of the first class, an image; ``compared`` and ``agreed`` are images
    that both answered, ``dropped`` requests that a busy server did not try.
    """

    requests: int = 0
    errors: int = 0
    images: int = 0
    confidence: float = 0.0
    seconds: float = 0.0
    incumbent_requests: int = 0
    incumbent_images: int = 0
    incumbent_confidence: float = 0.0
    incumbent_seconds: float = 0.0
    compared: int = 0
    agreed: int = 0
    dropped: int = 0

    def __add__(self, more: Counts) -> Counts:
        sums = {
            field.name: getattr(self, field.name) + getattr(more, field.name)
            for field in dataclasses.fields(self)
        }
        return Counts(**sums)

    def __bool__(self) -> bool:
        return any(dataclasses.astuple(self))


@dataclass(frozen=True, kw_only=True)
class RolloutDraft:
    """A rollout as asked for."""

    alias: AliasName
    candidate: VersionName
    mode: RolloutMode
    share: float
    limits: RolloutLimits
    promote: bool


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One trial of a version on an alias's traffic.

    ``reason`` is why it ended; while it runs, why a server does not ask the candidate, if one
    told so.
    """

    name: RolloutName
    draft: RolloutDraft
    incumbent: VersionName
    state: RolloutState
    counts: Counts
    reason: str
    created_at: dt.datetime
    ended_at: dt.datetime | None


def weigh(draft: RolloutDraft, counts: Counts) -> tuple[RolloutState, str]:
    """What the counts so far call for, and why; RUNNING calls for more of them. Pure.

    Beyond doubt, at ``LEVEL`` over all looks together: failures and disagreements above
    their limits. From ``minimum`` images on, as they stand: confidence and latency.
    """
    limits, half = draft.limits, LEVEL / 2
    if beyond(counts.errors, counts.requests, limit=limits.error_rate, level=half):
        told = f"{counts.errors} of {counts.requests} requests failed on it"
        return RolloutState.ROLLED_BACK, f"{told}; the limit is {limits.error_rate:.1%}"
    differed = counts.compared - counts.agreed
    if beyond(differed, counts.compared, limit=limits.disagreement, level=half):
        told = f"{differed} of {counts.compared} images answered otherwise than by the incumbent"
        return RolloutState.ROLLED_BACK, f"{told}; the limit is {limits.disagreement:.1%}"
    if counts.images < limits.minimum or not counts.incumbent_images:
        return RolloutState.RUNNING, ""
    drop = counts.incumbent_confidence / counts.incumbent_images - counts.confidence / counts.images
    if drop > limits.confidence_drop:
        told = f"its mean confidence is {drop:.3f} below the incumbent's"
        return RolloutState.ROLLED_BACK, f"{told}; the limit is {limits.confidence_drop:g}"
    ratio = _mean(counts.seconds, counts.requests - counts.errors) / max(
        1e-9, _mean(counts.incumbent_seconds, counts.incumbent_requests)
    )
    if ratio > limits.latency_ratio:
        told = f"it takes {ratio:.2f} times as long as the incumbent"
        return RolloutState.ROLLED_BACK, f"{told}; the limit is {limits.latency_ratio:g}"
    observed = counts.errors / counts.requests
    if draft.promote and observed <= limits.error_rate:
        return RolloutState.PROMOTED, f"{counts.images} images kept within every limit"
    return RolloutState.RUNNING, ""


def beyond(hits: int, trials: int, *, limit: float, level: float) -> bool:
    """Whether a rate lies above *limit*, at *level* over every look there will ever be.

    Robbins' mixture of likelihood ratios against Bernoulli(limit) is a nonnegative
    supermartingale wherever the true rate is at most the limit, so by Ville's inequality
    it exceeds 1/level at any time with a probability of at most *level* (Robbins, Ann.
    Math. Stat. 1970; Howard et al., Ann. Statist. 2021). The mixture is over 16 rates,
    spaced evenly in their logarithms between the limit and 1.
    """
    if not trials:
        return False
    logs = []
    for step in range(1, 17):
        rate = min(limit ** (1 - step / 16), 1 - 1e-6)
        gained = hits * math.log(rate / limit)
        lost = (trials - hits) * math.log((1 - rate) / (1 - limit))
        logs.append(gained + lost)
    most = max(logs)
    mixture = most + math.log(sum(math.exp(one - most) for one in logs) / len(logs))
    return mixture >= math.log(1 / level)


def _mean(total: float, count: int) -> float:
    return total / max(1, count)
