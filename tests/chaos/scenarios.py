"""Every scenario, with what it does in full and in short."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.chaos.crowd import crowd
from tests.chaos.kills import kills
from tests.chaos.row import Row
from tests.chaos.soak import soak
from tests.chaos.swaps import artifacts, swaps, terms
from tests.chaos.workers import workers


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A scenario: ``run(plan, **full)`` for the figures, ``run(plan, **quick)`` in minutes."""

    about: str
    run: Callable[..., Iterable[Row]]
    full: Mapping[str, Any]
    quick: Mapping[str, Any]


SCENARIOS: Mapping[str, Scenario] = {
    "kills": Scenario(
        about="kill -9 of server, worker and both, on SQLite and PostgreSQL",
        run=kills,
        full={"count": 300},
        quick={"count": 60},
    ),
    "artifacts": Scenario(
        about="versions whose file rotted, promoted",
        run=artifacts,
        full={"count": 300},
        quick={"count": 60},
    ),
    "swaps": Scenario(
        about="an alias moved under 32 clients",
        run=swaps,
        full={"count": 1024},
        quick={"count": 128},
    ),
    "terms": Scenario(
        about="SIGTERM to a busy server",
        run=terms,
        full={"count": 100},
        quick={"count": 10},
    ),
    "crowd": Scenario(
        about="thousands of streams, silent sockets and half-open connections",
        run=crowd,
        full={"streams": 10_000, "sockets": 4_000},
        quick={"streams": 2_000, "sockets": 500},
    ),
    "soak": Scenario(
        about="predictions beside swaps, uploads and jobs, and a leak that must be caught",
        run=soak,
        full={"seconds": 1800.0},
        quick={"seconds": 120.0},
    ),
    "workers": Scenario(
        about="trainers that hang, die or wake too late; jobs cancelled in every phase",
        run=workers,
        full={"times": 5},
        quick={"times": 1},
    ),
}
