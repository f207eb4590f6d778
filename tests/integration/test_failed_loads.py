"""What a version that did not load leaves behind: no memory, no stale word of health, no alias."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
import pytest
from tests.integration.rpc_server import (
    Service,
    ask,
    classifier,
    model,
    promote,
    refusal,
    running,
    version,
)
from tests.integration.watching import (
    RED,
    blocked,
    failed_moves,
    is_loading,
    served_by,
    unload,
    until,
)

from acclimate.oip import grpc_service_pb2 as oip_pb
from acclimate.v1 import inference_pb2, registry_pb2
from acclimate_service.domain.errors import StoreUnavailable, VersionUnloadable
from acclimate_service.domain.model import ModelVersion
from acclimate_service.domain.names import AliasName, VersionName
from acclimate_service.inference.residents import Loaded
from acclimate_service.inference.sessions import unloadable
from acclimate_service.rpc import loads, moves
from acclimate_service.rpc.opening import Opening
from acclimate_service.rpc.server import Limits
from acclimate_service.store import Store

QUICK = Limits(poll_seconds=0.05)


@pytest.fixture
def service(store: Store) -> Iterator[Service]:
    with running(store, QUICK) as service:
        yield service


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[VersionName]:
    """Versions whose files are out of reach, until they are taken out of this set."""
    away: set[VersionName] = set()
    usual = Opening.open

    def open_(opening: Opening, found: ModelVersion) -> Loaded[ModelVersion]:
        if found.name in away:
            raise StoreUnavailable("the bucket does not answer")
        return usual(opening, found)

    monkeypatch.setattr(Opening, "open", open_)
    return away


def ready(service: Service, name: str) -> bool:
    return bool(service.oip.ModelReady(oip_pb.ModelReadyRequest(name=name), timeout=10).ready)


def held(kind: type) -> list[Any]:
    """What of a kind is in memory."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is kind]  # asks no proxy for its class


class _File(dict[str, object]):
    """Stands for a file's bytes, which the garbage collector does not list."""


