"""The real server in this process, on a thread of its own, and small models to serve."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import hashlib
import io
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import onnx
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status
from onnx import TensorProto, helper, numpy_helper
from opentelemetry.trace import Tracer
from PIL import Image

from acclimate.oip import grpc_service_pb2_grpc
from acclimate.v1 import (
    adaptation_pb2,
    adaptation_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)
from acclimate_service.domain.examples import EMPTY_CHAIN, chain_digest
from acclimate_service.domain.job import Job, JobDraft, JobKind, JobSpec, JobState, Lease
from acclimate_service.domain.model import (
    Architecture,
    Artifacts,
    Manifest,
    Model,
    ModelVersion,
    Origin,
    Parts,
    Precision,
    Preprocessing,
    WeightsSource,
    manifest_format,
)
from acclimate_service.domain.names import DomainName, JobName, ModelName, VersionName
from acclimate_service.inference.batcher import Batcher
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.pool import Pool
from acclimate_service.rpc.server import Admission, Limits, Server
from acclimate_service.store import NewVersion, Store, open_store

T = TypeVar("T")

SIZE = 16  # pixels a side of the models here
PREPROCESSING = Preprocessing(size=SIZE, crop=1.0)
LABELS = ("red", "green", "blue")


# ── the server ───────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running server, its store, and stubs over a real channel to it."""

    store: Store
    server: Server
    port: int
    channel: grpc.Channel
    loop: asyncio.AbstractEventLoop

    @property
    def adaptation(self) -> adaptation_pb2_grpc.AdaptationServiceStub:
        return adaptation_pb2_grpc.AdaptationServiceStub(self.channel)

    @property
    def registry(self) -> registry_pb2_grpc.RegistryServiceStub:
        return registry_pb2_grpc.RegistryServiceStub(self.channel)

    @property
    def inference(self) -> inference_pb2_grpc.InferenceServiceStub:
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def oip(self) -> grpc_service_pb2_grpc.GRPCInferenceServiceStub:
        return grpc_service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def health(self, service: str = "") -> str:
        """The name of a service's health status."""
        check: Any = self.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def run(self, act: Callable[[], Any]) -> Any:
        """Run the coroutine that *act* makes on the server's own loop."""
        return asyncio.run_coroutine_threadsafe(act(), self.loop).result(60)


@contextmanager
def running(
    store: Store,
    limits: Limits,
    *,
    budget: int = 2**31,
    precision: Precision = "fp32",
    admission: Admission = Admission(),  # noqa: B008  frozen
    tracer: Tracer | None = None,
    tls: grpc.ServerCredentials | None = None,
    channel: Callable[[int], grpc.Channel] | None = None,
) -> Iterator[Service]:
    """A server over *store* on a free port of the loopback, drained at the end.

    With *tls*, *channel* makes the channel that the service's stubs use.
    """
    started: list[tuple[Server, int]] = []
    failure: list[BaseException] = []
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def live() -> None:
        batcher = Batcher(threads=2, room=limits.predictions)
        pool: Pool[ModelVersion] = Pool(batcher, budget=budget)
        server = Server(
            store,
            pool,
            execution=Execution(threads=2),
            precision=precision,
            limits=limits,
            admission=admission,
            tracer=tracer,
        )
        try:
            started.append((server, server.listen("127.0.0.1", 0, tls)))
            await server.start()
            ready.set()
            await stop.wait()
        finally:
            await server.stop(5)
            await pool.close()
            await batcher.close()

    def main() -> None:
        try:
            loop.run_until_complete(live())
        except BaseException as error:  # noqa: BLE001  # the test's thread tells it
            failure.append(error)
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    assert ready.wait(30)
    if failure:
        raise failure[0]
    server, port = started[0]
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    try:
        plain = functools.partial(grpc.insecure_channel, options=options)
        with plain(f"127.0.0.1:{port}") if channel is None else channel(port) as opened:
            yield Service(store=store, server=server, port=port, channel=opened, loop=loop)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    """The code and the ErrorInfo with which *call* is refused."""
    try:
        call()
    except grpc.RpcError as error:
        return explained(error)
    raise AssertionError("the call was not refused")


def explained(error: Any) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    """The code and the ErrorInfo of a refused call."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    return error.code(), info


# ── images and uploads ───────────────────────────────────────────────────────


def picture(seed: int, *, side: int = 24, kind: str = "PNG") -> bytes:
    """An image that no other seed has."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def plain(color: tuple[int, int, int], side: int = SIZE) -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, "PNG")
    return file.getvalue()


def chain_of(examples: Iterable[adaptation_pb2.Example], start: str = EMPTY_CHAIN) -> str:
    """The running digest over *examples*."""
    for example in examples:
        start = chain_digest(start, example.image, example.label)
    return start


def opening(
    domain: str, request_id: str, role: adaptation_pb2.Role.ValueType = adaptation_pb2.ROLE_TRAIN
) -> adaptation_pb2.UploadBatchRequest:
    """The first message of an upload."""
    return adaptation_pb2.UploadBatchRequest(
        open=adaptation_pb2.UploadBatchRequest.Open(parent=domain, role=role, request_id=request_id)
    )


def items(
    examples: Sequence[adaptation_pb2.Example], first: int = 0
) -> Iterator[adaptation_pb2.UploadBatchRequest]:
    """The messages that carry *examples*, numbered from *first*."""
    for index, example in enumerate(examples, first):
        yield adaptation_pb2.UploadBatchRequest(
            item=adaptation_pb2.UploadBatchRequest.Item(index=index, example=example)
        )


def commit(count: int, chain: str) -> adaptation_pb2.UploadBatchRequest:
    """The last message of an upload."""
    return adaptation_pb2.UploadBatchRequest(
        commit=adaptation_pb2.UploadBatchRequest.Commit(count=count, chain=chain)
    )


