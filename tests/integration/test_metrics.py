"""What a server tells Prometheus, and that the dashboard and the alerts speak of nothing else."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.contract.builders import SOURCE, claimed, draft, furnish
from tests.integration.rpc_server import (
    Service,
    classifier,
    fresh_store,
    model,
    promote,
    running,
    version,
)

from acclimate.v1 import adaptation_pb2
from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.domain.names import ModelName
from acclimate_service.rpc.job_metrics import JobCollector
from acclimate_service.rpc.server import Limits
from acclimate_service.store import Census, Store

DEPLOY = Path(__file__).parents[2] / "deploy"
METRIC = re.compile(r"\b(?:acclimate|nv)_[a-z_]+\b")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = fresh_store(tmp_path)
    furnish(store)
    yield store
    store.close()


@pytest.fixture
def service(store: Store) -> Iterator[Service]:
    with running(store, Limits(poll_seconds=0.05)) as service:
        service.server.metrics.registry.register(JobCollector(store.jobs.census))
        yield service


def told(registry: CollectorRegistry) -> dict[str, dict[str, float]]:
    """Sample name → its labels' values, joined → value."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[" ".join(sample.labels.values())] = sample.value
    return found


def names(registry: CollectorRegistry) -> set[str]:
    """Every sample name that the registry can tell, told yet or not."""
    found = set()
    for family in registry.collect():
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        found |= {family.name + ending for ending in endings.get(family.type, ("",))}
    return found


def test_the_jobs_of_the_store_are_counted_at_each_scrape(service: Service, store: Store) -> None:
    registry = service.server.metrics.registry
    for number in range(3):
        store.jobs.enqueue(draft(seed=number), request_id=str(number))
    claimed(store)
    found = told(registry)
    assert found["acclimate_jobs"]["BOOTSTRAP QUEUED"] == 2
    assert found["acclimate_jobs"]["BOOTSTRAP RUNNING"] == 1
    assert found["acclimate_jobs"]["ADAPT REJECTED"] == 0
    assert found["acclimate_job_wait_seconds"][""] > 0
    assert found["acclimate_store_up"][""] == 1


def test_a_server_tells_what_it_is_and_what_it_takes(service: Service, store: Store) -> None:
    registry = service.server.metrics.registry
    before = told(registry)
    assert list(before["acclimate_build_info"].values()) == [1]
    assert before["acclimate_loaded_bytes"][""] == 0
    assert before["acclimate_loaded_bytes_limit"][""] == service.server.served.pool.budget
    content = classifier(3)
    promote(service, model(store, "m"), version(store, ModelName("m"), content))
    assert told(registry)["acclimate_loaded_bytes"][""] > len(content)


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_server_tells_its_process_s_memory_and_files(service: Service) -> None:
    found = told(service.server.metrics.registry)
    assert found["process_resident_memory_bytes"][""] > 2**20
    assert found["process_open_fds"][""] > 0


def test_a_store_that_is_away_is_told_and_breaks_no_scrape() -> None:
    def away() -> Census:
        raise StoreUnavailable("gone")

    registry = CollectorRegistry()
    registry.register(JobCollector(away))
    assert told(registry) == {"acclimate_store_up": {"": 0.0}}


def test_every_metric_of_the_dashboard_and_the_alerts_is_one_that_is_told(
    service: Service,
) -> None:
    service.adaptation.GetDomain(adaptation_pb2.GetDomainRequest(name=str(SOURCE)))
    known = names(service.server.metrics.registry)
    for file in (DEPLOY / "grafana.json", DEPLOY / "alerts.yaml"):
        asked = set(METRIC.findall(file.read_text()))
        assert asked, file
        assert asked <= known, f"{file.name}: {sorted(asked - known)}"


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
