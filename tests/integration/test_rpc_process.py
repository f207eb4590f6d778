from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from tests.integration.rpc_server import (
    Service,
    ask,
    classifier,
    fresh_store,
    model,
    opening,
    plain,
    promote,
    refusal,
    version,
)
from tests.integration.server_process import port_of, serving

from acclimate.v1 import adaptation_pb2, adaptation_pb2_grpc, inference_pb2_grpc
from acclimate_service.config import ServeSettings
from acclimate_service.domain.job import JobDraft, JobKind, JobSpec
from acclimate_service.domain.names import AliasName, DomainName
from acclimate_service.rpc.served import Served
from acclimate_service.rpc.server import SERVICES, Server
from acclimate_service.serve import REFUSED, _run, _serve
from acclimate_service.store.folder import FolderBlobs

MODELS = (("slow", 2.0), ("quick", 3.0))
RED = plain((250, 0, 0))
# What a server waits for threads that hang, at its start and at its end, is not waited for here.
HURRIED = """
from acclimate_service import serve
from acclimate_service.inference import pool
from acclimate_service.rpc import moves
moves.EAGER_SECONDS = pool.CLOSE_SECONDS = serve.END_SECONDS = 0.5
"""


def health(channel: grpc.Channel, service: str = "") -> str:
    check: Any = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_a_server_is_ready_at_its_port_answers_drains_and_never_loads_torch(
    tmp_path: Path,
) -> None:
    store = fresh_store(tmp_path)
    name = model(store, "digits")
    made = version(store, name, classifier())
    store.registry.set_alias(AliasName("digits", "production"), made)
    store.close()
    with serving(tmp_path) as process:
        port = port_of(process)
        assert (tmp_path / "serve.port").read_text() == f"{port}\n"
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert health(channel, "models/digits") == "SERVING"
            predict = inference_pb2_grpc.InferenceServiceStub(channel).Predict
            answer = predict(ask(name, plain((0, 250, 0))), timeout=10)
            assert answer.predictions[0].classes[0].label == "green"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert not (tmp_path / "serve.port").exists()
    *logs, loaded = errors.splitlines()
    modules = {module.partition(".")[0] for module in loaded.split()}
    assert "onnxruntime" in modules
    assert not modules & {"torch", "torchvision", "timm", "onnx"}
    assert all(json.loads(line)["event"] for line in logs)


@pytest.mark.parametrize("process", ["serve", "work"])
def test_a_log_that_cannot_be_written_ends_no_process(tmp_path: Path, process: str) -> None:
    """Logs often lie on the disk that has filled up, as ``/dev/full`` always has."""
    fresh_store(tmp_path).close()
    environment = os.environ | {"ACCLIMATE_HOME": str(tmp_path), "ACCLIMATE_PORT": "0"}
    command = [sys.executable, "-m", f"acclimate_service.{process}"]
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen(command, env=environment, stdout=full, stderr=full) as running,
    ):
        try:
            # The server tells its port, the worker starts its trainer; both have logged before.
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
            while not ((tmp_path / "serve.port").exists() or children.read_text()):
                assert running.poll() is None
                time.sleep(0.05)
            running.send_signal(signal.SIGTERM)
            assert running.wait(30) == 0
        finally:
            running.kill()


def test_a_server_that_cannot_write_its_port_file_serves_all_the_same(tmp_path: Path) -> None:
    """As on a full disk; here, a folder is where the file should be."""
    fresh_store(tmp_path).close()
    (tmp_path / "serve.port").mkdir()
    with serving(tmp_path) as process:
        with grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel:
            assert health(channel) == "SERVING"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert list(tmp_path.glob("serve.port.*")) == []


def test_predictions_that_run_when_a_server_is_told_to_stop_are_answered(tmp_path: Path) -> None:
    store = fresh_store(tmp_path)
    name = model(store, "busy")
    store.registry.set_alias(AliasName("busy", "production"), version(store, name, classifier()))
    store.close()
    images = [plain((0, 250, 0), side=512)] * 64
    failures: list[grpc.StatusCode] = []
    answered: list[float] = []
    with serving(tmp_path, drain_seconds=20) as process:
        with grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel:
            predict: Any = inference_pb2_grpc.InferenceServiceStub(channel).Predict

            def load() -> None:
                while True:
                    try:
                        predict(ask(name, *images), timeout=30)
                    except grpc.RpcError as error:
                        failures.append(error.code())
                        return
                    answered.append(time.monotonic())

            threads = [threading.Thread(target=load) for _ in range(4)]
            for thread in threads:
                thread.start()
            while len(answered) < 8:
                time.sleep(0.01)
            stopped = time.monotonic()
            process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join(30)
        process.communicate(timeout=30)
    assert process.returncode == 0
    # What came after the signal is turned away, by gRPC itself if it came in the moment of
    # the stop; what ran was answered.
    assert len(failures) == len(threads)
    assert set(failures) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert max(answered) > stopped


