"""Rollouts over a real server and the real client: who answers, what is counted, how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.rpc_server import (
    SIZE,
    Service,
    ask,
    classifier,
    model,
    plain,
    promote,
    running,
    version,
)
from tests.integration.watching import until

from acclimate import Client
from acclimate.errors import Conflict, InvalidRequest
from acclimate.oip import grpc_service_pb2, grpc_service_pb2_grpc
from acclimate.rollouts import Rollout, RolloutMode, RolloutState
from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.domain.model import ModelVersion
from acclimate_service.domain.names import AliasName, ModelName, VersionName
from acclimate_service.inference.residents import Loaded
from acclimate_service.rpc import trials
from acclimate_service.rpc.opening import Opening
from acclimate_service.rpc.server import Limits
from acclimate_service.rpc.trials import Trials
from acclimate_service.store import Store

RED, BLUE = plain((250, 0, 0)), plain((0, 0, 250))
QUICK = Limits(poll_seconds=0.05)


@pytest.fixture
def service(store: Store) -> Iterator[Service]:
    with running(store, QUICK) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(f"127.0.0.1:{service.port}") as client:
        yield client


@pytest.fixture
def shop(service: Service) -> ModelName:
    """A model with a version in production, made to answer rightly."""
    name = model(service.store, "shop")
    promote(service, name, version(service.store, name, classifier(31)))
    return name


def ends(client: Client, rollout: Rollout, state: RolloutState) -> Rollout:
    until(lambda: client.rollout(rollout.name).state is state, f"{state} of {rollout.name}")
    return client.rollout(rollout.name)


def another(service: Service, shop: ModelName, gain: float = 33) -> VersionName:
    return version(service.store, shop, classifier(gain))


def broken(service: Service, shop: ModelName) -> VersionName:
    """A version whose file is for another size than its manifest says: it cannot be warmed."""
    return version(service.store, shop, classifier(size=2 * SIZE))


def test_a_canary_answers_its_share_and_the_reply_names_it(
    service: Service, shop: ModelName, client: Client
) -> None:
    candidate = another(service, shop)
    begun = client.start_rollout("shop", candidate.version, share=0.5)
    answered = [
        client.predict("shop", RED, routing_key=f"camera {n}")[0].version for n in range(60)
    ]
    assert 12 < answered.count(str(candidate)) < 48
    chosen = answered.count(str(candidate))

    def whole() -> bool:
        counts = client.rollout(begun.name).counts
        return (counts["requests"], counts["incumbent_requests"]) == (chosen, 60 - chosen)

    until(whole, "the count of every request")


def test_one_camera_is_always_answered_by_the_same_version(
    service: Service, shop: ModelName, client: Client
) -> None:
    client.start_rollout("shop", another(service, shop).version, share=0.5)
    for camera in range(8):
        key = f"camera {camera}"
        answers = {
            client.predict("shop", image, routing_key=key)[0].version for image in (RED, BLUE, RED)
        }
        assert len(answers) == 1


def test_a_version_that_is_named_answers_itself_whatever_is_tried(
    service: Service, shop: ModelName, client: Client
) -> None:
    candidate = another(service, shop)
    client.start_rollout("shop", candidate.version, share=1.0)
    assert client.predict("shop", RED)[0].version == str(candidate)
    assert client.predict("shop/1", RED)[0].version == f"{shop}/versions/1"


def test_the_standard_protocol_is_part_of_a_canary(
    service: Service, shop: ModelName, client: Client
) -> None:
    candidate = another(service, shop)
    client.start_rollout("shop", candidate.version, share=1.0)
    request = grpc_service_pb2.ModelInferRequest(
        model_name="shop",
        inputs=[
            grpc_service_pb2.ModelInferRequest.InferInputTensor(
                name="images", datatype="UINT8", shape=[1, SIZE, SIZE, 3]
            )
        ],
        raw_input_contents=[bytes(SIZE * SIZE * 3)],
    )
    stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(service.channel)
    assert stub.ModelInfer(request, timeout=10).model_version == candidate.version


def test_a_shadow_is_asked_and_never_returned(
    service: Service, shop: ModelName, client: Client
) -> None:
    candidate = another(service, shop)
    begun = client.start_rollout("shop", candidate.version, mode="SHADOW", share=1.0)
    answered = {client.predict("shop", RED)[0].version for _ in range(30)}
    assert answered == {f"{shop}/versions/1"}

    def whole() -> bool:
        counts = client.rollout(begun.name).counts
        return counts["compared"] + counts["dropped"] == 30

    until(whole, "the comparison of every request")
    found = client.rollout(begun.name)
    assert found.agreement == 1.0
    assert found.mode is RolloutMode.SHADOW


@pytest.mark.parametrize("mode", ["SHADOW", "CANARY"])
def test_a_rollout_whose_alias_moved_away_and_back_is_over_though_nobody_asks(
    service: Service, shop: ModelName, client: Client, mode: str
) -> None:
    begun = client.start_rollout("shop", another(service, shop).version, mode=mode, share=1.0)
    home, elsewhere = VersionName("shop", "1"), another(service, shop)
    for to in (elsewhere, home):
        service.store.registry.set_alias(AliasName("shop", "production"), to)
    assert "moved" in ends(client, begun, RolloutState.STOPPED).reason
    until(lambda: client.predict("shop", RED)[0].version == str(home), "the way back, here too")


def test_a_candidate_that_breaks_costs_no_prediction_and_is_rolled_back(
    service: Service, shop: ModelName, client: Client
) -> None:
    begun = client.start_rollout("shop", broken(service, shop).version, share=1.0)
    answers = [client.predict("shop", RED)[0] for _ in range(20)]
    assert {answer.version for answer in answers} == {f"{shop}/versions/1"}
    assert {answer.label for answer in answers} == {"red"}
    ended = ends(client, begun, RolloutState.ROLLED_BACK)
    assert "failed" in ended.reason
    assert client.aliases("shop")[0].version == f"{shop}/versions/1"


def test_a_candidate_that_fails_while_it_answers_is_replaced_by_the_incumbent(
    service: Service, shop: ModelName, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = client.start_rollout("shop", another(service, shop).version, share=1.0)
    real = Trials._try

    async def fail(trials: Trials, *given: Any, patient: bool) -> object:
        given[1].release()  # the candidate's session is gone under it
        return await real(trials, *given, patient=patient)

    monkeypatch.setattr(Trials, "_try", fail)
    answers = {client.predict("shop", RED)[0].version for _ in range(20)}
    assert answers == {f"{shop}/versions/1"}
    ends(client, begun, RolloutState.ROLLED_BACK)


def test_a_caller_with_little_time_spends_little_of_it_on_a_candidate_that_is_loading(
    service: Service, shop: ModelName, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = threading.Event(), Opening.open

    def late(opening: Opening, version: ModelVersion) -> Loaded[ModelVersion]:
        assert opened.wait(30)
        return real(opening, version)

    monkeypatch.setattr(Opening, "open", late)
    monkeypatch.setattr(trials, "TAKE_UP_SECONDS", 0.1)
    monkeypatch.setattr(trials, "CANARY_SECONDS", 10.0)
    candidate = another(service, shop)
    begun = client.start_rollout("shop", candidate.version, share=1.0)
    try:
        answer = service.inference.Predict(ask("models/shop", RED), timeout=3)
    finally:
        opened.set()
    assert answer.version == f"{shop}/versions/1"
    until(lambda: client.predict("shop", RED)[0].version == str(candidate), "the candidate")
    until(lambda: client.rollout(begun.name).counts["dropped"] == 1, "the count of what was not")
    assert client.rollout(begun.name).counts["errors"] == 0


def test_a_store_that_is_away_while_a_candidate_loads_is_not_the_candidates_failure(
    service: Service, shop: ModelName, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, real = [True] * 6, Opening.open

    def flaky(opening: Opening, version: ModelVersion) -> Loaded[ModelVersion]:
        if away:
            away.pop()
            raise StoreUnavailable("the blobs are out of reach")
        return real(opening, version)

    monkeypatch.setattr(Opening, "open", flaky)
    candidate = another(service, shop)
    begun = client.start_rollout("shop", candidate.version, share=1.0)
    until(lambda: client.predict("shop", RED)[0].version == str(candidate), "the store's return")
    found = client.rollout(begun.name)
    assert (found.state, found.counts["errors"]) == (RolloutState.RUNNING, 0)


def test_a_bad_request_is_the_callers_and_not_the_candidates(
    service: Service, shop: ModelName, client: Client
) -> None:
    begun = client.start_rollout("shop", another(service, shop).version, share=1.0)
    for _ in range(20):
        with pytest.raises(InvalidRequest):
            client.predict("shop", b"no image")
    client.predict("shop", RED)
    until(lambda: client.rollout(begun.name).counts["requests"] == 1, "the one good request")
    assert client.rollout(begun.name).counts["errors"] == 0


def test_a_good_candidate_is_promoted_by_itself(
    service: Service, shop: ModelName, client: Client
) -> None:
    candidate = another(service, shop)
    begun = client.start_rollout(
        "shop",
        candidate.version,
        share=0.5,
        promote=True,
        limits={"minimum": 10, "latency_ratio": 1000},
    )
    for number in range(60):
        client.predict("shop", RED, routing_key=str(number))
    ends(client, begun, RolloutState.PROMOTED)
    until(lambda: client.predict("shop", RED)[0].version == str(candidate), "the move")


def test_a_rollout_goes_on_when_a_server_takes_over(store: Store) -> None:
    with running(store, QUICK) as first, Client(f"127.0.0.1:{first.port}") as client:
        name = model(store, "shop")
        promote(first, name, version(store, name, classifier(31)))
        candidate = another(first, name)
        begun = client.start_rollout("shop", candidate.version, share=1.0)
        assert client.predict("shop", RED)[0].version == str(candidate)
    with running(store, QUICK) as second, Client(f"127.0.0.1:{second.port}") as client:
        until(lambda: client.predict("shop", RED)[0].version == str(candidate), "the canary")
        assert client.rollout(begun.name).counts["requests"] >= 1


def test_a_second_rollout_and_a_share_of_nothing_are_refused(
    service: Service, shop: ModelName, client: Client
) -> None:
    candidate = another(service, shop)
    with pytest.raises(InvalidRequest, match="share"):
        client.start_rollout("shop", candidate.version, share=0)
    with pytest.raises(InvalidRequest, match="none to compare"):
        client.start_rollout("shop", candidate.version, share=1.0, promote=True)
    begun = client.start_rollout("shop", candidate.version)
    with pytest.raises(Conflict, match="runs on this alias"):
        client.start_rollout("shop", candidate.version)
    assert client.stop_rollout(begun.name, reason="enough").state is RolloutState.STOPPED
    assert client.predict("shop", RED)[0].version == f"{shop}/versions/1"
    assert [one.name for one in client.rollouts("shop")] == [begun.name]
