"""Images a second from a GPU: the bare session, and over gRPC; what holds the latter up.

    ./run bench gpu_serving [--seconds S] [--quick] [--json PATH]

EfficientNet-Lite0 at 224 pixels with uint8 input, registered as a user would, as float32
and as float16. The reference is the session in this process, by the size of its batch, by
one thread and by two. Over gRPC the load comes from h2load; a request holds one image or
more. The bottleneck is named by what is busy: the server's event loop (the processor time
of its main thread), its inference threads, or the client.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from benchmarks import frame, standing
from benchmarks.load import Call, call, h2load
from benchmarks.serving import OIP, requests
from numpy.typing import NDArray

from acclimate.oip import grpc_service_pb2 as oip
from acclimate.oip import grpc_service_pb2_grpc as oip_grpc
from acclimate_service.domain.model import Precision
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import GPU_SIZES, Execution
from acclimate_service.inference.sessions import INPUT
from acclimate_service.training.fp16 import fp16

BATCHES = GPU_SIZES
LOADS = (  # the input, images a request, requests at once
    ("uint8", 1, 1), ("uint8", 1, 8), ("uint8", 1, 64), ("uint8", 8, 1), ("uint8", 8, 16),
    ("uint8", 32, 1), ("uint8", 32, 8), ("uint8", 128, 4), ("JPEG", 1, 8), ("JPEG", 1, 64),
)  # fmt: skip
BUSY = 0.85

Way = Callable[[NDArray[np.uint8]], Callable[[], object]]  # for images, what runs them


# ── the session ──────────────────────────────────────────────────────────────


def raw(content: bytes, execution: Execution, seconds: float) -> Iterator[dict[str, Any]]:
    """The bare session's images a second, by file, way, batch and threads."""
    size = standing.SIZE
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (max(BATCHES), size, size, 3), np.uint8)
    on_gpu = execution.provider == "cuda"
    files: dict[Precision, bytes] = {"fp32": content}
    if on_gpu:
        files["fp16"] = fp16(content)
    for precision, file in files.items():
        classifier = Classifier.open(
            file,
            digest=hashlib.sha256(file).hexdigest(),
            labels=len(standing.LABELS),
            size=size,
            execution=execution,
            precision=precision,
        )
        ways: dict[str, Way] = {"as served": partial(_served, classifier)}
        if precision == "fp32" and on_gpu:
            ways["bound"] = partial(_bound, classifier)
        for way, make in ways.items():
            for batch in BATCHES:
                for threads in (1, 2):
                    rate = _rate(partial(make, images[:batch]), threads, seconds) * batch
                    yield {"file": precision, "way": way, "batch": batch, "threads": threads,
                           "rate": rate}  # fmt: skip
    for batch in (1, 32) if on_gpu else ():
        for way, options in (
            ("CUDA graph", {"enable_cuda_graph": 1, "cudnn_conv_algo_search": "HEURISTIC"}),
            ("exhaustive", {"cudnn_conv_algo_search": "EXHAUSTIVE"}),
        ):
            session = onnxruntime.InferenceSession(
                content, providers=[("CUDAExecutionProvider", {"use_tf32": 0, **options})]
            )
            rate = _rate(partial(_kept, session, images[:batch]), 1, seconds) * batch
            yield {"file": "fp32", "way": way, "batch": batch, "threads": 1, "rate": rate}


def _served(classifier: Classifier, images: NDArray[np.uint8]) -> Callable[[], object]:
    """As the server runs it."""
    return partial(classifier.run, images)


def _bound(classifier: Classifier, images: NDArray[np.uint8]) -> Callable[[], object]:
    """Into memory of the device that is kept, and out to the CPU."""
    session = classifier._sessions.of(len(images))  # noqa: SLF001 -- beside what is served
    value = onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT, value)

    def run() -> object:
        value.update_inplace(images)
        binding.bind_output("probabilities", "cpu")
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    return run


def _kept(session: onnxruntime.InferenceSession, images: NDArray[np.uint8]) -> Callable[[], object]:
    """All of a run's memory on the device is kept, as a CUDA graph needs it."""
    value = onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0)
    shape = (len(images), len(standing.LABELS))
    answer = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda", 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT, value)
    binding.bind_ortvalue_output("probabilities", answer)

    def run() -> object:
        value.update_inplace(images)
        session.run_with_iobinding(binding)
        return answer.numpy()

    return run


def _rate(make: Callable[[], Callable[[], object]], threads: int, seconds: float) -> float:
    """Calls a second of what *make* makes for each thread."""
    runs = [make() for _ in range(threads)]
    for run in runs * 3:
        run()
    counts = [0] * threads
    until = time.perf_counter() + seconds

    def work(index: int) -> None:
        while time.perf_counter() < until:
            runs[index]()
            counts[index] += 1

    began = time.perf_counter()
    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - began)


# ── over gRPC ────────────────────────────────────────────────────────────────


def over_grpc(home: Path, seconds: float, **settings: object) -> Iterator[dict[str, Any]]:
    """Every load against one server."""
    photograph = standing.jpeg()
    one = standing.pixels(photograph)
    with standing.serving(home, threads=2, **settings) as server:
        print(f"\nready in {server.seconds:.1f} s, {server.mib():.0f} MiB resident", flush=True)
        for kind, images, at_once in LOADS:
            pixels = np.repeat(one, images, axis=0)
            request = requests(standing.MODEL, INPUT, photograph, pixels)[f"{kind}, ModelInfer"]
            to = call(server.port, OIP, request)
            given = {"kind": kind, "images": images, "at_once": at_once}
            yield given | _loaded(server, to, images, at_once, seconds)


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
    parser = frame.arguments(__doc__, quick="a fifth of a second for each")
    parser.add_argument("--seconds", type=float, default=2.0, help="about, for each load")
    parser.add_argument("--provider", default="cuda", help="cpu only tries the benchmark itself")
    given = parser.parse_args()
    seconds = 0.2 if given.quick else given.seconds
    with frame.home(given) as home:
        execution = Execution.for_gpu() if given.provider == "cuda" else Execution(threads=2)
        found = {
            "onnxruntime": onnxruntime.__version__,
            "raw": told(raw(standing.served_file(home), execution, seconds / 3), SESSION),
        }
        best = max(row["rate"] for row in found["raw"] if row["file"] == "fp32")
        loads = over_grpc(home, seconds, provider=given.provider)
        found["served"] = told((row | {"share": row["rate"] / best} for row in loads), SERVED)
    frame.keep(given, found)


SESSION = {"file": "6", "way": "12", "batch": "6", "threads": "8", "rate": "9.0f"}
SERVED = {
    "kind": "6", "images": "7", "at_once": "8", "rate": "9.0f", "share": "7.0%", "p50": "7.1f",
    "p99": "7.1f", "batch": "7.1f", "loop": "6.2f", "infer": "6.2f", "client": "7.2f",
    "bottleneck": "16",
}  # fmt: skip


def told(rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> list[dict[str, Any]]:
    """The rows, each printed as it comes; ``rate`` is images a second."""
    print(
        "\n" + " ".join(f"{name:>{int(form.partition('.')[0])}}" for name, form in columns.items())
    )
    kept = []
    for row in rows:
        print(" ".join(f"{row[name]:>{form}}" for name, form in columns.items()), flush=True)
        kept.append(row)
    return kept


if __name__ == "__main__":
    main()
