"""The jobs of the whole service as Prometheus sees them: counted in the store at each scrape.

Every replica tells the same numbers, so a query takes the ``max`` over instances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.domain.job import JobKind, JobState
from acclimate_service.store import Census


class JobCollector(Collector):
    """Asks *census* whenever it is scraped, on the scraper's thread."""

    def __init__(self, census: Callable[[], Census]) -> None:
        self._census = census

    def describe(self) -> list[Metric]:
        """Nothing beforehand: a store that is out of reach must not keep a server from starting."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The numbers of this moment; only ``acclimate_store_up`` while the store is away."""
        up = GaugeMetricFamily("acclimate_store_up", "Whether the store answered this scrape.")
        try:
            found = self._census()
        except StoreUnavailable:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        jobs = GaugeMetricFamily(
            "acclimate_jobs",
            "Jobs in the store, by kind and state. REJECTED and INCONCLUSIVE are the guard's.",
            labels=["kind", "state"],
        )
        for kind in JobKind:
            for state in JobState:
                jobs.add_metric([kind.value, state.value], found.counts.get((kind, state), 0))
        yield jobs
        waited = GaugeMetricFamily(
            "acclimate_job_wait_seconds", "How long the oldest queued job has waited; 0: none does."
        )
        waited.add_metric([], found.waited)
        yield waited
