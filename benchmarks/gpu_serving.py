"""Images a second from a GPU: the bare session, and over gRPC; what holds the latter up.

    ./run bench gpu_serving [--seconds S] [--quick] [--json PATH]

EfficientNet-Lite0 at 224 pixels with uint8 input, registered as a user would, as float32
and as float16. The reference is the session in this process, by the size of its batch, by
one thread and by two. Over gRPC the load comes from h2load; a request holds one image or
more. The bottleneck is named by what is busy: the server's event loop (the processor time
of its main thread), its inference threads, or the client.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from benchmarks import standing
from benchmarks.load import Call, call, h2load
from benchmarks.serving import OIP, requests
from numpy.typing import NDArray

from acclimate.oip import grpc_service_pb2 as oip
from acclimate.oip import grpc_service_pb2_grpc as oip_grpc
from acclimate_service.config import ServeSettings
from acclimate_service.domain.model import Precision
from acclimate_service.domain.names import VersionName
from acclimate_service.inference.classifier import INPUT, Classifier, Execution
from acclimate_service.store import open_store
from acclimate_service.training.fp16 import fp16

BATCHES = (1, 8, 32, 128)
LOADS = ((1, 1), (1, 8), (1, 64), (8, 1), (8, 16), (32, 1), (32, 8), (128, 4))  # images, at once
BUSY = 0.85


# ── the session ──────────────────────────────────────────────────────────────


def raw(
    files: dict[Precision, bytes], execution: Execution, seconds: float
) -> list[dict[str, Any]]:
    """The bare session's images a second, by file, way, batch and threads."""
    rows = []
    size = standing.SIZE
    for precision, content in files.items():
        classifier = Classifier.open(
            content,
            digest=hashlib.sha256(content).hexdigest(),
            labels=len(standing.LABELS),
            size=size,
            execution=execution,
            precision=precision,
        )
        for batch in BATCHES:
            images = np.random.default_rng(1).integers(0, 256, (batch, size, size, 3), np.uint8)
            for way, run in _ways(classifier, images).items():
                for threads in (1, 2):
                    rate = _rate(run, threads, seconds) * batch
                    rows.append(
                        {
                            "file": precision,
                            "way": way,
                            "batch": batch,
                            "threads": threads,
                            "rate": rate,
                        }
                    )
    return rows


def _ways(classifier: Classifier, images: NDArray[np.uint8]) -> dict[str, Callable[[], object]]:
    """How a batch goes through: as the server does it, and by onnxruntime's plainest call."""
    session = classifier._session  # noqa: SLF001 -- what it adds is what is asked

    def plain() -> object:
        return session.run(["probabilities"], {INPUT: images})

    def served() -> object:
        return classifier.run(images)

    return {"as served": served, "session.run": plain}


def _rate(run: Callable[[], object], threads: int, seconds: float) -> float:
    """Calls a second."""
    for _ in range(3):
        run()
    counts = [0] * threads
    until = time.perf_counter() + seconds

    def work(index: int) -> None:
        while time.perf_counter() < until:
            run()
            counts[index] += 1

    began = time.perf_counter()
    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - began)


# ── over gRPC ────────────────────────────────────────────────────────────────


def over_grpc(home: Path, seconds: float, **settings: object) -> dict[str, Any]:
    """Every load against one server, and how soon that was ready."""
    photograph = standing.jpeg()
    one = standing.pixels(photograph)
    with standing.serving(home, threads=2, **settings) as server:
        rows = []
        for images, at_once in LOADS:
            pixels = np.repeat(one, images, axis=0)
            request = requests(standing.MODEL, INPUT, photograph, pixels)["uint8, ModelInfer"]
            to = call(server.port, OIP, request)
            rows.append(
                {"images": images, "at_once": at_once}
                | _loaded(server, to, images, at_once, seconds)
            )
        encoded = requests(standing.MODEL, INPUT, photograph, one)["JPEG, ModelInfer"]
        to = call(server.port, OIP, encoded)
        rows.append(
            {"images": 1, "at_once": 64, "jpeg": True} | _loaded(server, to, 1, 64, seconds)
        )
        return {"ready": server.seconds, "mib": server.mib(), "rows": rows}


