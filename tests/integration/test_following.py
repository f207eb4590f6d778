"""What a server that follows the store does meanwhile: nothing of one model holds up the rest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import grpc
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException
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
from acclimate.v1 import inference_pb2_grpc, rollout_pb2, rollout_pb2_grpc
from acclimate_service.domain.access import TokenDraft, principal_of
from acclimate_service.domain.model import ModelVersion
from acclimate_service.domain.names import AliasName, TokenName
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.residents import Loaded
from acclimate_service.rpc import following, loads, moves
from acclimate_service.rpc.opening import Opening
from acclimate_service.rpc.server import Admission, Limits, Server
from acclimate_service.store import Store

QUICK = Limits(poll_seconds=0.05)


@pytest.fixture
def service(store: Store) -> Iterator[Service]:
    with running(store, QUICK) as service:
        yield service


def follows(service: Service, name: str) -> bool:
    """Whether a move that another process makes of a new model's alias is made here."""
    made = version(service.store, model(service.store, name), classifier(3))
    service.store.registry.set_alias(AliasName(name, "production"), made)
    until(lambda: served_by(service, f"models/{name}") == str(made))
    return True


def test_a_model_on_trial_is_not_unloaded_and_the_refusal_names_the_rollout(
    service: Service,
) -> None:
    name = model(service.store, "shop")
    first, second = (version(service.store, name, classifier(gain)) for gain in (1, 2))
    promote(service, name, first)
    begun = rollout_pb2_grpc.RolloutServiceStub(service.channel).StartRollout(
        rollout_pb2.StartRolloutRequest(
            alias=f"{name}/aliases/production",
            candidate=str(second),
            mode=rollout_pb2.Rollout.MODE_SHADOW,
            share=0.5,
        ),
        timeout=10,
    )
    code, info = refusal(lambda: unload(service, "shop"))
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ROLLOUT_RUNNING")
    assert info.metadata["name"] == begun.name
    assert served_by(service, name) == str(first)


def test_an_unload_that_waits_for_a_long_request_holds_up_no_other_move(service: Service) -> None:
    name = model(service.store, "busy")
    first, second = (version(service.store, name, classifier(gain)) for gain in (1, 2))
    promote(service, name, first)
    held = service.run(lambda: service.server.served.hold(str(first)))
    with ThreadPoolExecutor(1) as pool:
        unloading = pool.submit(unload, service, "busy")
        until(lambda: served_by(service, name) == "StatusCode.FAILED_PRECONDITION")
        service.store.registry.set_alias(AliasName("busy", "canary"), second)
        assert follows(service, "other")
        assert not unloading.done()
        service.loop.call_soon_threadsafe(held.release)
        unloading.result(20)


