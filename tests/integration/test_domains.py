"""Many domains on one trunk: each is answered by its own version, and by no other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.integration.rpc_server import (
    LABELS,
    SIZE,
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
from tests.unit.inference.halves import tail_file, trunk_file

from acclimate.oip import grpc_service_pb2 as oip
from acclimate.v1 import inference_pb2, registry_pb2
from acclimate_service.domain.names import AliasName, ModelName, VersionName
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.memory import session_bytes
from acclimate_service.rpc.server import Limits
from acclimate_service.store import Store
from acclimate_service.store.folder import FolderBlobs

RED = plain((250, 10, 10))
TRUNK = trunk_file(1 / 255, size=SIZE)
DOMAINS = tuple(f"dock-{number}" for number in range(12))


def tail(seed: int) -> bytes:
    return tail_file(seed, labels=len(LABELS))


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, 3)).astype(np.float32) * 0.01


def fleet(store: Store, name: str) -> dict[str, VersionName]:
    """A model whose production is served whole, and a version for each domain on one trunk."""
    made = model(store, name)
    found = {"production": version(store, made, classifier(1))}
    for seed, domain in enumerate(DOMAINS):
        # What the whole file answers is never asked here: the halves are what is served.
        whole = b"the whole of %d" % seed
        found[domain] = version(store, made, whole, halves=(TRUNK, tail(seed)))
    for alias, target in found.items():
        store.registry.set_alias(AliasName(name, alias), target, who="a test", why="")
    return found


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, dict[str, VersionName]]]:
    """Room for production, the trunk, and the tails of four domains."""
    store = fresh_store(tmp_path_factory.mktemp("store"))
    found = fleet(store, "docks")
    on_cpu = Execution()
    networks = session_bytes(len(classifier(1)), on_cpu) + session_bytes(len(TRUNK), on_cpu)
    room = networks + 9 * session_bytes(len(tail(0)), on_cpu, shares=True) // 2
    with running(store, Limits(poll_seconds=0.05), budget=room) as service:
        yield service, found
    store.close()


def logits(answer: inference_pb2.PredictResponse) -> np.ndarray:
    return np.array(answer.predictions[0].logits, np.float32)


def test_each_domain_is_answered_by_its_own_version_under_mixed_traffic(
    served: tuple[Service, dict[str, VersionName]],
) -> None:
    service, found = served
    order = np.random.default_rng(0).permutation(list(DOMAINS) * 10)

    def one(domain: str) -> tuple[str, inference_pb2.PredictResponse]:
        request = ask("models/docks", RED, domain=domain, logits=True)
        return domain, service.inference.Predict(request, timeout=30)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(one, order))
    for domain, answer in answers:
        assert answer.version == str(found[domain])
        seed = DOMAINS.index(domain)
        expected = np.array([250, 10, 10], np.float32) / 255 @ weights(seed)
        np.testing.assert_allclose(logits(answer), expected, rtol=1e-4, atol=1e-7)


def test_tails_that_there_is_no_room_for_are_unloaded_and_come_back_when_asked_for(
    served: tuple[Service, dict[str, VersionName]],
) -> None:
    service, found = served
    for domain in DOMAINS:
        service.inference.Predict(ask("models/docks", RED), timeout=10)
        service.inference.Predict(ask("models/docks", RED, domain=domain), timeout=10)
    index = service.oip.RepositoryIndex(oip.RepositoryIndexRequest(ready=True), timeout=10)
    ready = {entry.version for entry in index.models}
    # Those that were asked for last.
    assert ready == {found[name].version for name in ("production", *DOMAINS[-4:])}
    again = service.inference.Predict(ask("models/docks", RED, domain=DOMAINS[0]), timeout=10)
    assert again.version == str(found[DOMAINS[0]])


@pytest.mark.parametrize("domain", ["dock-3", "domains/dock-3"])
def test_a_domain_may_be_named_by_its_id_or_its_whole_name(
    served: tuple[Service, dict[str, VersionName]], domain: str
) -> None:
    service, found = served
    answer = service.inference.Predict(ask("models/docks", RED, domain=domain), timeout=10)
    assert answer.version == str(found["dock-3"])


def test_a_domain_that_the_model_does_not_serve_is_refused_and_not_answered_by_production(
    served: tuple[Service, dict[str, VersionName]],
) -> None:
    service, _ = served
    request = ask("models/docks", RED, domain="dock-99")
    code, info = refusal(lambda: service.inference.Predict(request, timeout=10))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "DOMAIN_NOT_SERVED")
    assert (info.metadata["model"], info.metadata["domain"]) == ("models/docks", "dock-99")


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("models/docks/aliases/production", "dock-1"),
        ("models/docks/versions/1", "dock-1"),
        ("models/docks", "Dock 1"),
        ("models/docks", "domains/"),
    ],
)
def test_a_domain_goes_with_a_model_and_is_an_id(
    served: tuple[Service, dict[str, VersionName]], name: str, domain: str
) -> None:
    service, _ = served
    code, info = refusal(
        lambda: service.inference.Predict(ask(name, RED, domain=domain), timeout=10)
    )
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME")


def infer(domain: str, version: str = "") -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="docks", model_version=version)
    request.inputs.add(name="images", datatype="BYTES", shape=[1])
    request.inputs[0].contents.bytes_contents.append(RED)
    request.parameters["domain"].string_param = domain
    return request


def test_the_standard_protocol_names_a_domain_in_a_parameter(
    served: tuple[Service, dict[str, VersionName]],
) -> None:
    service, found = served
    answer = service.oip.ModelInfer(infer("dock-2"), timeout=10)
    assert answer.model_version == found["dock-2"].version
    _, info = refusal(lambda: service.oip.ModelInfer(infer("dock-99"), timeout=10))
    assert info.reason == "DOMAIN_NOT_SERVED"
    _, info = refusal(lambda: service.oip.ModelInfer(infer("dock-2", "1"), timeout=10))
    assert info.reason == "INVALID_SPEC"


def test_a_version_whose_trunk_is_damaged_is_refused_and_the_rest_answer(tmp_path: Path) -> None:
    store = fresh_store(tmp_path)
    found = fleet(store, "docks")
    trunk = store.registry.get_version(found["dock-0"]).manifest.artifacts.parts
    assert trunk is not None
    assert isinstance(store.blobs, FolderBlobs)
    store.blobs.path(trunk.trunk).write_bytes(b"damaged")
    with running(store, Limits(poll_seconds=0.05)) as service:
        request = ask("models/docks", RED, domain="dock-0")
        code, info = refusal(lambda: service.inference.Predict(request, timeout=10))
        assert (code, info.reason) == (grpc.StatusCode.DATA_LOSS, "BLOB_CORRUPT")
        service.inference.Predict(ask("models/docks", RED), timeout=10)
    store.close()


def test_a_domain_moves_to_its_next_version_like_any_alias(
    served: tuple[Service, dict[str, VersionName]],
) -> None:
    service, _ = served
    halves = (TRUNK, tail(77))
    better = version(service.store, ModelName("docks"), b"the whole of 77", halves=halves)
    service.registry.SetAlias(
        registry_pb2.SetAliasRequest(name="models/docks/aliases/dock-5", version=str(better)),
        timeout=10,
    )
    answer = service.inference.Predict(ask("models/docks", RED, domain="dock-5"), timeout=10)
    assert answer.version == str(better)


def test_production_may_be_a_tail(served: tuple[Service, dict[str, VersionName]]) -> None:
    service, found = served
    promote(service, ModelName("docks"), found["dock-7"])
    for domain in DOMAINS:
        service.inference.Predict(ask("models/docks", RED, domain=domain), timeout=10)
    answer = service.inference.Predict(ask("models/docks", RED), timeout=10)
    assert answer.version == str(found["dock-7"])
    promote(service, ModelName("docks"), found["production"])
