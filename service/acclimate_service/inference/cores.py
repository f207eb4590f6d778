"""How many processors this process may use, which may be fewer than the machine has."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from acclimate_service.inference import control_groups


def usable() -> int:
    """Those that it is bound to, and no more than its control group has the time of.

    More threads than that would be stopped for the rest of each period, answers among them.
    """
    # Not on every system; bound to some of them it is on none of the others.
    bound = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    shares = [share for group in control_groups.of("cpu") if (share := _share(group)) is not None]
    return max(1, min([len(bound), *map(math.ceil, shares)]))


def _share(group: Path) -> float | None:
    """The processors' time that a control group may take, in processors; None without a limit."""
    with contextlib.suppress(OSError, ValueError):  # "max" is no number, and no limit
        time, period = (group / "cpu.max").read_text().split()
        return int(time) / int(period)
    with contextlib.suppress(OSError, ValueError):  # of version 1, where -1 is no limit
        share = _number(group / "cpu.cfs_quota_us") / _number(group / "cpu.cfs_period_us")
        return share if share > 0 else None
    return None


def _number(file: Path) -> int:
    return int(file.read_text())