def upload(
    service: Service,
    domain: str,
    examples: Sequence[adaptation_pb2.Example],
    *,
    request_id: str,
    role: adaptation_pb2.Role.ValueType = adaptation_pb2.ROLE_TRAIN,
) -> list[adaptation_pb2.UploadBatchResponse]:
    """A whole upload; everything that was answered."""

    def messages() -> Iterator[adaptation_pb2.UploadBatchRequest]:
        yield opening(domain, request_id, role)
        yield from items(examples)
        yield commit(len(examples), chain_of(examples))

    return list(service.adaptation.UploadBatch(messages(), timeout=60))


def domain(service: Service, name: str, labels: Sequence[str] = LABELS) -> str:
    """A new domain's resource name."""
    made = service.adaptation.CreateDomain(
        adaptation_pb2.CreateDomainRequest(domain_id=name, labels=labels), timeout=10
    )
    return made.name


# ── models and versions ──────────────────────────────────────────────────────


def classifier(gain: float = 1.0, *, size: int = SIZE) -> bytes:
    """An ONNX file that answers with the colour that an image has most of.

    The logits are *gain* times the channels' means, so that a file can be told from
    another by its answers.
    """
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "white"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "sides"], ["embeddings"], keepdims=0),
        helper.make_node("Mul", ["embeddings", "gain"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    rows = [("embeddings", 3), ("logits", 3), ("probabilities", 3)]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", size, size, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n, width in rows],
        [
            numpy_helper.from_array(np.array(255, np.float32), "white"),
            numpy_helper.from_array(np.array(gain, np.float32), "gain"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "sides"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def model(store: Store, name: str, labels: tuple[str, ...] = LABELS, source: str = "") -> ModelName:
    """A model without versions."""
    made = store.registry.create_model(
        Model(
            name=ModelName(name),
            architecture=Architecture(library="timm", name="resnet18"),
            weights=WeightsSource(kind="HUB"),
            labels=labels,
            preprocessing=PREPROCESSING if labels else None,
            source_domain=DomainName.parse(source) if source else None,
            created_at=dt.datetime.now(dt.UTC),
        )
    )
    return made.name


def version(
    store: Store,
    model: ModelName,
    content: bytes,
    *,
    halves: tuple[bytes, bytes] | None = None,
    preprocessing: Preprocessing = PREPROCESSING,
    verdict: bytes | None = None,
) -> VersionName:
    """The next version of *model*, made by a job as a worker makes it; in two *halves*, too."""
    onnx_digest = store.blobs.put(content)
    weights = store.blobs.put(b"weights of " + content)
    artifacts = Artifacts(
        onnx=onnx_digest,
        weights=weights,
        onnx_bytes=len(content),
        weights_bytes=len(content) + len(b"weights of "),
        parts=None
        if halves is None
        else Parts(
            stage="head",
            trunk=store.blobs.put(halves[0]),
            tail=store.blobs.put(halves[1]),
            trunk_bytes=len(halves[0]),
            tail_bytes=len(halves[1]),
        ),
        verdict=None if verdict is None else store.blobs.put(verdict),
    )
    draft = JobDraft(
        kind=JobKind.REGISTER,
        model=model,
        source=None,
        target=None,
        incumbent=None,
        spec=JobSpec(),
    )
    queued = store.jobs.enqueue(draft, request_id="")
    job, lease = claim(store, queued.name)

    def manifest(name: VersionName) -> Manifest:
        return Manifest(
            format=manifest_format(preprocessing),
            version=str(name),
            parent=None,
            job=str(job.name),
            origin=Origin.REGISTERED,
            architecture=Architecture(library="timm", name="resnet18"),
            preprocessing=preprocessing,
            labels=LABELS,
            artifacts=artifacts,
            stages_trained=(),
            strategy="register",
            blend=1.0,
            seed=0,
            domains={},
            verdict={},
            libraries={},
            created_at=dt.datetime.now(dt.UTC),
        )

    ended = store.jobs.finish(
        lease,
        state=JobState.SUCCEEDED,
        summary={},
        version=NewVersion(parent=None, origin=Origin.REGISTERED, manifest=manifest),
    )
    assert ended.version is not None
    return ended.version


def claim(store: Store, name: JobName) -> tuple[Job, Lease]:
    """Claim the job of this *name* as a worker does; those before it stay claimed."""
    while True:
        claimed = store.jobs.claim("a test", lease_seconds=3600, max_attempts=3)
        assert claimed is not None
        if claimed[0].name == name:
            return claimed


def promote(service: Service, model: ModelName, version: VersionName) -> registry_pb2.Alias:
    """Point the model's production alias at *version* through the API."""
    return service.registry.SetAlias(
        registry_pb2.SetAliasRequest(name=f"{model}/aliases/production", version=str(version)),
        timeout=30,
    )


def ask(model: object, *images: bytes, **wanted: Any) -> inference_pb2.PredictRequest:
    """A prediction request."""
    return inference_pb2.PredictRequest(model=str(model), images=images, **wanted)


def sha256(content: bytes) -> str:
    """The digest in hex."""
    return hashlib.sha256(content).hexdigest()


def fresh_store(folder: Path) -> Store:
    """The store in *folder*, a new one where there is none yet."""
    file = folder / "acclimate.db"
    if folder.is_dir() and not file.exists():
        file.touch(mode=0o600)
        file.write_bytes(_migrated())
    return open_store(f"sqlite:///{file}", folder / "blobs")


@functools.cache
def _migrated() -> bytes:
    """The file of an empty store, which takes eight times as long to migrate as to write."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "acclimate.db"
        open_store(f"sqlite:///{file}", Path(folder) / "blobs").close()
        return file.read_bytes()
