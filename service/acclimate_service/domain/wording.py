"""How verdicts put numbers into words."""

from __future__ import annotations

import math
from collections.abc import Iterable

from acclimate_service.domain.examples import SELECT_SHARE


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * share:.1f} points"


def at_worst(high: float) -> str:
    """What the upper bound of a drop says, as a loss or as a gain."""
    if high < 0:
        return f"better by at least {points(-high)}"
    return f"worse by at most {points(high)}"


def sure(level: float) -> str:
    """The confidence that goes with an error *level*: 97.0%, 99.97%, never a rounded 100%."""
    return f"{1 - level:.{max(1, -math.floor(math.log10(100 * level)))}%}"


def more_images(needed: int | None, n: int) -> str:
    """What to do about being undecided after *n* verify images."""
    if needed is None:
        return "no number of images would decide at these rates"
    held_out = math.ceil((needed - n) / (1 - SELECT_SHARE))
    return (
        f"about {needed} verify images would decide "
        f"(hold out {held_out} more images; {1 - SELECT_SHARE:.0%} of them verify)"
    )


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of *names*, and how many more there are."""
    listed = list(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest
