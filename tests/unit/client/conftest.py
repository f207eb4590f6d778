"""A fake service and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.client.fake_service import Service, running

from acclimate import Client


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def target(service: Service) -> Iterator[str]:
    with running(service) as bound:
        yield bound


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    with Client(target, timeout=5, patience=5) as connected:
        yield connected
