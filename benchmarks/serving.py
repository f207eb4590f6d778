"""How much of raw onnxruntime is left over gRPC, and how soon and how small a server is.

    ./run bench serving [--peers] [--rounds N] [--seconds S] [--quick] [--json PATH]

EfficientNet-Lite0 at 224 pixels, float32, registered as a user would. The load comes from
h2load, which shares the machine's cores with what it measures. The reference is
onnxruntime in this process with its best threading: a thread for each core, all calling
one session that has one thread of its own. Reference and candidates take turns within
each round; shares are medians over the rounds, each of its own round.

``--peers`` adds KServe's Python server and MLServer, each in an environment of its own,
with the same file and the same threading.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from benchmarks import frame, peers, standing
from benchmarks.load import Call, Load, call, h2load
from numpy.typing import NDArray

from acclimate.oip import grpc_service_pb2 as oip
from acclimate.v1 import inference_pb2

OIP = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/acclimate.v1.InferenceService/Predict"
CONCURRENCIES = (1, 8, 32)
THREADS = os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the table: a server, an input, and so many requests at once."""

    server: str
    what: str
    concurrency: int
    call: Call


def requests(model: str, name: str, jpeg: bytes, pixels: NDArray[np.uint8]) -> dict[str, bytes]:
    """The same image in every form, by what the table calls it."""
    tensor = oip.ModelInferRequest(
        model_name=model,
        inputs=[
            oip.ModelInferRequest.InferInputTensor(name=name, datatype="UINT8", shape=pixels.shape)
        ],
        outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="probabilities")],
        raw_input_contents=[pixels.tobytes()],
    )
    encoded = oip.ModelInferRequest()
    encoded.CopyFrom(tensor)
    encoded.inputs[0].datatype = "BYTES"
    encoded.inputs[0].shape[:] = [1]
    encoded.raw_input_contents[0] = len(jpeg).to_bytes(4, "little") + jpeg
    ours = f"models/{model}"
    flat = inference_pb2.Tensor(shape=pixels.shape, pixels=pixels.tobytes())
    return {
        "uint8, ModelInfer": tensor.SerializeToString(),
        "uint8, Predict": inference_pb2.PredictRequest(model=ours, tensor=flat).SerializeToString(),
        "JPEG, ModelInfer": encoded.SerializeToString(),
        "JPEG, Predict": inference_pb2.PredictRequest(
            model=ours, images=[jpeg]
        ).SerializeToString(),
    }


# ── the reference ────────────────────────────────────────────────────────────


class Raw:
    """The same file in this process: no server, no protocol."""

    def __init__(self, onnx: bytes, jpeg: bytes, pixels: NDArray[np.uint8]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            onnx, options, providers=["CPUExecutionProvider"]
        )
        self._jpeg = jpeg
        self._pixels = pixels

    def tensor(self) -> None:
        """Answer for pixels."""
        self._session.run(["probabilities"], {"images": self._pixels})

    def file(self) -> None:
        """Decode, prepare and answer."""
        ready = standing.pixels(self._jpeg, size=self._pixels.shape[1])
        self._session.run(["probabilities"], {"images": ready})

    def measure(self, act: Callable[[], None], *, threads: int, seconds: float) -> Load:
        """*act* again and again, on so many threads at once."""
        times: list[list[float]] = [[] for _ in range(threads)]
        until = time.perf_counter() + seconds

        def work(mine: list[float]) -> None:
            while (began := time.perf_counter()) < until:
                act()
                mine.append(time.perf_counter() - began)

        workers = [threading.Thread(target=work, args=(mine,)) for mine in times]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        passed = time.perf_counter() - began
        every = np.sort(np.concatenate(times)) * 1000
        return Load(rate=len(every) / passed, milliseconds=every)


# ── the rounds ───────────────────────────────────────────────────────────────


def measured(
    raw: Raw, cells: list[Cell], *, rounds: int, seconds: float
) -> tuple[dict[str, list[Load]], list[list[Load]]]:
    """The reference's runs by name, and each cell's, of every round."""
    references: dict[str, list[Load]] = {"uint8": [], "uint8, one at a time": [], "JPEG": []}
    found: list[list[Load]] = [[] for _ in cells]
    for number in range(rounds):
        references["uint8"].append(raw.measure(raw.tensor, threads=THREADS, seconds=seconds))
        references["uint8, one at a time"].append(
            raw.measure(raw.tensor, threads=1, seconds=seconds)
        )
        references["JPEG"].append(raw.measure(raw.file, threads=THREADS, seconds=seconds))
        rate = references["uint8"][-1].rate
        for cell, loads in zip(cells, found, strict=True):
            expected = rate * seconds * (0.5 if cell.concurrency == 1 else 0.9)
            count = max(round(expected), 2 * cell.concurrency)
            loads.append(h2load(cell.call, clients=cell.concurrency, requests=count))
        print(f"round {number + 1} of {rounds}: raw {rate:.0f} images/s", flush=True)
    return references, found


