"""What a test sees of a server that follows its store, and how it holds up a load there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tests.integration.rpc_server import Service, ask, plain

from acclimate.oip import grpc_service_pb2 as oip_pb
from acclimate_service.domain.names import VersionName

RED = plain((250, 0, 0))


def until(condition: Callable[[], object], what: str = "it", *, seconds: float = 20) -> None:
    """Wait until *condition* holds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"{what} did not come true"
        time.sleep(0.02)


def served_by(service: Service, name: object, **more: Any) -> str:
    """The version that answers to a name, or the code with which nothing does."""
    try:
        return service.inference.Predict(ask(name, RED), timeout=10, **more).version
    except grpc.RpcError as error:
        return str(error.code())


def is_loading(service: Service, which: VersionName) -> bool:
    found = service.server.served.pool.resident()
    return any(item.version == str(which) and item.loading for item in found)


def failed_moves(service: Service) -> float:
    """How many moves of aliases failed."""
    return float(service.server.metrics.swaps.labels("failed")._value.get())


def unload(service: Service, name: str) -> oip_pb.RepositoryModelUnloadResponse:
    return service.oip.RepositoryModelUnload(
        oip_pb.RepositoryModelUnloadRequest(model_name=name), timeout=20
    )


def blocked(
    service: Service, monkeypatch: pytest.MonkeyPatch, slow: VersionName
) -> threading.Event:
    """What lets *slow*, which is being opened from now on, go on to open."""
    opening = service.server.served._loads._opening
    go_on, usual = threading.Event(), opening.open

    def open_(found: Any) -> Any:
        if found.name == slow:
            assert go_on.wait(30)
        return usual(found)

    monkeypatch.setattr(opening, "open", open_)
    return go_on