@pytest.mark.parametrize(
    ("settings", "reason", "code"),
    [
        ({"provider": "cuda"}, "PROVIDER_UNAVAILABLE", 2),  # which no restart mends
        ({"database_url": "postgresql+psycopg://127.0.0.1:1/none"}, "STORE_UNAVAILABLE", 1),
    ],
)
def test_a_server_that_lacks_what_was_asked_for_ends_and_says_why(
    tmp_path: Path, settings: dict[str, object], reason: str, code: int
) -> None:
    if reason == "PROVIDER_UNAVAILABLE" and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    with serving(tmp_path, **settings) as process:
        out, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    said = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert said[-1]["reason"] == reason


def test_a_server_whose_load_hangs_is_ready_all_the_same_and_ends_when_it_is_told_to(
    tmp_path: Path,
) -> None:
    store = fresh_store(tmp_path)
    slow, quick = (version(store, model(store, name), classifier(gain)) for name, gain in MODELS)
    for made in (slow, quick):
        store.registry.set_alias(AliasName(made.model, "production"), made)
    assert isinstance(store.blobs, FolderBlobs)
    path = store.blobs.path(store.registry.get_version(slow).manifest.artifacts.onnx)
    store.close()
    path.unlink()
    os.mkfifo(path)  # whoever opens it to read waits for a writer, as for a disk that hangs
    with (
        serving(tmp_path, HURRIED, drain_seconds=1) as process,
        grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel,
    ):
        predict = inference_pb2_grpc.InferenceServiceStub(channel).Predict
        assert predict(ask("models/quick", RED), timeout=10).version == str(quick)
        waiting = predict.future(ask("models/slow", RED), timeout=60)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert waiting.exception(timeout=10) is not None
    assert process.returncode == 0
    assert "threads hang at the end" in errors


def test_a_server_that_is_told_to_end_before_it_is_ready_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fresh_store(tmp_path)
    made = version(store, model(store, "shop"), classifier())
    store.registry.set_alias(AliasName("shop", "production"), made)
    store.close()
    begun = asyncio.Event()

    async def begin(_: Served) -> None:
        begun.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(Served, "begin", begin)

    async def scene() -> int:
        settings = ServeSettings(home=tmp_path, port=0)
        serving_ = asyncio.create_task(_serve(settings))
        await begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        return await asyncio.wait_for(serving_, 30)

    assert asyncio.run(scene()) == 0


def test_a_port_that_is_taken_is_not_shared(tmp_path: Path) -> None:
    with serving(tmp_path / "first") as first:
        port = port_of(first)
        with serving(tmp_path / "second", port=port) as second:
            _, errors = second.communicate(timeout=60)
        assert second.returncode == 2  # a restart would not help
        assert "ADDRESS_UNUSABLE" in errors
        assert "ACCLIMATE_PORT" in errors  # what to do about it
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=30)
        assert first.returncode == 0


def test_a_port_for_metrics_that_is_taken_is_none_to_start_again_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCLIMATE_HOME", str(tmp_path))
    monkeypatch.setenv("ACCLIMATE_PORT", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("ACCLIMATE_METRICS_PORT", str(taken.getsockname()[1]))
        assert _run() == REFUSED


@pytest.mark.parametrize(
    "passing", [OSError(errno.EMFILE, "too many open files"), RuntimeError("no new thread")]
)
def test_what_the_system_does_not_give_just_now_is_worth_another_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passing: Exception
) -> None:
    async def begin(_: Served) -> None:
        raise passing

    monkeypatch.setenv("ACCLIMATE_HOME", str(tmp_path))
    monkeypatch.setenv("ACCLIMATE_PORT", "0")
    monkeypatch.setattr(Served, "begin", begin)
    assert _run() == 1