def test_a_version_that_breaks_in_no_way_we_know_costs_only_its_own_alias(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = model(service.store, "huge")
    good, bad = (version(service.store, name, classifier(gain)) for gain in (1, 2))
    promote(service, name, good)
    opening = service.server.served._loads._opening
    usual = opening.open

    def open_(found: Any) -> Any:
        if found.name == bad:
            raise MemoryError
        return usual(found)

    monkeypatch.setattr(opening, "open", open_)
    service.store.registry.set_alias(AliasName("huge", "production"), bad)
    until(lambda: failed_moves(service) >= 1)
    assert follows(service, "other")
    assert served_by(service, name) == str(good)


def test_a_token_ends_while_a_version_is_loading(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = principal_of("ada", roles=["predict"], models=[], domains=[])
    minted = store.tokens.create(TokenDraft(principal=who, certificate="", lifetime=None), by="me")
    name = model(store, "slow")
    first, second = (version(store, name, classifier(gain)) for gain in (1, 2))
    alias = AliasName("slow", "production")
    store.registry.set_alias(alias, first)
    shown = {"metadata": (("authorization", f"Bearer {minted.secret}"),)}
    with running(store, QUICK, admission=Admission(tokens=True)) as service:
        assert served_by(service, name, **shown) == str(first)
        go_on = blocked(service, monkeypatch, second)
        store.registry.set_alias(alias, second)
        until(lambda: is_loading(service, second))
        store.tokens.revoke(TokenName(minted.token.id))
        until(lambda: served_by(service, name, **shown) == "StatusCode.UNAUTHENTICATED")
        assert is_loading(service, second)
        go_on.set()


def test_a_token_ends_while_the_files_do_not_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = principal_of("ada", roles=["predict"], models=[], domains=[])
    minted = store.tokens.create(TokenDraft(principal=who, certificate="", lifetime=None), by="me")
    name = model(store, "kept")
    made = version(store, name, classifier(1))
    store.registry.set_alias(AliasName("kept", "production"), made)
    shown = {"metadata": (("authorization", f"Bearer {minted.secret}"),)}
    asked, answer = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        assert answer.wait(30)

    monkeypatch.setattr(following, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(store.blobs, "ping", hang)
    with running(store, QUICK, admission=Admission(tokens=True)) as service:
        assert asked.wait(15)
        until(lambda: service.health() == "NOT_SERVING")  # it was found to hang
        assert served_by(service, name, **shown) == str(made)
        store.tokens.revoke(TokenName(minted.token.id))
        until(lambda: served_by(service, name, **shown) == "StatusCode.UNAUTHENTICATED")
        answer.set()
        until(lambda: service.health() == "SERVING")


def test_an_alias_that_was_made_a_moment_ago_is_answered_before_the_store_is_looked_at(
    store: Store,
) -> None:
    with running(store, Limits(poll_seconds=3600)) as service:
        made = version(store, model(store, "late"), classifier(3))
        assert served_by(service, "models/late") == str(grpc.StatusCode.NOT_FOUND)
        store.registry.set_alias(AliasName("late", "production"), made)
        store.registry.set_alias(AliasName("late", "dock"), made)
        assert served_by(service, "models/late") == str(made)
        answer = service.inference.Predict(ask("models/late", RED, domain="dock"), timeout=10)
        assert answer.version == str(made)
        assert served_by(service, "models/nobody") == str(grpc.StatusCode.NOT_FOUND)


def test_who_asks_while_a_server_starts_waits_and_is_not_told_that_nothing_is_served(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = model(store, "shop")
    first = version(store, shop, classifier(31))
    store.registry.set_alias(AliasName("shop", "production"), first)
    ports: list[int] = []
    listen, opened = Server.listen, Opening.open
    asking: list[Future[str]] = []

    def noted(server: Server, *where: Any) -> int:
        ports.append(listen(server, *where))
        return ports[0]

    def ask_at_once() -> str:
        with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            return stub.Predict(ask("models/shop", RED), timeout=20).version

    def slowly(opening: Opening, version: ModelVersion) -> Loaded[ModelVersion]:
        if not asking:  # the server takes calls, and knows of no alias yet
            asking.append(pool.submit(ask_at_once))
            wait(asking, 0.5)
        return opened(opening, version)

    monkeypatch.setattr(Server, "listen", noted)
    monkeypatch.setattr(Opening, "open", slowly)
    with ThreadPoolExecutor(1) as pool, running(store, QUICK):
        assert asking[0].result(20) == str(first)


def test_a_version_that_takes_long_to_load_holds_up_no_other_model(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = model(service.store, "big")
    first, second, third = (version(service.store, name, classifier(gain)) for gain in (1, 2, 4))
    promote(service, name, first)
    go_on = blocked(service, monkeypatch, second)
    alias = AliasName("big", "production")
    service.store.registry.set_alias(alias, second)
    until(lambda: is_loading(service, second))
    assert follows(service, "other")
    service.store.registry.set_alias(alias, third)
    assert follows(service, "another")
    assert served_by(service, name) == str(first)  # a move overtakes none of the same model
    go_on.set()
    until(lambda: served_by(service, name) == str(third))


def test_a_cold_version_that_takes_long_to_load_holds_up_no_other_cold_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = (
        version(service.store, model(service.store, name), classifier(3))
        for name in ("slow", "quick")
    )
    go_on = blocked(service, monkeypatch, slow)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(served_by, service, slow)
        until(lambda: is_loading(service, slow))
        answer = service.inference.Predict(ask(quick, RED), timeout=10)
        assert answer.version == str(quick)
        assert not asking.done()
        go_on.set()
        assert asking.result(20) == str(slow)


def test_a_server_is_ready_while_a_version_takes_long_to_load_and_answers_for_it_after(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "EAGER_SECONDS", 0.5)
    go_on, opened = threading.Event(), Opening.open
    slow, quick = (version(store, model(store, name), classifier(3)) for name in ("slow", "quick"))
    for made in (slow, quick):
        store.registry.set_alias(AliasName(made.model, "production"), made)

    def open_(opening: Opening, found: ModelVersion) -> Loaded[ModelVersion]:
        if found.name == slow:
            assert go_on.wait(30)
        return opened(opening, found)

    monkeypatch.setattr(Opening, "open", open_)
    with ThreadPoolExecutor(1) as pool, running(store, QUICK) as service:
        until(lambda: is_loading(service, slow))
        assert served_by(service, "models/quick") == str(quick)
        asking = pool.submit(served_by, service, "models/slow")
        go_on.set()
        assert asking.result(20) == str(slow)


def test_whoever_asks_for_an_alias_that_never_loaded_is_told_why_and_the_file_is_not_read_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = version(service.store, model(service.store, "ill"), b"no model")
    opened: list[str] = []
    usual = Opening.open

    def open_(opening: Opening, found: ModelVersion) -> Loaded[ModelVersion]:
        opened.append(str(found.name))
        return usual(opening, found)

    monkeypatch.setattr(Opening, "open", open_)
    service.store.registry.set_alias(AliasName("ill", "production"), made)
    until(lambda: failed_moves(service) >= 1)
    until(lambda: served_by(service, "models/ill") == "StatusCode.FAILED_PRECONDITION")
    assert service.health("models/ill") == "NOT_SERVING"
    for _ in range(5):
        code, info = refusal(lambda: service.inference.Predict(ask("models/ill", RED), timeout=10))
        assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_UNLOADABLE")
    assert opened == [str(made)]
    told = service.oip.ModelReady(oip_pb.ModelReadyRequest(name="ill"), timeout=10)
    assert not told.ready


def test_a_version_that_memory_runs_out_for_leaves_the_old_one_serving_and_is_tried_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU's runs out: the graph is sound, and its first run is refused the memory."""
    monkeypatch.setattr(loads, "RETRY_SECONDS", 0.1)
    name = model(service.store, "wide")
    first, second = (version(service.store, name, classifier(gain)) for gain in (1, 2))
    promote(service, name, first)
    full, usual = threading.Event(), Classifier._through
    full.set()

    def through(self: Classifier, names: list[str], images: Any) -> Any:
        if full.is_set():
            raise RuntimeException(
                "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned "
                "while running Conv node. Failed to allocate memory for requested buffer"
            )
        return usual(self, names, images)

    served = service.server.served.pool.acquire(str(first))
    monkeypatch.setattr(served.classifier, "_through", partial(usual, served.classifier))
    monkeypatch.setattr(Classifier, "_through", through)
    code, info = refusal(lambda: promote(service, name, second))
    assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    service.store.registry.set_alias(AliasName("wide", "production"), second)
    until(lambda: failed_moves(service) >= 2)
    assert served_by(service, name) == str(first)
    assert service.health(str(name)) == "SERVING"
    full.clear()
    until(lambda: served_by(service, name) == str(second))
    served.release()


def test_requests_for_a_version_whose_load_hangs_leave_the_queue_to_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = (version(store, model(store, name), classifier(3)) for name in ("slow", "quick"))
    limits = Limits(poll_seconds=0.05, predictions=8)
    with running(store, limits) as service, ThreadPoolExecutor(8) as pool:
        go_on = blocked(service, monkeypatch, slow)
        asking = [pool.submit(served_by, service, slow) for _ in range(8)]
        until(lambda: sum(one.done() for one in asking) == 6)
        refused = {one.result() for one in asking if one.done()}
        assert refused == {"StatusCode.RESOURCE_EXHAUSTED"}
        assert served_by(service, quick) == str(quick)
        go_on.set()
        assert {one.result(20) for one in asking} == {*refused, str(slow)}