def rows(
    cells: list[Cell], references: dict[str, list[Load]], found: list[list[Load]]
) -> list[dict[str, Any]]:
    """The table: medians over the rounds."""
    table = [
        _row("raw onnxruntime", what, 1 if "one" in what else THREADS, loads, references["uint8"])
        for what, loads in references.items()
    ]
    for cell, loads in zip(cells, found, strict=True):
        table.append(_row(cell.server, cell.what, cell.concurrency, loads, references["uint8"]))
    return table


def _row(
    server: str, what: str, concurrency: int, loads: list[Load], reference: list[Load]
) -> dict[str, Any]:
    middle = statistics.median
    return {
        "server": server,
        "what": what,
        "concurrency": concurrency,
        "rate": middle(load.rate for load in loads),
        "share": middle(load.rate / own.rate for load, own in zip(loads, reference, strict=True)),
        "p50": middle(load.percentile(50) for load in loads),
        "p99": middle(load.percentile(99) for load in loads),
    }


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    print(f"\n{'server':20} {'input':24}{'at once':>8}{'images/s':>10}{'of raw':>8}"
          f"{'p50 ms':>9}{'p99 ms':>9}")  # fmt: skip
    for row in found["rows"]:
        print(f"{row['server']:20} {row['what']:24}{row['concurrency']:8}{row['rate']:10.1f}"
              f"{row['share']:8.0%}{row['p50']:9.1f}{row['p99']:9.1f}")  # fmt: skip
    print(f"\n{'server':20} {'s to ready':>12}{'RSS MiB':>9}{'peak MiB':>10}")
    for name, cost in found["costs"].items():
        print(f"{name:20} {cost['ready']:12.2f}{cost['rss']:9.0f}{cost['peak']:10.0f}")


# ── the whole ────────────────────────────────────────────────────────────────


def main() -> None:
    """Measure once and print the table."""
    parser = frame.arguments(__doc__, quick="one short round at 64 pixels")
    parser.add_argument("--peers", action="store_true", help="KServe and MLServer beside it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.5, help="about, for each run")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = 1, 0.5
    size = frame.QUICK_SIZE if given.quick else standing.SIZE
    with frame.home(given, size=size) as home:
        found = walk(given, home, size)
    show(found)
    frame.keep(given, found)


def walk(given: argparse.Namespace, home: Path, size: int) -> dict[str, Any]:
    """Start everything, measure, and end it."""
    jpeg = standing.jpeg()
    pixels = standing.pixels(jpeg, size=size)
    onnx = standing.served_file(home)
    starts = []
    for _ in range(1 if given.quick else 3):
        with standing.serving(home) as server:
            starts.append(server.seconds)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(standing.serving(home))
        pids, readies = {"Acclimate": server.process.pid}, {"Acclimate": starts}
        cells = [
            Cell(
                server="Acclimate",
                what=what,
                concurrency=concurrency,
                call=call(server.port, OIP if "ModelInfer" in what else PREDICT, request),
            )
            for what, request in requests(standing.MODEL, "images", jpeg, pixels).items()
            for concurrency in CONCURRENCIES
        ]
        request = requests(standing.MODEL, "images", jpeg, pixels)["uint8, ModelInfer"]
        for peer in peers.PEERS if given.peers else ():
            running = stack.enter_context(peers.serving(peer, onnx, request))
            pids[peer.name], readies[peer.name] = running.pid, [running.seconds]
            cells += [
                Cell(
                    server=peer.name,
                    what="uint8, ModelInfer",
                    concurrency=concurrency,
                    call=call(running.port, OIP, request),
                )
                for concurrency in CONCURRENCIES
            ]
        references, loads = measured(
            Raw(onnx, jpeg, pixels), cells, rounds=given.rounds, seconds=given.seconds
        )
        costs = {
            name: {
                "ready": statistics.median(readies[name]),
                "rss": standing.mib(pid),
                "peak": standing.mib(pid, "VmHWM"),
            }
            for name, pid in pids.items()
        }
    return {
        "cores": THREADS,
        "onnxruntime": onnxruntime.__version__,
        "jpeg_bytes": len(jpeg),
        "rows": rows(cells, references, loads),
        "costs": costs,
    }


if __name__ == "__main__":
    main()
