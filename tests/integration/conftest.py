"""Servers for the tests that speak to one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from tests.integration.rpc_server import Service, fresh_store, running

from acclimate_service.rpc.server import Limits
from acclimate_service.store import Store


@pytest.fixture(scope="module", autouse=True)  # not longer: other folders' tests read the log
def quiet() -> Iterator[None]:
    """Only what nobody expected is worth a line between the tests' names."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.reset_defaults()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store of a test's own."""
    store = fresh_store(tmp_path)
    yield store
    store.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server over an empty store, shared by a module's tests."""
    store = fresh_store(tmp_path_factory.mktemp("store"))
    with running(store, Limits(poll_seconds=0.05)) as service:
        yield service
    store.close()
