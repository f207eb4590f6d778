from __future__ import annotations

import asyncio
from typing import Any

import pytest

from acclimate.v1 import adaptation_pb2
from acclimate_service.domain.errors import PermissionDenied, RateExceeded
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.denials import KINDS, Denial, Denials
from acclimate_service.rpc.door import Door
from acclimate_service.rpc.rates import Rates

UPLOAD = "/acclimate.v1.AdaptationService/UploadBatch"
NOTHING: Any = None  # a store and a lane that are not asked for anything here


class Peer:
    """All that the door asks of a call's context."""

    def __init__(self, address: str) -> None:
        self._address = address

    def peer(self) -> str:
        return self._address

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


def opened(**rates: float) -> Door:
    return Door(NOTHING, lane=NOTHING, keyring=None, rates=Rates(**rates))


def knock(door: Door, method: str, address: str = "ipv4:127.0.0.1:1234") -> Any:
    peer: Any = Peer(address)
    return door.knock(method, {}, peer)


def test_a_method_without_a_row_is_shut_even_where_nobody_is_asked() -> None:
    with pytest.raises(PermissionDenied, match="rpc/rights"):
        knock(opened(), "/acclimate.v1.AdaptationService/SomethingNew")


def test_an_upload_over_its_rate_is_slowed_down_and_the_next_one_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    door = opened(upload_bytes=1000)
    visit = knock(door, UPLOAD)
    item = adaptation_pb2.UploadBatchRequest()
    asyncio.run(visit.admit(item, 1500))  # two seconds of the rate may come at once
    assert slept == []
    asyncio.run(visit.admit(item, 10_500))
    assert slept == [pytest.approx(10.0, abs=0.1)]
    with pytest.raises(RateExceeded) as refused:
        knock(door, UPLOAD)
    assert refused.value.retry_after == pytest.approx(10.0, abs=0.2)


def test_without_tokens_each_address_has_a_rate_of_its_own() -> None:
    door = opened(requests=1)
    method = "/acclimate.v1.RegistryService/ListModels"
    for _ in range(2):
        knock(door, method, "ipv4:127.0.0.1:1")
    with pytest.raises(RateExceeded):
        knock(door, method, "ipv4:127.0.0.1:2")
    knock(door, method, "ipv4:127.0.0.2:1")
    for _ in range(5):  # probes are never refused
        knock(door, "/grpc.health.v1.Health/Check", "ipv4:127.0.0.1:1")


class Ledger:
    """A store that only writes lines down."""

    def __init__(self) -> None:
        self.audit = self
        self.lines: list[dict[str, str]] = []

    def record(self, **line: str) -> None:
        self.lines.append(line)


def test_refusals_do_not_fill_the_audit_log() -> None:
    ledger: Any = Ledger()
    now = [0.0]

    async def flood() -> None:
        lane = Lane("test", threads=1, waiting=10)
        denials = Denials(ledger, lane=lane, clock=lambda: now[0])
        for number in range(50 * KINDS):
            for _ in range(3):
                denials.count(Denial(f"p{number}", "/a/B", "PERMISSION_DENIED", "ipv4:1.2.3.4"))
        await denials.flush()
        assert len(ledger.lines) == KINDS + 1
        now[0] = 61.0
        await denials.flush()
        assert len(ledger.lines) == 2 * (KINDS + 1)
        assert ledger.lines[-1]["why"].endswith("times more")
        await denials.flush()
        assert len(ledger.lines) == 2 * (KINDS + 1)
        lane.close()

    asyncio.run(flood())


def test_a_refusal_while_the_same_one_is_written_down_is_not_forgotten() -> None:
    now, denial = [0.0], Denial("eve", "/a/B", "PERMISSION_DENIED", "ipv4:1.2.3.4")

    class Slow(Ledger):
        def record(self, **line: str) -> None:
            super().record(**line)
            if len(self.lines) == 2:
                denials.count(denial)  # as the event loop may meanwhile

    ledger: Any = Slow()
    lane = Lane("test", threads=1, waiting=10)
    denials = Denials(ledger, lane=lane, clock=lambda: now[0])

    async def scene() -> None:
        for _ in range(3):
            denials.count(denial)
        for now[0] in (0.0, 61.0, 122.0):
            await denials.flush()
        lane.close()

    asyncio.run(scene())
    told = [line["why"].partition(", ")[2] for line in ledger.lines]
    assert told == ["", "2 times more", ""]
