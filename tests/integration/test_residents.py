"""More models than memory: all are answered, and health tells what would not be."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
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
from tests.integration.test_rpc_process import port_of, serving

from acclimate.oip import grpc_service_pb2 as oip
from acclimate.v1 import inference_pb2_grpc, registry_pb2, registry_pb2_grpc
from acclimate_service.domain.names import AliasName, ModelName, RolloutName, VersionName
from acclimate_service.domain.rollout import RolloutDraft, RolloutLimits, RolloutMode, RolloutState
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.memory import session_bytes
from acclimate_service.rpc import served as served_module
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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = fresh_store(tmp_path)
    yield found
    found.close()


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
        assert ready(service) == {*MODELS[:2]}
        assert {service.health(f"models/{name}") for name in MODELS} == {"SERVING"}
        answer = service.inference.Predict(ask(f"models/{MODELS[-1]}", RED), timeout=10)
        assert answer.version == str(made[MODELS[-1]])


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


def test_rollouts_leave_the_memory_to_what_is_served(store: Store) -> None:
    """More candidates than there is memory for: nothing is refused, and all are tried."""
    names = MODELS[:3]
    with running(store, Limits(poll_seconds=0.05), budget=ROOM) as service:
        begun = []
        for number, name in enumerate(names):
            shop = model(store, name)
            promote(service, shop, version(store, shop, classifier(1 + number / 10)))
            mode = RolloutMode.CANARY if number else RolloutMode.SHADOW
            begun.append(trial(store, name, mode, 2 + number / 10))

        def seen() -> list[int]:
            for name in names:
                service.inference.Predict(ask(f"models/{name}", RED), timeout=5)
            return [store.rollouts.get(rollout).counts.images for rollout in begun]

        ends = time.monotonic() + 60
        while min(seen()) < 3:
            assert time.monotonic() < ends, "a candidate was never tried"
        for rollout in begun:
            found = store.rollouts.get(rollout)
            assert (found.state, found.counts.errors) == (RolloutState.RUNNING, 0)


def test_a_candidate_does_not_keep_others_waiting_for_memory_that_requests_hold(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cameras(store)
    monkeypatch.setattr(trials, "ROOM_SECONDS", 0.05)
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
        running_ = service.server.served.trials._trials[f"models/{MODELS[0]}/aliases/production"]
        while running_.coming is not None and not running_.coming.done():
            assert time.monotonic() < ends, "it waits on"
            time.sleep(0.01)
        for handle in held:
            service.loop.call_soon_threadsafe(handle.release)


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
    monkeypatch.setattr(served_module, "RETRY_SECONDS", 0.1)
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
