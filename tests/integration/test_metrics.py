"""What a server tells Prometheus, and that the dashboard and the alerts speak of nothing else."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.contract.builders import claimed, draft, furnish
from tests.integration.rpc_server import (
    LABELS,
    Service,
    ask,
    chain_of,
    classifier,
    commit,
    fresh_store,
    items,
    model,
    opening,
    plain,
    promote,
    running,
    version,
)
from tests.integration.server_process import port_of, serving
from tests.unit.rpc.methods import methods
from tests.unit.test_house_rules import all_errors

from acclimate.v1 import adaptation_pb2, adaptation_pb2_grpc, inference_pb2_grpc
from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.domain.job import JobKind, JobState
from acclimate_service.domain.names import AliasName, ModelName
from acclimate_service.inference.statistics import Cause
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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a real server told that had answered, refused, been uploaded to and asked too often."""
    home = tmp_path_factory.mktemp("told")
    store = fresh_store(home)
    made = version(store, model(store, "shop"), classifier())
    store.registry.set_alias(AliasName("shop", "production"), made)
    store.close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (
        serving(home, metrics_port=port, requests_per_second=10) as process,
        grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel,
    ):
        adaptation = adaptation_pb2_grpc.AdaptationServiceStub(channel)
        predict = inference_pb2_grpc.InferenceServiceStub(channel).Predict
        made_here = adaptation.CreateDomain(
            adaptation_pb2.CreateDomainRequest(domain_id="dock", labels=LABELS), timeout=10
        )
        examples = [adaptation_pb2.Example(image=plain((9, 9, 9)), label="red")]
        messages = [opening(made_here.name, "r"), *items(examples), commit(1, chain_of(examples))]
        list(adaptation.UploadBatch(iter(messages), timeout=10))
        for number in range(60):  # a rate of 10 lets 20 through at once
            asked = ask("models/shop" if number else "models/nobody", plain((9, 9, 9)))
            with contextlib.suppress(grpc.RpcError):
                predict(asked, timeout=10)
        address = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return str(answer.read().decode())


def labels_told(page: str) -> dict[str, set[str]]:
    """Sample name → the names of its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard and of the alerts, with the name of its file."""
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    for panel in dashboard["panels"]:
        yield from (("grafana.json", target["expr"]) for target in panel["targets"])
    alerts = (DEPLOY / "alerts.yaml").read_text()
    queries = re.findall(r"expr: (?:>\s+)?(.*?)\n +(?:for|labels):", alerts, re.DOTALL)
    assert len(queries) == alerts.count("- alert:")
    yield from (("alerts.yaml", query) for query in queries)


# What a label's value may be, told in one run or not.
VALUES: dict[str, set[str]] = {
    "code": {code.name for code in grpc.StatusCode},
    "kind": {kind.value for kind in JobKind},
    "method": {method.name for method in methods()},
    "reason": {error.reason for error in all_errors()[1:]} | {cause.value for cause in Cause},
    "result": {"served", "failed"},
    "state": {state.value for state in JobState},
}


@pytest.mark.parametrize(("file", "query"), [*expressions()])
def test_a_query_asks_for_metrics_and_labels_that_a_running_server_tells(
    file: str, query: str, page: str
) -> None:
    told = labels_told(page)
    asked = METRIC.findall(query)
    assert asked, file
    assert set(asked) <= told.keys()
    # The instance is added by Prometheus.
    known = {"instance"}.union(*(told[name] for name in asked))
    for group in re.findall(r"by \(([^)]*)\)", query):
        assert {label.strip() for label in group.split(",")} <= known
    for name, selectors in re.findall(r"(\w+)\{([^}]*)\}", query):
        for label, operator, value in re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', selectors):
            assert label in told[name]
            branches = value.split("|") if "~" in operator and "(" not in value else [value]
            for branch in branches:
                assert any(re.fullmatch(branch, one) for one in VALUES[label]), branch


def test_a_caller_over_its_own_rate_is_not_told_as_an_overload(page: str) -> None:
    counted = {
        sample.labels["reason"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "acclimate_refused_total"
    }
    assert counted.keys() == {"ALIAS_NOT_FOUND", "RATE_EXCEEDED"}
    assert counted["RATE_EXCEEDED"] > 10


def test_the_first_move_that_fails_is_an_increase(page: str) -> None:
    """A series that begins with 1 has not increased for Prometheus."""
    assert 'acclimate_alias_moves_total{result="failed"} 0.0' in page


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
