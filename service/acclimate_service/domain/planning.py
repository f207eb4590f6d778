"""How many verify images a decision will need, before any of them is collected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pydantic

from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.examples import SELECT_SHARE
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.statistics import binomial, quantile, score, window
from acclimate_service.domain.tolerance import Tolerance
from acclimate_service.domain.verdict import Decision

_MOST = 2_000_000


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One answer: so many verify images, so many held out in all (None: out of reach).

    With them a candidate whose true drop is ``drop``, and which answers
    ``discordance`` of the images otherwise than the incumbent (right for wrong or
    wrong for right), is accepted with a chance of at least ``power``.
    """

    margin: float
    discordance: float
    drop: float
    power: float
    verify: int | None
    holdout: int | None

    def to_json(self) -> dict[str, pydantic.JsonValue]:
        """The row as JSON values."""
        return asdict(self)


def plan(
    policy: GuardPolicy,
    *,
    margin: float | None = None,
    drop: float = 0.0,
    discordances: Sequence[float] = (0.0, 0.01, 0.02, 0.05, 0.1),
    powers: Sequence[float] = (0.5, 0.8, 0.9),
    looks: int = 0,
) -> tuple[PlanRow, ...]:
    """The verify images needed to accept on the source, for each discordance and power.

    *margin* stands for the policy's ``source_margin``; the limit on the observed
    drop is the policy's, or the margin if that is smaller.

    Raises:
        InvalidSpec: a margin, drop, discordance or power outside its range.
    """
    margin = policy.source_margin if margin is None else margin
    if not 0 < margin < 1 or looks < 0:
        raise InvalidSpec(
            "margin is a share in (0, 1), three points are 0.03; looks must be 0 or more"
        )
    if not -1 < drop < 1 or not all(0 <= share <= 1 for share in discordances):
        raise InvalidSpec("drop must lie in (-1, 1), every discordance in [0, 1]")
    if not all(0 < power < 1 for power in powers):
        raise InvalidSpec("every power must lie in (0, 1)")
    allowed = Tolerance(
        limit=min(policy.source_drop_limit, margin), margin=margin, level=policy.level, looks=looks
    )
    rows = []
    for discordance in discordances:
        total = max(discordance, abs(drop))
        for power in powers:
            verify = _enough(allowed, total, drop, power)
            rows.append(
                PlanRow(
                    margin=margin,
                    discordance=total,
                    drop=drop,
                    power=power,
                    verify=verify,
                    holdout=None if verify is None else math.ceil(verify / (1 - SELECT_SHARE)),
                )
            )
    return tuple(rows)


def power(allowed: Tolerance, n: int, discordance: float, drop: float) -> float:
    """The chance that *n* images accept at these true rates (score and limit, no exact test)."""
    p_lost, p_gained = (discordance + drop) / 2, (discordance - drop) / 2
    gained, lost = window(n, p_gained), window(n, p_lost)
    rest = n - gained
    conditional = min(1.0, p_lost / (1 - p_gained)) if p_gained < 1 else 0.0
    chance = binomial(gained, np.full_like(gained, n), p_gained)[:, None] * binomial(
        lost[None, :], rest[:, None], conditional
    )
    fits = lost[None, :] <= rest[:, None]
    bounds = score(np.where(fits, lost[None, :], 0.0), gained[:, None], n, allowed.margin)
    within = lost[None, :] - gained[:, None] <= allowed.limit * n + 1e-9
    return float((chance * (fits & within & (bounds >= quantile(allowed.spent)))).sum())


def _enough(allowed: Tolerance, discordance: float, drop: float, wanted: float) -> int | None:
    """The smallest number of images, to 1 %, with the power *wanted*; None if out of reach."""
    if drop >= allowed.margin or drop > allowed.limit:
        return None
    low, high = 0, 16
    while power(allowed, high, discordance, drop) < wanted:
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        if power(allowed, middle, discordance, drop) < wanted:
            low = middle
        else:
            high = middle
    lost, gained = round((discordance + drop) / 2 * high), round((discordance - drop) / 2 * high)
    while allowed.decide(lost, gained, high) is not Decision.ACCEPT:  # the exact test asks for more
        high += max(1, high // 200)
    return high
