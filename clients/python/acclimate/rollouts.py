"""What a rollout, and the drift of live inputs, look like to a client."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass


class RolloutMode(enum.Enum):
    """How a candidate is tried on an alias's traffic."""

    SHADOW = "SHADOW"  # answers beside the incumbent, and is never returned
    CANARY = "CANARY"  # answers a share of the requests


class RolloutState(enum.Enum):
    """Where a rollout stands; all but RUNNING are ends."""

    RUNNING = "RUNNING"
    PROMOTED = "PROMOTED"
    ROLLED_BACK = "ROLLED_BACK"
    STOPPED = "STOPPED"


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One trial of a version. ``limits`` and ``counts`` are as in rollout.proto."""

    name: str
    alias: str
    candidate: str
    incumbent: str
    mode: RolloutMode
    share: float
    promote: bool
    state: RolloutState
    limits: Mapping[str, float]
    counts: Mapping[str, float]
    reason: str
    created_at: dt.datetime
    ended_at: dt.datetime | None

    @property
    def agreement(self) -> float | None:
        """The share of images that both answered alike; None if none were compared."""
        compared = self.counts.get("compared", 0)
        return self.counts["agreed"] / compared if compared else None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far live images lie from the domains that a version knows.

    ``domains`` are ``(domain, distance in [0, 1], p, unlike)``, the nearest first.
    """

    version: str
    images: int
    domains: tuple[tuple[str, float, float, bool], ...]
    due: bool
    message: str
