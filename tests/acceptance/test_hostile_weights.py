"""Hostile weights files against the real processes: each costs its own job, and nothing else."""

from __future__ import annotations

import datetime as dt
import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tests.acceptance.processes import Service, wait_for
from tests.chaos import pictures

from acclimate import Client, Job, JobState, Preprocessing
from acclimate.errors import InvalidRequest, NotFound
from acclimate_service.domain.job import JobDraft, JobKind, JobSpec
from acclimate_service.domain.model import Architecture, Model, WeightsSource
from acclimate_service.domain.names import DomainName, ModelName
from acclimate_service.store import open_store

JOB_SECONDS = 240.0
BOMB_BYTES = 512 * 2**20
SECRET = b"nobody outside is to read this"


class Runs:
    """Unpickled, it runs a command of the shell."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self._command,)


def running_code(marker: Path) -> bytes:
    """What torch.save writes of an object that makes *marker* when it is unpickled."""
    file = io.BytesIO()
    torch.save({"conv1.weight": Runs(f"touch {marker}")}, file)
    return file.getvalue()


def bomb() -> bytes:
    """A small archive that holds half a GiB of zeros."""
    saved, packed = io.BytesIO(), io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(4)}, saved)
    with (
        zipfile.ZipFile(saved) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            new.writestr(name, bytes(BOMB_BYTES) if "data/0" in name else old.read(name))
    return packed.getvalue()


def pointing_outside() -> bytes:
    """An ONNX file whose weights lie in another file, two folders up."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[len(SECRET) // 4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [tensor],
    )
    content: bytes = helper.make_model(graph).SerializeToString()
    assert onnx.load_from_string(content).graph.initializer[0].data_location
    return content


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(
        tmp_path / "home",
        serve={},
        work={"idle_priority": False, "poll_seconds": 0.1, "threads": 1, "device": "cpu"},
    ) as running:
        yield running


def past_the_door(home: Path, model: str, content: bytes) -> str:
    """Put the file and its job into the store, as a server would that looked at nothing."""
    store = open_store(f"sqlite:///{home / 'acclimate.db'}", home / "blobs")
    library, _, name = pictures.ARCHITECTURE.partition("/")
    try:
        made = store.registry.create_model(
            Model(
                name=ModelName(model),
                architecture=Architecture(library=library, name=name),
                weights=WeightsSource(kind="FILE", reference=store.blobs.put(content)),
                labels=pictures.LABELS,
                preprocessing=None,
                source_domain=DomainName("bright"),
                created_at=dt.datetime.now(dt.UTC),
            )
        )
        draft = JobDraft(
            kind=JobKind.REGISTER,
            model=made.name,
            source=made.source_domain,
            target=None,
            incumbent=None,
            spec=JobSpec(),
        )
        return str(store.jobs.enqueue(draft, request_id=f"register:{model}").name)
    finally:
        store.close()


def register(client: Client, folder: Path, model: str, content: bytes) -> Job | None:
    """Register a file as its owner would."""
    file = folder / f"{model}.weights"
    file.write_bytes(content)
    _, job = client.register_model(
        model,
        pictures.ARCHITECTURE,
        weights=file,
        labels=pictures.LABELS,
        preprocessing=Preprocessing(size=pictures.SIDE, crop=1.0),
        source_domain="bright",
    )
    return job


def ended(job: Job) -> Job:
    """The job, at its end."""
    wait_for(lambda: job.refresh().state.ended, JOB_SECONDS, f"the end of {job.name}")
    return job


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hostile_weights_fail_their_own_job_with_the_reason_and_the_worker_goes_on(
    service: Service, tmp_path: Path
) -> None:
    marker = tmp_path / "it-ran"
    (service.home.parent / "secret").write_bytes(SECRET)
    server, worker = service.serve.pid, service.work.pid
    # What the first bytes tell of is refused before anything is kept; the rest by the trainer.
    taken = {
        "pickle": (running_code(marker), "system"),
        "bomb": (bomb(), "holds more than its size"),
    }
    refused = {
        "bare-pickle": (pickle.dumps(Runs(f"touch {marker}"), 4), "bare pickle"),
        "onnx": (pointing_outside(), "ONNX"),
    }
    with service.client() as client:
        pictures.furnish(client, pictures.weights(tmp_path))
        jobs = {}
        for model, (content, _) in taken.items():
            jobs[model] = register(client, tmp_path, model, content)
        for model, (content, why) in refused.items():
            with pytest.raises(InvalidRequest, match=why) as error:
                register(client, tmp_path, model, content)
            assert error.value.reason == "WEIGHTS_MISMATCH"
            with pytest.raises(NotFound):
                client.model(model)
            jobs[model] = client.job(past_the_door(service.home, model, content))
        good = register(client, tmp_path, "good", pictures.weights(tmp_path).read_bytes())
        for model, (_, why) in (taken | refused).items():
            job = jobs[model]
            assert job is not None
            told = ended(job).snapshot
            assert (told.state, told.attempt) == (JobState.FAILED, 1), told
            assert told.failure_reason == "WEIGHTS_MISMATCH"
            assert why in told.failure_message
            assert SECRET.decode() not in told.failure_message
        assert good is not None
        assert ended(good).state is JobState.SUCCEEDED, good.snapshot
    assert not marker.exists()
    assert (service.serve.pid, service.work.pid) == (server, worker)
    assert service.serve.alive
    assert service.work.alive
