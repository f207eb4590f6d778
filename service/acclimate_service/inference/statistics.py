"""What was asked of a version and how long it took: enough for Triton's statistics."""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from acclimate_service.domain.errors import (
    DeadlineTooShort,
    Overloaded,
    ServiceError,
    VersionUnloadable,
)
from acclimate_service.domain.model import Precision
from acclimate_service.inference.answer import Timings


class Cause(enum.Enum):
    """Why a request has no answer, in Triton's words (``reason`` of its failure counter)."""

    REJECTED = "REJECTED"  # no room, or no time
    CANCELED = "CANCELED"  # nobody waits for it any more
    BACKEND = "BACKEND"  # the graph failed
    OTHER = "OTHER"  # what was sent is not what the version takes


def cause_of(error: BaseException) -> Cause:
    """Whose failure *error* is."""
    if isinstance(error, (Overloaded, DeadlineTooShort)):
        return Cause.REJECTED
    if isinstance(error, ServiceError) and not isinstance(error, VersionUnloadable):
        return Cause.OTHER
    return Cause.BACKEND


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How often, and for how many nanoseconds in all."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, kw_only=True)
class VersionStatistics:
    """A version's counts since it was first loaded.

    ``inferences`` counts images, ``executions`` runs of the graph; ``success``,
    ``failure`` and ``cancelled`` count requests, from submission to answer. ``queue``,
    ``decode``, ``infer`` and ``encode`` are the stages of the successful ones. ``runs``
    maps the size of a run to its times, ``causes`` why requests failed to how many.
    ``pending`` requests wait or run. ``last_inference`` is in milliseconds since the
    epoch, 0 for never. ``precision`` and ``digest`` are of the file that was loaded last.
    """

    inferences: int = 0
    executions: int = 0
    last_inference: int = 0
    success: Duration = Duration()
    failure: Duration = Duration()
    cancelled: Duration = Duration()
    queue: Duration = Duration()
    decode: Duration = Duration()
    infer: Duration = Duration()
    encode: Duration = Duration()
    pending: int = 0
    runs: dict[int, Duration] = field(default_factory=dict)
    causes: dict[Cause, int] = field(default_factory=dict)
    precision: Precision = "fp32"
    digest: str = ""


class Tally:
    """Counts for one version. Belongs to the event loop; any thread may take a snapshot."""

    def __init__(self) -> None:
        self._inferences = 0
        self._last_inference = 0
        self._pending = 0
        # Count and nanoseconds, replaced as one: a snapshot never sees half of an addition.
        self._durations = dict.fromkeys(
            ("success", "failure", "cancelled", "queue", "decode", "infer", "encode"), (0, 0)
        )
        self._runs: dict[int, tuple[int, int]] = {}
        self._causes = dict.fromkeys(Cause, 0)
        self._file: tuple[Precision, str] = ("fp32", "")

    def loaded(self, precision: Precision, digest: str) -> None:
        """Note which file answers from now on."""
        self._file = precision, digest

    def began(self) -> None:
        """Count a request as pending, until it is counted as one of the following."""
        self._pending += 1

    def succeeded(self, images: int, timings: Timings, *, ns: int, now: float) -> None:
        """Count an answered request of *images*; *ns* from submission to answer."""
        self._pending -= 1
        self._inferences += images
        self._last_inference = int(now * 1000)
        self._add("success", ns)
        self._add("queue", timings.queue)
        self._add("decode", timings.decode)
        self._add("infer", timings.infer)
        for size in timings.runs:
            share = timings.infer * size // max(sum(timings.runs), 1)
            count, before = self._runs.get(size, (0, 0))
            self._runs[size] = count + 1, before + share

    def failed(self, error: BaseException, *, ns: int) -> None:
        """Count a refused or failed request."""
        self._pending -= 1
        self._causes[cause_of(error)] += 1
        self._add("failure", ns)

    def cancelled(self, *, ns: int) -> None:
        """Count a request that nobody waited for any more."""
        self._pending -= 1
        self._causes[Cause.CANCELED] += 1
        self._add("cancelled", ns)

    @contextlib.contextmanager
    def encoding(self) -> Iterator[None]:
        """Count the writing of an answer."""
        started = time.perf_counter_ns()
        yield
        self._add("encode", time.perf_counter_ns() - started)

    def snapshot(self) -> VersionStatistics:
        """The counts as they are now."""
        runs = {size: Duration(count=n, ns=ns) for size, (n, ns) in list(self._runs.items())}
        precision, digest = self._file
        return VersionStatistics(
            precision=precision,
            digest=digest,
            inferences=self._inferences,
            executions=sum(duration.count for duration in runs.values()),
            last_inference=self._last_inference,
            pending=self._pending,
            runs=runs,
            causes=dict(self._causes),
            **{name: Duration(count=n, ns=ns) for name, (n, ns) in self._durations.items()},
        )

    def _add(self, stage: str, ns: int) -> None:
        count, before = self._durations[stage]
        self._durations[stage] = count + 1, before + ns