def test_the_error_of_a_failed_load_keeps_neither_the_file_nor_the_request(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = version(service.store, model(service.store, "ill"), classifier(3))

    def open_(*_: object) -> NoReturn:
        onnx = _File()
        cause = ValueError(f"no graph in {len(onnx)} bytes")
        raise VersionUnloadable("it is no model") from cause

    monkeypatch.setattr(Opening, "open", open_)
    for _ in range(2):  # the second is told what the first found
        code, info = refusal(lambda: service.inference.Predict(ask(made, RED), timeout=10))
        assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_UNLOADABLE")
    assert served_by(service, "models/nobody") == "StatusCode.NOT_FOUND"  # gRPC keeps the last call
    until(lambda: not held(_File))
    until(lambda: not any(one.model == str(made) for one in held(inference_pb2.PredictRequest)))


def test_a_model_serves_again_once_its_version_was_loaded_under_another_name(
    service: Service, broken: set[VersionName], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "RETRY_SECONDS", 0.3)
    name = model(service.store, "shop")
    made = version(service.store, name, classifier(3))
    broken.add(made)
    service.store.registry.set_alias(AliasName("shop", "production"), made)
    until(lambda: failed_moves(service) == 1)
    assert service.health("models/shop") == "NOT_SERVING"
    broken.clear()
    assert served_by(service, str(made)) == str(made)
    until(lambda: service.health("models/shop") == "SERVING")


def test_a_model_whose_version_fails_under_another_name_is_not_ready_and_is_tried_again(
    store: Store, broken: set[VersionName], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(moves, "EAGER_SECONDS", 0.0)  # nothing is loaded before it is asked for
    made = version(store, model(store, "shop"), classifier(3))
    store.registry.set_alias(AliasName("shop", "production"), made)
    broken.add(made)
    with running(store, QUICK) as service:
        assert ready(service, "shop")
        assert served_by(service, str(made)) == "StatusCode.UNAVAILABLE"
        until(lambda: service.health("models/shop") == "NOT_SERVING")
        assert not ready(service, "shop")
        broken.clear()  # and nobody asks, for it is not ready
        until(lambda: ready(service, "shop"))
        until(lambda: service.health("models/shop") == "SERVING")


def test_an_alias_that_was_deleted_while_a_start_loaded_stays_gone_when_that_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "EAGER_SECONDS", 0.3)
    go_on = threading.Event()
    made = version(store, model(store, "shop"), classifier(3))
    store.registry.set_alias(AliasName("shop", "production"), made)

    def open_(*_: object) -> NoReturn:
        assert go_on.wait(30)
        raise VersionUnloadable("it is no model")

    monkeypatch.setattr(Opening, "open", open_)
    with running(store, QUICK) as service:
        until(lambda: is_loading(service, made))
        service.registry.DeleteAlias(
            registry_pb2.DeleteAliasRequest(name="models/shop/aliases/production"), timeout=10
        )
        go_on.set()
        until(lambda: service.server.served._loads.failed(made))
        assert served_by(service, "models/shop") == "StatusCode.NOT_FOUND"
        assert failed_moves(service) == 0


def test_an_alias_of_a_model_that_was_unloaded_is_tried_again_after_it_was_loaded(
    service: Service, broken: set[VersionName], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "RETRY_SECONDS", 0.2)
    name = model(service.store, "shop")
    made = version(service.store, name, classifier(3))
    alias = AliasName("shop", "production")
    broken.add(made)
    service.store.registry.set_alias(alias, made)
    until(lambda: failed_moves(service) == 1)
    unload(service, "shop")
    again = service.server.served._moves._again
    until(lambda: alias not in again)


def test_a_version_that_came_after_its_model_was_unloaded_is_not_told_as_ready(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = model(service.store, "shop")
    first, second = (version(service.store, name, classifier(gain)) for gain in (1, 2))
    promote(service, name, first)
    go_on = blocked(service, monkeypatch, second)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(served_by, service, str(second))
        until(lambda: is_loading(service, second))
        unload(service, "shop")
        go_on.set()
        assert asking.result(20) == str(second)  # it began before
    assert served_by(service, str(second)) == "StatusCode.FAILED_PRECONDITION"
    index = service.oip.RepositoryIndex(oip_pb.RepositoryIndexRequest(ready=True), timeout=10)
    assert [one.version for one in index.models] == []
    told = oip_pb.ModelReadyRequest(name="shop", version=second.version)
    assert not service.oip.ModelReady(told, timeout=10).ready


def test_requests_for_an_alias_whose_first_load_hangs_leave_the_queue_to_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = (version(store, model(store, name), classifier(3)) for name in ("slow", "quick"))
    limits = Limits(poll_seconds=0.05, predictions=8)
    with running(store, limits) as service, ThreadPoolExecutor(8) as pool:
        go_on = blocked(service, monkeypatch, slow)
        store.registry.set_alias(AliasName("slow", "production"), slow)
        until(lambda: is_loading(service, slow))
        try:
            asking = [pool.submit(served_by, service, "models/slow") for _ in range(8)]
            until(lambda: sum(one.done() for one in asking) == 6)
            refused = {one.result() for one in asking if one.done()}
            assert refused == {"StatusCode.RESOURCE_EXHAUSTED"}
            assert served_by(service, str(quick)) == str(quick)
        finally:
            go_on.set()
        assert {one.result(20) for one in asking} == {*refused, str(slow)}


def test_a_version_that_memory_runs_out_for_is_not_ready_and_not_built_for_every_request(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "RETRY_SECONDS", 1.0)
    monkeypatch.setattr(moves, "EAGER_SECONDS", 0.0)  # nothing is loaded before it is asked for
    made = version(store, model(store, "wide"), classifier(3))
    store.registry.set_alias(AliasName("wide", "production"), made)
    opened: list[VersionName] = []
    full, usual = threading.Event(), Opening.open
    full.set()

    def open_(opening: Opening, found: ModelVersion) -> Loaded[ModelVersion]:
        opened.append(found.name)
        if full.is_set():
            raise unloadable("it is no model", MemoryError())
        return usual(opening, found)

    monkeypatch.setattr(Opening, "open", open_)
    with running(store, QUICK) as service:
        found = {served_by(service, "models/wide") for _ in range(5)}
        assert found == {"StatusCode.RESOURCE_EXHAUSTED"}
        assert opened == [made]
        assert service.health("models/wide") == "NOT_SERVING"
        assert not ready(service, "wide")
        full.clear()
        until(lambda: ready(service, "wide"))
        assert served_by(service, "models/wide") == str(made)
