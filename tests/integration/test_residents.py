"""More models than memory: all are answered, and health tells what would not be."""

from __future__ import annotations

import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.integration.rpc_server import (
    Service,
    ask,
    classifier,
    fresh_store,
    model,
    plain,
    promote,
    refusal,
    running,
    version,
)
from tests.integration.server_process import port_of, serving

from acclimate.oip import grpc_service_pb2 as oip
from acclimate.v1 import (
    inference_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
)
from acclimate_service.domain.names import AliasName, ModelName, RolloutName, VersionName
from acclimate_service.domain.rollout import RolloutDraft, RolloutLimits, RolloutMode, RolloutState
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.memory import session_bytes
from acclimate_service.rpc import loads as loads_module
from acclimate_service.rpc import trials
from acclimate_service.rpc.server import Limits
from acclimate_service.store import Store
from acclimate_service.store.folder import FolderBlobs

RED = plain((250, 10, 10))
MODELS = tuple(f"cam-{number}" for number in range(12))
ROOM = 5 * session_bytes(len(classifier()), Execution()) // 2  # for two of them
ROOM_MIB = ROOM // 2**20


def cameras(store: Store) -> dict[str, VersionName]:
    """A version for each model, none of which shares anything with another."""
    made = {}
    for number, name in enumerate(MODELS):
        made[name] = version(store, model(store, name), classifier(1 + number / 10))
    return made


def ready(service: Service) -> set[str]:
    index = service.oip.RepositoryIndex(oip.RepositoryIndexRequest(ready=True), timeout=10)
    return {entry.name for entry in index.models}


def test_more_models_are_promoted_and_answered_than_there_is_memory_for(store: Store) -> None:
    made = cameras(store)
    with running(store, Limits(poll_seconds=0.05), budget=ROOM) as service:
        for found in made.values():
            promote(service, ModelName(found.model), found)
        for _ in range(2):
            for name, found in made.items():
                answer = service.inference.Predict(ask(f"models/{name}", RED), timeout=10)
                assert answer.version == str(found)
                assert service.health(f"models/{name}") == "SERVING"
        assert ready(service) == {*MODELS[-2:]}


def test_a_server_that_starts_loads_what_there_is_room_for_and_the_rest_when_asked(
    store: Store,
) -> None:
    made = cameras(store)
    for name, found in made.items():
        store.registry.set_alias(AliasName(name, "production"), found, who="a test", why="")
    with running(store, Limits(poll_seconds=0.05), budget=ROOM) as service:
        assert len(ready(service)) == 2
        assert {service.health(f"models/{name}") for name in MODELS} == {"SERVING"}
        answer = service.inference.Predict(ask(f"models/{MODELS[-1]}", RED), timeout=10)
        assert answer.version == str(made[MODELS[-1]])


def test_a_server_that_starts_gives_the_room_to_production_first(store: Store) -> None:
    made = {}
    for name in ("a", "z"):
        shop = model(store, name)
        other, made[name] = (version(store, shop, classifier(gain)) for gain in (5, 6))
        store.registry.set_alias(AliasName(name, "blue"), other, who="a test", why="")
        store.registry.set_alias(AliasName(name, "production"), made[name], who="a test", why="")
    with running(store, Limits(poll_seconds=0.05), budget=ROOM) as service:
        loaded = {one.version for one in service.server.served.pool.resident()}
        assert loaded == {str(found) for found in made.values()}


def trial(store: Store, name: str, mode: RolloutMode, gain: float) -> RolloutName:
    """A rollout, on all requests for a model's production, of another version of it."""
    draft = RolloutDraft(
        alias=AliasName(name, "production"),
        candidate=version(store, ModelName(name), classifier(gain)),
        mode=mode,
        share=1.0,
        limits=RolloutLimits(),
        promote=False,
    )
    return store.rollouts.start(draft, who="ann", why="a test").name


