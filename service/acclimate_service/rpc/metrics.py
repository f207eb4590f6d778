"""What the server counts about its calls, and tells of itself, for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import prometheus_client

from acclimate_service.inference.pool import Pool


class Metrics:
    """Counters of one server, in a registry of their own so that two can live in one test.

    *version* is the server's own; what is loaded of versions is asked of *pool* at each scrape.
    """

    def __init__(self, pool: Pool[Any], *, version: str) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)  # its memory, time and files
        self._gauge("acclimate_build_info", "1, with the version.", ["version"]).labels(
            version
        ).set(1)
        loaded = self._gauge("acclimate_loaded_bytes", "What loaded versions are counted with.")
        loaded.set_function(lambda: pool.taken)
        self._gauge("acclimate_loaded_bytes_limit", "What they may take together.").set(pool.budget)
        self.calls = prometheus_client.Counter(
            "acclimate_rpc_total",
            "Calls ended, by method and gRPC code.",
            ["method", "code"],
            registry=self.registry,
        )
        self.refused = prometheus_client.Counter(
            "acclimate_refused_total",
            "Calls refused or failed, by method and reason (of the ErrorInfo that the caller got).",
            ["method", "reason"],
            registry=self.registry,
        )
        self.seconds = prometheus_client.Histogram(
            "acclimate_rpc_seconds",
            "Seconds from a call's first message to its end, by method.",
            ["method"],
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
        )
        self.open = prometheus_client.Gauge(
            "acclimate_rpc_open",
            "Calls open now, by method.",
            ["method"],
            registry=self.registry,
        )
        self.examples = prometheus_client.Counter(
            "acclimate_examples_total",
            "Uploaded examples answered: accepted, duplicate, or the reason of a refusal.",
            ["outcome"],
            registry=self.registry,
        )
        self.swaps = prometheus_client.Counter(
            "acclimate_alias_moves_total",
            "Aliases that this server moved or followed, by result (served, failed).",
            ["result"],
            registry=self.registry,
        )
        for result in ("served", "failed"):
            self.swaps.labels(result)  # told as 0: what appears as 1 is no increase to Prometheus
        # Found by their labels once: that costs more than counting, and every call counts four.
        self._methods: dict[str, tuple[prometheus_client.Gauge, prometheus_client.Histogram]] = {}
        self._ends: dict[tuple[str, str], prometheus_client.Counter] = {}

    def _gauge(
        self, name: str, meaning: str, labels: Sequence[str] = ()
    ) -> prometheus_client.Gauge:
        return prometheus_client.Gauge(name, meaning, labels, registry=self.registry)

    def began(self, method: str) -> None:
        """Count a call of one of the server's methods as open."""
        if method not in self._methods:
            self._methods[method] = self.open.labels(method), self.seconds.labels(method)
        self._methods[method][0].inc()

    def ended(self, method: str, code: str, seconds: float) -> None:
        """Count a call that began as ended, with its gRPC *code*."""
        if (method, code) not in self._ends:
            self._ends[method, code] = self.calls.labels(method, code)
        self._ends[method, code].inc()
        opened, lasted = self._methods[method]
        opened.dec()
        lasted.observe(seconds)
