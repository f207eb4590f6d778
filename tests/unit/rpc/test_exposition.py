"""The metrics' port against those who should not ask, who never end, and who come in crowds."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import prometheus_client
import pytest

from acclimate_service.domain.access import Principal, principal_of
from acclimate_service.domain.errors import Unauthenticated
from acclimate_service.rpc import exposition
from acclimate_service.rpc.exposition import CONNECTIONS, exposed


class Keys:
    """A keyring whose secrets are the names of principals."""

    def token(self, authorization: str | None, _peer: object) -> Any:
        word = (authorization or "").removeprefix("Bearer ")
        models: Collection[str] = {"all": (), "mine": ("mine-*",)}.get(word, ("nobody",))
        if models == ("nobody",):
            raise Unauthenticated("the token is not known")
        principal: Principal = principal_of("x", roles=["predict"], models=models, domains=())
        return type("Token", (), {"principal": principal})()


@pytest.fixture
def port() -> Iterator[int]:
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Gauge("served", "", ["model"], registry=registry).labels("theirs").set(1)
    keys: Any = Keys()
    with exposed(registry, host="127.0.0.1", port=0, keyring=keys, tls=None) as port:
        yield port


def scrape(port: int, token: str | None) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("token", "status"), [(None, 401), ("wrong", 401), ("mine", 403), ("all", 200)]
)
def test_only_who_may_know_of_every_model_is_told(
    port: int, token: str | None, status: int
) -> None:
    answered, told = scrape(port, token)
    assert answered == status
    assert ("theirs" in told) is (status == 200)


def test_a_crowd_gets_no_more_than_its_places_and_leaves_them_again_without_a_word(
    port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        late = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        assert late.recv(1) == b""
    until = time.monotonic() + 20
    while True:  # until the server has seen that they are gone
        try:
            assert scrape(port, "all")[0] == 200
            break
        except OSError:
            assert time.monotonic() < until
    assert capfd.readouterr().err == ""


def test_who_sends_for_ever_is_broken_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "LONGEST_SECONDS", 0.3)
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as drip, suppress(OSError):
        for _ in range(1000):
            drip.sendall(b"G")
            sent += 1
            time.sleep(0.02)
    assert 0 < sent < 1000
    assert scrape(port, "all")[0] == 200
