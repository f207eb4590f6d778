"""What was asked of a version and how long it took: enough for Triton's ModelStatistics."""

from __future__ import annotations

from dataclasses import dataclass, field

from acclimate_service.inference.answer import Timings


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How often, and for how many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def plus(self, ns: int) -> Duration:
        """This and one more."""
        return Duration(count=self.count + 1, ns=self.ns + ns)


@dataclass(frozen=True, kw_only=True)
class VersionStatistics:
    """A version's counts since it was first loaded.

    ``inferences`` counts images, ``executions`` runs of the graph; ``success``,
    ``failure`` and ``cancelled`` count requests, from submission to answer. ``queue``,
    ``decode`` and ``infer`` are the stages of the successful ones. ``runs`` maps the
    size of a run to its times. ``last_inference`` is in milliseconds since the epoch,
    0 for never.
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
    runs: dict[int, Duration] = field(default_factory=dict)


class Tally:
    """Counts for one version. Belongs to the event loop."""

    def __init__(self) -> None:
        self._inferences = 0
        self._last_inference = 0
        self._durations = dict.fromkeys(
            ("success", "failure", "cancelled", "queue", "decode", "infer"), Duration()
        )
        self._runs: dict[int, Duration] = {}

    def succeeded(self, images: int, timings: Timings, *, ns: int, now: float) -> None:
        """Count an answered request of *images*; *ns* from submission to answer."""
        self._inferences += images
        self._last_inference = int(now * 1000)
        self._add("success", ns)
        self._add("queue", timings.queue)
        self._add("decode", timings.decode)
        self._add("infer", timings.infer)
        for size in timings.runs:
            share = timings.infer * size // max(sum(timings.runs), 1)
            self._runs[size] = self._runs.get(size, Duration()).plus(share)

    def failed(self, *, ns: int) -> None:
        """Count a refused or failed request."""
        self._add("failure", ns)

    def cancelled(self, *, ns: int) -> None:
        """Count a request that nobody waited for any more."""
        self._add("cancelled", ns)

    def snapshot(self) -> VersionStatistics:
        """The counts as they are now."""
        return VersionStatistics(
            inferences=self._inferences,
            executions=sum(duration.count for duration in self._runs.values()),
            last_inference=self._last_inference,
            runs=dict(self._runs),
            **self._durations,
        )

    def _add(self, stage: str, ns: int) -> None:
        self._durations[stage] = self._durations[stage].plus(ns)