def _loaded(
    server: standing.Server, to: Call, images: int, at_once: int, seconds: float
) -> dict[str, Any]:
    """One load: its rate, its times, and what was busy meanwhile."""
    first = h2load(to, clients=at_once, requests=4 * at_once)
    count = max(4 * at_once, round(first.rate * seconds))
    before, began = _spent(server), time.perf_counter()
    load = h2load(to, clients=at_once, requests=count)
    after, passed = _spent(server), time.perf_counter() - began
    used = {name: (after[name] - before[name]) / passed for name in after}
    runs = max(1.0, after["runs"] - before["runs"])
    return {
        "rate": load.rate * images,
        "p50": load.percentile(50),
        "p99": load.percentile(99),
        "batch": images * count / runs,
        "loop": used["loop"],
        "infer": used["infer"],
        "client": used["client"],
        "bottleneck": _bottleneck(used),
    }


def _spent(server: standing.Server) -> dict[str, float]:
    """Seconds so far of the event loop's processor, in the sessions, of the client; runs."""
    pid = server.process.pid
    tick = os.sysconf("SC_CLK_TCK")
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    times = os.times()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = oip_grpc.GRPCInferenceServiceStub(channel)
        found = stub.ModelStatistics(oip.ModelStatisticsRequest(name=standing.MODEL))
    stats = found.model_stats[0]
    return {
        "loop": (int(fields[11]) + int(fields[12])) / tick,
        "infer": sum(one.batch_size and one.compute_infer.ns for one in stats.batch_stats) / 1e9,
        "client": times.children_user + times.children_system,
        "runs": float(stats.execution_count),
    }


def _bottleneck(used: dict[str, float]) -> str:
    """What was busy nearly all the time; the two inference threads count as two."""
    if used["infer"] / 2 >= BUSY:
        return "the session"
    if used["loop"] >= BUSY:
        return "the event loop"
    if used["client"] >= BUSY:
        return "the client"
    return "the round trip"


# ── the whole ────────────────────────────────────────────────────────────────


def main() -> None:
    """Measure once and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="about, for each load")
    parser.add_argument("--provider", default="cuda", help="cpu only tries the benchmark itself")
    parser.add_argument("--home", type=Path, help="keep the registered model in this folder")
    parser.add_argument("--quick", action="store_true", help="a fifth of a second for each")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    seconds = 0.2 if given.quick else given.seconds
    with tempfile.TemporaryDirectory(prefix="gpu-serving-") as folder:
        home = given.home or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "acclimate.db").exists():
            standing.register(home)
        content = _file(home)
        files: dict[Precision, bytes] = {"fp32": content}
        execution = Execution(threads=2)
        if given.provider == "cuda":
            files["fp16"] = fp16(content)
            execution = Execution.for_gpu()
        found = {
            "onnxruntime": onnxruntime.__version__,
            "raw": raw(files, execution, seconds / 2),
            "served": over_grpc(home, seconds, provider=given.provider),
        }
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def _file(home: Path) -> bytes:
    settings = ServeSettings(home=home)
    store = open_store(settings.store_url(), settings.blob_root())
    try:
        version = store.registry.get_version(VersionName(standing.MODEL, "1"))
        return store.blobs.get(version.manifest.artifacts.onnx)
    finally:
        store.close()


def show(found: dict[str, Any]) -> None:
    """Print the tables; a share is of the best that the session gave with float32."""
    print(f"onnxruntime {found['onnxruntime']}\n")
    print(f"{'session':8}{'way':14}{'batch':>6}{'1 thread':>11}{'2 threads':>11}  images/s")
    cells: dict[tuple[str, str, int], dict[int, float]] = {}
    for row in found["raw"]:
        cells.setdefault((row["file"], row["way"], row["batch"]), {})[row["threads"]] = row["rate"]
    for (file, way, batch), rates in cells.items():
        print(f"{file:8}{way:14}{batch:6}{rates[1]:11.0f}{rates[2]:11.0f}")
    best = max(row["rate"] for row in found["raw"] if row["file"] == "fp32")
    served = found["served"]
    print(f"\nready in {served['ready']:.1f} s, {served['mib']:.0f} MiB resident")
    print(f"{'over gRPC':10}{'images':>7}{'at once':>8}{'images/s':>10}{'of best':>8}{'p50 ms':>8}"
          f"{'p99 ms':>8}{'a run':>7}{'loop':>7}{'infer':>7}{'client':>8}  held up by")  # fmt: skip
    for row in served["rows"]:
        kind = "JPEG" if row.get("jpeg") else "uint8"
        print(f"{kind:10}{row['images']:7}{row['at_once']:8}{row['rate']:10.0f}"
              f"{row['rate'] / best:8.0%}{row['p50']:8.1f}{row['p99']:8.1f}{row['batch']:7.1f}"
              f"{row['loop']:7.2f}{row['infer']:7.2f}{row['client']:8.2f}"
              f"  {row['bottleneck']}")  # fmt: skip


if __name__ == "__main__":
    main()
