"""A server whose object store is slow, away, or back: what goes on, and what is said."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from tests.integration.rpc_server import (
    Service,
    ask,
    classifier,
    domain,
    model,
    picture,
    plain,
    promote,
    refusal,
    running,
    upload,
    version,
)
from tests.integration.watching import until
from tests.objectstore import FaultProxy

from acclimate.v1 import adaptation_pb2
from acclimate_service.domain.names import AliasName, ModelName, VersionName
from acclimate_service.rpc.server import Limits
from acclimate_service.store import Bucket, Store, objects, open_store
from acclimate_service.store import bucket as bucket_module

RED = plain((250, 10, 10))
STORING = "acclimate.v1.AdaptationService"
Opener = Callable[[str], Store]
FILES = [
    adaptation_pb2.Example(id=str(n), label="red", image=picture(n, side=64)) for n in range(70)
]


@pytest.fixture
def opener(faulty: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Opens the store of one bucket, in a home of any name."""
    for name, value in faulty.store.environment.items():
        monkeypatch.setenv(name, value)
    retry = {"max_retries": 2, "retry_timeout": dt.timedelta(seconds=2)}
    backoff = {"init_backoff": dt.timedelta(milliseconds=10), "base": 2}
    monkeypatch.setattr(objects, "RETRY", retry | {"backoff": backoff})
    monkeypatch.setattr(bucket_module, "PING_SECONDS", 0.1)
    url = faulty.store.bucket()
    with contextlib.ExitStack() as stack:

        def opened(home: str) -> Store:
            place = Bucket(url=url, cache=tmp_path / home, cache_bytes=2**24)
            store = open_store(f"sqlite:///{tmp_path / 'store.db'}", place)
            stack.callback(store.close)
            return store

        yield opened


def serving(store: Store) -> AbstractContextManager[Service]:
    return running(store, Limits(poll_seconds=0.05))


def served(service: Service, name: ModelName) -> str:
    """The version that answers for the model; empty if none does."""
    try:
        return service.inference.Predict(ask(name, RED), timeout=30).version
    except grpc.RpcError:
        return ""


def two_versions(store: Store, name: str) -> tuple[ModelName, VersionName, VersionName]:
    of = model(store, name)
    return of, version(store, of, classifier(1)), version(store, of, classifier(2))


def test_while_the_bucket_is_away_what_is_loaded_answers_and_the_rest_says_when_to_try_again(
    opener: Opener, faulty: FaultProxy
) -> None:
    store = opener("one")
    name, first, second = two_versions(store, "away")
    with serving(store) as service:
        promote(service, name, first)
        to = domain(service, "photos")
        until(lambda: service.health(STORING) == "SERVING")
        faulty.faults.gone = True

        code, info = refusal(lambda: promote(service, name, second))
        assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert served(service, name) == str(first)
        with pytest.raises(grpc.RpcError) as refused:
            upload(service, to, FILES[:3], request_id="r")
        assert retry_seconds(refused.value) > 0
        until(lambda: service.health(STORING) == "NOT_SERVING")
        assert service.health("acclimate.v1.InferenceService") == "SERVING"
        assert service.health(str(name)) == "SERVING"

        faulty.faults.gone = False
        until(lambda: service.health(STORING) == "SERVING")
        promote(service, name, second)
        assert served(service, name) == str(second)
        taken = upload(service, to, FILES[:3], request_id="r")
        assert taken[-1].committed.accepted == 3


def test_an_alias_that_is_moved_elsewhere_to_what_cannot_be_fetched_leaves_the_old_one_serving(
    opener: Opener, faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate_service.rpc.loads.RETRY_SECONDS", 0.5)
    store = opener("one")
    name, first, second = two_versions(store, "moved")
    alias = AliasName(name.model, "production")
    with serving(store) as service:
        promote(service, name, first)
        faulty.faults.gone = True
        store.registry.set_alias(alias, second, who="a worker", why="accepted")
        time.sleep(1)
        assert served(service, name) == str(first)
        faulty.faults.gone = False
        until(lambda: served(service, name) == str(second))


def test_a_server_that_starts_without_its_bucket_serves_what_is_at_hand_and_then_the_rest(
    opener: Opener, faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate_service.rpc.loads.RETRY_SECONDS", 0.5)
    store = opener("one")
    kept, first, _ = two_versions(store, "kept")
    other, _, second = two_versions(store, "other")
    with serving(store) as service:
        promote(service, kept, first)
    with serving(opener("two")) as service:
        promote(service, other, second)
    faulty.faults.gone = True
    with serving(opener("one")) as service:
        assert served(service, kept) == str(first)
        assert served(service, other) == ""
        faulty.faults.gone = False
        until(lambda: served(service, other) == str(second))


def test_while_a_slow_bucket_takes_an_upload_predictions_are_answered(
    opener: Opener, faulty: FaultProxy
) -> None:
    store = opener("one")
    name, first, _ = two_versions(store, "slow")
    taken: list[adaptation_pb2.UploadBatchResponse] = []
    with serving(store) as service:
        promote(service, name, first)
        to = domain(service, "photos")
        before = len(faulty.faults.asked)
        faulty.faults.delay = 1.0
        sending = threading.Thread(
            target=lambda: taken.extend(upload(service, to, FILES, request_id="r"))
        )
        sending.start()
        until(lambda: "PUT" in faulty.faults.asked[before:])
        assert served(service, name) == str(first)
        assert sending.is_alive()
        sending.join()
        assert taken[-1].committed.accepted == len(FILES)
        assert faulty.faults.asked[before:].count("PUT") == len(FILES)


def retry_seconds(error: Any) -> float:
    """After how many seconds the server says to try again."""
    found = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(found["grpc-status-details-bin"])
    for detail in status.details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToTimedelta().total_seconds())
    raise AssertionError("no RetryInfo")
