"""Every scenario, with what it does in full and in short."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.clocks import clock
from tests.chaos.crowd import PARTS as CROWDS
from tests.chaos.crowd import crowd
from tests.chaos.disk import disk
from tests.chaos.kills import kills
from tests.chaos.outages import PARTS as OUTAGES
from tests.chaos.outages import store
from tests.chaos.row import Row
from tests.chaos.soak import soak
from tests.chaos.swaps import artifacts, swaps, terms
from tests.chaos.syncs import fsync
from tests.chaos.workers import FAULTS, workers
from tests.chaos.world import ENGINES


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A scenario: ``run(plan, **full)`` for the figures, ``run(plan, **quick)`` in minutes.

    ``parts`` are what of it can be run alone, with ``run(plan, parts=…)``.
    """

    about: str
    run: Callable[..., Iterable[Row]]
    full: Mapping[str, Any]
    quick: Mapping[str, Any]
    parts: tuple[str, ...] = ()

    def arguments(
        self, *, quick: bool, times: int | None, parts: Sequence[str] = ()
    ) -> dict[str, Any]:
        """What to call ``run`` with; *times* takes the place of how often it does its thing.

        Raises:
            ValueError: it does nothing that is counted, or has no such part.
        """
        chosen = dict(self.quick if quick else self.full)
        if times is not None:
            if "times" not in chosen:
                raise ValueError(f"has no number of times, only {', '.join(chosen)}")
            chosen["times"] = times
        unknown = sorted(set(parts) - set(self.parts))
        if unknown:
            there = ", ".join(self.parts) or "none"
            raise ValueError(f"has no part {', '.join(unknown)} among: {there}")
        return chosen | ({"parts": tuple(parts)} if parts else {})


SCENARIOS: Mapping[str, Scenario] = {
    "kills": Scenario(
        about="kill -9 of server, worker and both, on SQLite and PostgreSQL",
        run=kills,
        full={"times": 300},
        quick={"times": 60},
        parts=ENGINES,
    ),
    "artifacts": Scenario(
        about="versions whose file rotted, promoted",
        run=artifacts,
        full={"times": 300},
        quick={"times": 60},
    ),
    "swaps": Scenario(
        about="an alias moved under 32 clients",
        run=swaps,
        full={"times": 1024},
        quick={"times": 128},
    ),
    "terms": Scenario(
        about="SIGTERM to a busy server",
        run=terms,
        full={"times": 100},
        quick={"times": 10},
    ),
    "crowd": Scenario(
        about="thousands of streams, silent sockets and half-open connections",
        run=crowd,
        full={"streams": 10_000, "sockets": 4_000},
        quick={"streams": 2_000, "sockets": 500},
        parts=CROWDS,
    ),
    "soak": Scenario(
        about="predictions beside swaps, uploads and jobs, and a leak that must be caught",
        run=soak,
        full={"seconds": 1800.0},
        quick={"seconds": 120.0},
    ),
    "disk": Scenario(
        about="a disk that fills under traffic and is given room again",
        run=disk,
        full={"times": 20},
        quick={"times": 5},
    ),
    "fsync": Scenario(
        about="syncs of files, folders and the database that fail, and power cuts meanwhile",
        run=fsync,
        full={"times": 300},
        quick={"times": 60},
    ),
    "store": Scenario(
        about="a store that is locked for 75 s, or goes and comes back",
        run=store,
        full={"times": 10},
        quick={"times": 2},
        parts=OUTAGES,
    ),
    "clock": Scenario(
        about="wall clocks that are hours apart, and jump",
        run=clock,
        full={"times": 20},
        quick={"times": 4},
        parts=ENGINES,
    ),
    "workers": Scenario(
        about="trainers that hang, die or wake too late; jobs cancelled in every phase",
        run=workers,
        full={"times": 5},
        quick={"times": 1},
        parts=tuple(FAULTS),
    ),
}
