"""How much drop is tolerated on one set of images, and the three answers to it.

    ACCEPT        the observed drop is within the limit, and a drop as large as the
                  margin is excluded at the level left for this look
    REJECT        the observed drop is over the limit, and McNemar's exact test
                  shows at the plain level that images are lost on balance
    INCONCLUSIVE  neither

A drop that is real but within the limit is accepted: the limit says so. A drop
over the limit that may be chance is undecided, however narrow the interval,
until more images show it to be real or to be smaller. The level of ACCEPT is
spent over looks, for each look is a chance to pass by luck; the level of REJECT
is not, for a tired holdout must not make harm harder to show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from acclimate_service.domain.statistics import excludes, mcnemar, quantile, score, spent_level
from acclimate_service.domain.verdict import Decision

MOST = 10_000_000  # images; what is undecided there counts as never decided


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The limits of one drop. A margin of 0 asks for a gain that is shown to be real."""

    limit: float
    margin: float
    level: float
    looks: int

    @property
    def spent(self) -> float:
        """The level at which this look may accept."""
        return spent_level(self.level, self.looks)

    def within(self, lost: int, gained: int, n: int) -> bool:
        """Whether the observed drop keeps to the limit."""
        return lost - gained <= self.limit * n + 1e-9

    def decide(self, lost: int, gained: int, n: int) -> Decision:
        """Which of the three answers *lost* and *gained* of *n* images give."""
        if self.within(lost, gained, n):
            accepted = excludes(lost, gained, n, margin=self.margin, level=self.spent)
            return Decision.ACCEPT if accepted else Decision.INCONCLUSIVE
        shown = mcnemar(lost, gained) <= self.level
        return Decision.REJECT if shown else Decision.INCONCLUSIVE

    def needed(self, p_lost: float, p_gained: float, n: int) -> int | None:
        """How many images, more than *n*, would decide if images are lost and gained so often.

        The expected counts then lie on the decided side, which a sample does about
        every other time. It is the next look that would see them, so its level
        counts. None if no number of images decides at these rates.
        """
        later = Tolerance(
            limit=self.limit, margin=self.margin, level=self.level, looks=self.looks + 1
        )
        low, high = n, max(2 * n, 16)
        while not later._about_decides(p_lost, p_gained, high):
            if high > MOST:
                return None
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if later._about_decides(p_lost, p_gained, middle):
                high = middle
            else:
                low = middle
        # The exact test and whole images ask for a little more than the score.
        for _ in range(100):
            lost = round(p_lost * high)
            gained = min(round(p_gained * high), high - lost)  # both halves may round up
            if later.decide(lost, gained, high) is not Decision.INCONCLUSIVE:
                break
            high += max(1, high // 50)
        return high

    def _about_decides(self, p_lost: float, p_gained: float, n: int) -> bool:
        """Whether expected, fractional counts decide, by the score statistics alone."""
        lost, gained = np.asarray(p_lost * n), np.asarray(p_gained * n)
        if p_lost - p_gained <= self.limit:
            return float(score(lost, gained, n, self.margin)) >= quantile(self.spent)
        z = (p_lost - p_gained) * n / math.sqrt((p_lost + p_gained) * n)
        return z >= quantile(self.level)