def test_metrics_are_told_at_their_own_port(tmp_path: Path) -> None:
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        metrics = probe.getsockname()[1]
    with serving(tmp_path, metrics_port=metrics) as process:
        with grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel:
            assert health(channel) == "SERVING"
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as page:
            text = page.read().decode()
    assert 'acclimate_rpc_total{code="OK",method="/grpc.health.v1.Health/Check"} 1.0' in text


def test_for_latency_all_cores_work_on_one_image_and_none_of_them_steps_back(
    tmp_path: Path,
) -> None:
    store = fresh_store(tmp_path)
    name = model(store, "lone")
    store.registry.set_alias(AliasName("lone", "production"), version(store, name, classifier()))
    store.close()

    def steps_back(prefer: str) -> set[int]:
        """How far the threads of a server step back."""
        with serving(tmp_path, prefer=prefer, threads=4) as process:
            with grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel:
                predict = inference_pb2_grpc.InferenceServiceStub(channel).Predict
                predict(ask(name, plain((0, 250, 0))), timeout=10)
            stats = Path(f"/proc/{process.pid}/task").glob("*/stat")
            return {int(stat.read_text().rpartition(")")[2].split()[16]) for stat in stats}

    assert steps_back("throughput") == {0, 10}  # the thread that loads
    assert steps_back("latency") == {0}  # else its session's own threads would as well


def test_streams_that_only_wait_do_not_hold_up_the_end(tmp_path: Path) -> None:
    store = fresh_store(tmp_path)
    name = model(store, "waited", labels=())
    draft = JobDraft(
        kind=JobKind.REGISTER, model=name, source=None, target=None, incumbent=None, spec=JobSpec()
    )
    job = store.jobs.enqueue(draft, request_id="")
    store.domains.create(DomainName("site"), ["a", "b"])
    store.close()
    with serving(tmp_path, drain_seconds=20) as process:
        with grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel:
            adaptation = adaptation_pb2_grpc.AdaptationServiceStub(channel)
            watched = adaptation.WatchAdaptationJob(
                adaptation_pb2.WatchAdaptationJobRequest(name=str(job.name))
            )
            hold: queue.Queue[adaptation_pb2.UploadBatchRequest | None] = queue.Queue()
            hold.put(opening("domains/site", "held"))
            uploading = adaptation.UploadBatch(iter(hold.get, None))
            watch: Any = channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            healthy = watch(health_pb2.HealthCheckRequest())
            assert next(healthy).status == health_pb2.HealthCheckResponse.SERVING
            assert next(watched).sequence == 1
            assert next(uploading).opened.next_index == 0
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert next(healthy).status == health_pb2.HealthCheckResponse.NOT_SERVING
            for stream in (watched, uploading, healthy):
                code, info = refusal(partial(next, stream))
                assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
            hold.put(None)
        process.communicate(timeout=30)
        assert time.monotonic() - started < 10
    assert process.returncode == 0


def test_a_client_that_knows_only_the_reflection_lists_checks_and_predicts(
    service: Service,
) -> None:
    name = model(service.store, "foreign")
    promote(service, name, version(service.store, name, classifier(41)))
    buf = str(Path(sys.executable).with_name("buf"))
    url = f"http://127.0.0.1:{service.port}"

    def curl(*arguments: str) -> str:
        command = [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    assert set(curl("--list-services", url).split()) >= {*SERVICES, "grpc.health.v1.Health"}
    assert json.loads(curl(f"{url}/grpc.health.v1.Health/Check")) == {"status": "SERVING"}
    image = base64.b64encode(plain((0, 0, 250))).decode()
    answer = json.loads(
        curl(
            "--data",
            json.dumps({"model": str(name), "images": [image], "topK": 1}),
            f"{url}/acclimate.v1.InferenceService/Predict",
        )
    )
    assert answer["predictions"][0]["classes"][0]["label"] == "blue"
    assert answer["version"] == f"{name}/versions/1"


def test_a_server_that_no_longer_follows_the_store_ends_as_what_may_be_over_after_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise OSError(errno.EIO, "of the disk, not of an address that is taken")

    monkeypatch.setattr(Server, "until", broken)
    settings = ServeSettings(home=tmp_path, port=0, threads=1)
    assert asyncio.run(_serve(settings)) == 1
