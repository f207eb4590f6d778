"""What was asked of each version, for Prometheus, under the names that Triton gives it.

So dashboards and autoscalers that were made for Triton read this server as well. The
numbers are those of ModelStatistics; labels are Triton's ``model`` and ``version``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from acclimate_service.domain.names import VersionName
from acclimate_service.inference.statistics import VersionStatistics

Read = Callable[[VersionStatistics], float]

_COUNTERS: Final[Mapping[str, tuple[str, Read]]] = {
    "nv_inference_request_success": (
        "Requests answered, whatever their number of images.",
        lambda of: of.success.count,
    ),
    "nv_inference_count": ("Images classified.", lambda of: of.inferences),
    "nv_inference_exec_count": ("Runs of the graph.", lambda of: of.executions),
    "nv_inference_request_duration_us": (
        "Microseconds of answered requests, from submission to answer.",
        lambda of: of.success.ns // 1000,
    ),
    "nv_inference_queue_duration_us": (
        "Microseconds of these that requests waited for a thread.",
        lambda of: of.queue.ns // 1000,
    ),
    "nv_inference_compute_input_duration_us": (
        "Microseconds of these in which image files were decoded and prepared.",
        lambda of: of.decode.ns // 1000,
    ),
    "nv_inference_compute_infer_duration_us": (
        "Microseconds of these in which the graph ran.",
        lambda of: of.infer.ns // 1000,
    ),
    "nv_inference_compute_output_duration_us": (
        "Microseconds in which answers were written, after these.",
        lambda of: of.encode.ns // 1000,
    ),
}


class InferenceCollector(Collector):
    """Reads *statistics*, by version name, whenever it is scraped, on the scraper's thread."""

    def __init__(self, statistics: Callable[[], Mapping[str, VersionStatistics]]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """The numbers of this moment."""
        found = {
            (name.model, name.version): counts
            for name, counts in (
                (VersionName.parse(text), counts) for text, counts in self._statistics().items()
            )
        }
        for metric_name, (meaning, read) in _COUNTERS.items():
            metric = _counter(metric_name, meaning)
            for (model, version), counts in found.items():
                metric.add_sample(metric_name, {"model": model, "version": version}, read(counts))
            yield metric
        failures = _counter("nv_inference_request_failure", "Requests without an answer, by cause.")
        pending = Metric("nv_inference_pending_request_count", "Requests inside now.", "gauge")
        for (model, version), counts in found.items():
            labels = {"model": model, "version": version}
            pending.add_sample(pending.name, labels, counts.pending)
            for cause, count in counts.causes.items():
                failures.add_sample(failures.name, {**labels, "reason": cause.value}, count)
        yield failures
        yield pending


def _counter(name: str, meaning: str) -> Metric:
    # Untyped: a counter's name would get the suffix _total, which Triton's have not.
    return Metric(name, meaning, "unknown")