def test_a_rollout_whose_candidate_has_no_room_beside_what_answers_stands_still_and_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incumbent and candidate never put each other out by turns."""
    monkeypatch.setattr(trials, "PAUSE_SECONDS", 0.1)
    with running(store, Limits(poll_seconds=0.05), budget=ROOM) as service:
        served = {}
        for number, name in enumerate(MODELS[:2]):
            shop = model(store, name)
            served[name] = version(store, shop, classifier(1 + number / 10))
            promote(service, shop, served[name])
        begun = [
            trial(store, name, mode, 7)
            for name, mode in zip(served, (RolloutMode.CANARY, RolloutMode.SHADOW), strict=True)
        ]
        loaded = in_memory(service)
        ends = time.monotonic() + 30
        while min(store.rollouts.get(rollout).counts.dropped for rollout in begun) < 20:
            for name, found in served.items():
                answer = service.inference.Predict(ask(f"models/{name}", RED), timeout=5)
                assert answer.version == str(found)
            assert time.monotonic() < ends, "it was not counted as dropped"
        assert in_memory(service) == loaded
        for told in map(store.rollouts.get, begun):
            assert (told.state, told.counts.errors) == (RolloutState.RUNNING, 0)
            assert "ACCLIMATE_RESIDENT_MIB" in told.reason
        # Once there is room, one of the two goes on.
        unload = oip.RepositoryModelUnloadRequest(model_name=MODELS[0])
        store.rollouts.stop(begun[0], who="ann", why="a test")
        while service.server.served.trials.of(ModelName(MODELS[0])) is not None:
            time.sleep(0.02)
        service.oip.RepositoryModelUnload(unload, timeout=10)
        while store.rollouts.get(begun[1]).counts.compared < 3:
            service.inference.Predict(ask(f"models/{MODELS[1]}", RED), timeout=5)
            assert time.monotonic() < ends, "the candidate was never tried"
        assert store.rollouts.get(begun[1]).reason == ""


def in_memory(service: Service) -> dict[str, Classifier]:
    """The sessions of each version that is loaded: others, once it was loaded again."""
    residents = service.server.served.pool._residents
    return {name: one.loaded[0].classifier for name, one in residents.items()}


def test_a_rollout_that_starts_without_room_is_answered_with_the_reason(store: Store) -> None:
    made = cameras(store)
    candidate = version(store, ModelName(MODELS[0]), classifier(7))
    with running(store, Limits(poll_seconds=0.05), budget=ROOM) as service:
        for name in MODELS[:2]:
            promote(service, ModelName(name), made[name])
        begun = rollout_pb2_grpc.RolloutServiceStub(service.channel).StartRollout(
            rollout_pb2.StartRolloutRequest(
                alias=f"models/{MODELS[0]}/aliases/production",
                candidate=str(candidate),
                mode=rollout_pb2.Rollout.MODE_CANARY,
                share=0.5,
            ),
            timeout=10,
        )
        assert begun.state == rollout_pb2.Rollout.STATE_RUNNING
        assert "ACCLIMATE_RESIDENT_MIB" in begun.reason


def test_a_candidate_waits_for_no_memory_that_requests_hold(store: Store) -> None:
    made = cameras(store)
    with running(store, Limits(poll_seconds=0.05), budget=ROOM) as service:
        for name in MODELS[:2]:
            promote(service, ModelName(name), made[name])
        held = [
            service.run(partial(service.server.served.hold, f"models/{name}"))
            for name in MODELS[:2]
        ]
        rollout = trial(store, MODELS[0], RolloutMode.CANARY, 7)
        ends = time.monotonic() + 5  # the pool's own patience is 10 seconds
        while store.rollouts.get(rollout).counts.dropped < 2:
            answer = service.inference.Predict(ask(f"models/{MODELS[0]}", RED), timeout=10)
            assert answer.version == str(made[MODELS[0]])
            assert time.monotonic() < ends, "the canary was not dropped"
        assert not [one for one in service.server.served.pool.resident() if one.loading]
        for handle in held:
            service.loop.call_soon_threadsafe(handle.release)


def test_a_candidate_makes_room_for_what_live_requests_ask_for(store: Store) -> None:
    made = cameras(store)
    with running(store, Limits(poll_seconds=0.05), budget=ROOM) as service:
        promote(service, ModelName(MODELS[0]), made[MODELS[0]])
        rollout = trial(store, MODELS[0], RolloutMode.CANARY, 7)
        ends = time.monotonic() + 30
        while store.rollouts.get(rollout).counts.images < 3:
            service.inference.Predict(ask(f"models/{MODELS[0]}", RED), timeout=5)
            assert time.monotonic() < ends, "the candidate was never tried"
        promote(service, ModelName(MODELS[1]), made[MODELS[1]])
        for _ in range(5):
            for name in MODELS[:2]:
                answer = service.inference.Predict(ask(f"models/{name}", RED), timeout=5)
                assert answer.version == str(made[name])
        assert ready(service) == {*MODELS[:2]}


def test_a_server_that_starts_does_not_put_out_what_is_served_for_what_is_tried(
    store: Store,
) -> None:
    made = cameras(store)
    for name in MODELS[:2]:
        store.registry.set_alias(AliasName(name, "production"), made[name], who="a test", why="")
        trial(store, name, RolloutMode.CANARY, 7)
    with running(store, Limits(poll_seconds=0.05), budget=ROOM) as service:
        ends = time.monotonic() + 1
        while time.monotonic() < ends:  # it looks for rollouts many times
            assert ready(service) == {*MODELS[:2]}
            index = service.oip.RepositoryIndex(oip.RepositoryIndexRequest(ready=True), timeout=10)
            assert {entry.version for entry in index.models} == {"1"}


def test_health_tells_of_a_model_that_would_not_load_again_until_it_does(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads_module, "RETRY_SECONDS", 0.1)
    made = cameras(store)
    broken = made["cam-0"]
    assert isinstance(store.blobs, FolderBlobs)
    path = store.blobs.path(store.registry.get_version(broken).manifest.artifacts.onnx)
    whole = path.read_bytes()
    with running(store, Limits(poll_seconds=0.05), budget=ROOM) as service:
        for found in made.values():
            promote(service, ModelName(found.model), found)
        path.write_bytes(b"damaged")
        _, info = refusal(lambda: service.inference.Predict(ask("models/cam-0", RED), timeout=10))
        assert info.reason == "BLOB_CORRUPT"
        assert service.health("models/cam-0") == "NOT_SERVING"
        told = service.oip.ModelReady(oip.ModelReadyRequest(name="cam-0"), timeout=10)
        assert not told.ready
        service.inference.Predict(ask("models/cam-1", RED), timeout=10)
        assert service.health("models/cam-1") == "SERVING"
        path.write_bytes(whole)
        # Nobody asks a model that is NOT_SERVING: the server tries by itself.
        waited = threading.Event()
        for _ in range(200):
            if service.health("models/cam-0") == "SERVING":
                break
            waited.wait(0.05)
        assert service.health("models/cam-0") == "SERVING"
        assert service.inference.Predict(ask("models/cam-0", RED), timeout=10).version == str(
            broken
        )


def test_a_real_server_answers_eight_clients_for_more_models_than_it_has_memory_for(
    tmp_path: Path,
) -> None:
    store = fresh_store(tmp_path)
    made = cameras(store)
    store.close()

    with serving(tmp_path, resident_mib=ROOM_MIB) as process:
        with grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel:
            registry = registry_pb2_grpc.RegistryServiceStub(channel)
            predict = inference_pb2_grpc.InferenceServiceStub(channel).Predict
            for name, found in made.items():
                alias = f"models/{name}/aliases/production"
                registry.SetAlias(
                    registry_pb2.SetAliasRequest(name=alias, version=str(found)), timeout=30
                )

            def client(seed: int) -> int:
                drawn = np.random.default_rng(seed)
                for _ in range(25):
                    name = MODELS[drawn.integers(len(MODELS))]
                    answer = predict(ask(f"models/{name}", RED), timeout=30)
                    assert answer.version == str(made[name])
                return 25

            with ThreadPoolExecutor(8) as pool:
                assert sum(pool.map(client, range(8))) == 200
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    loads = re.findall(r'"version": "models/(cam-\d+)/.*"event": "version loaded"', errors)
    assert len(loads) > len(MODELS)  # they came and went
    assert f'"mib": {ROOM_MIB}, "by": "setting"' in errors
