"""Drift over a real server: what is remembered, what it is compared with, and what is told."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tests.integration.rpc_server import (
    Service,
    classifier,
    domain,
    model,
    plain,
    promote,
    running,
    upload,
    version,
)

from acclimate import Client
from acclimate.errors import NotFound
from acclimate.v1 import adaptation_pb2
from acclimate_service.domain.drift import FEWEST
from acclimate_service.rpc.drifts import EVERY, KEPT
from acclimate_service.rpc.server import Limits
from acclimate_service.store import Store


@pytest.fixture
def service(store: Store) -> Iterator[Service]:
    with running(store, Limits(poll_seconds=0.05)) as service:
        yield service


def reddish(rng: np.random.Generator) -> bytes:
    red, rest = rng.integers(150, 250), rng.integers(0, 60, size=2)
    return plain((int(red), int(rest[0]), int(rest[1])))


def bluish(rng: np.random.Generator) -> bytes:
    blue, rest = rng.integers(150, 250), rng.integers(0, 60, size=2)
    return plain((int(rest[0]), int(rest[1]), int(blue)))


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    """A client of a model that was made on a domain of reddish images."""
    rng = np.random.default_rng(0)
    site = domain(service, "site")
    examples = [adaptation_pb2.Example(image=reddish(rng), label="red") for _ in range(100)]
    upload(service, site, examples, request_id="r")
    name = model(service.store, "shop", source=site)
    promote(service, name, version(service.store, name, classifier(31)))
    with Client(f"127.0.0.1:{service.port}") as client:
        yield client


def test_images_like_the_known_ones_are_told_so_and_others_call_for_an_adaptation(
    client: Client,
) -> None:
    rng = np.random.default_rng(1)
    assert "too few live images" in client.drift("shop").message
    assert client.drift("shop").images == 0
    for known in range(1, 4):  # a newcomer's first requests, few and one by one
        client.predict("shop", reddish(rng))
        assert client.drift("shop").images == known
    client.predict("shop", [reddish(rng) for _ in range(FEWEST - known)])
    found = client.drift("shop")
    assert (found.due, found.images) == (False, FEWEST)
    assert found.domains[0][0] == "domains/site"
    for _ in range(EVERY * 6):
        client.predict("shop", [bluish(rng) for _ in range(FEWEST)])
    moved = client.drift("shop")
    assert moved.due
    assert moved.images == KEPT  # bounded: the newest
    assert moved.domains[0][3]


def test_an_answer_shows_nothing_of_what_is_remembered(client: Client) -> None:
    rng = np.random.default_rng(2)
    answers = [client.predict("shop", reddish(rng))[0] for _ in range(2 * EVERY)]
    assert {len(answer.embedding) for answer in answers} == {0}


def test_the_images_that_live_ones_are_compared_with_count_as_nobody_s_requests(
    client: Client,
) -> None:
    rng = np.random.default_rng(3)
    client.predict("shop", [reddish(rng) for _ in range(FEWEST)])
    before = client.statistics("shop")
    assert client.drift("shop").domains
    assert client.statistics("shop") == before


def test_the_drift_of_what_there_is_not_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound):
        client.drift("nowhere")
