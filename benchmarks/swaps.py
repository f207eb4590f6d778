"""What 200 swaps cost the requests beside them.

    ./run bench swaps [--swaps N] [--period S] [--load SHARE] [--home FOLDER] [--quick]
                      [--json PATH]

The alias moves round four versions of EfficientNet-Lite0 whose classes are turned against
each other, so every move loads a file, warms it, and unloads another. Beside it h2load
sends a share of what the server can do, every answer's size checked; and a client of our
own checks that each answer is the one of the version that it names. Before and after,
the same load without swaps gives the usual times. The load shares the machine's cores.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
from benchmarks import frame, standing
from benchmarks.load import Call, Load, call, h2load

from acclimate import Client
from acclimate.v1 import inference_pb2, inference_pb2_grpc

PREDICT = "/acclimate.v1.InferenceService/Predict"
CLIENTS = 8
SETTLING = 10  # swaps after which the memory is taken as usual


class Checker:
    """Asks again and again, and holds each answer to the version that it names."""

    def __init__(self, port: int, request: inference_pb2.PredictRequest) -> None:
        self._port = port
        self._request = request
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.labels: dict[str, set[str]] = {}  # the best label by version: one, or it is mixed
        self.answers = 0
        self.failures: list[str] = []

    def _work(self) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            predict = inference_pb2_grpc.InferenceServiceStub(channel).Predict
            while not self._stop.wait(0.05):
                try:
                    answer = predict(self._request, timeout=30)
                except grpc.RpcError as error:
                    self.failures.append(str(error))
                    continue
                self.answers += 1
                best = answer.predictions[0].classes[0].label
                self.labels.setdefault(answer.version, set()).add(best)

    def mixed(self) -> bool:
        """Whether two versions gave one answer, or a version two."""
        answers = [tuple(labels) for labels in self.labels.values()]
        return any(len(labels) != 1 for labels in answers) or len(set(answers)) != len(answers)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main() -> None:
    """Measure once and print the table."""
    parser = frame.arguments(__doc__, quick="20 swaps at 64 pixels")
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--period", type=float, default=0.75, help="seconds from swap to swap")
    parser.add_argument("--load", type=float, default=0.5, help="of what the server can do")
    given = parser.parse_args()
    if given.quick:
        given.swaps = 20
    size = frame.QUICK_SIZE if given.quick else standing.SIZE
    with frame.home(given, size=size) as home:
        versions = standing.add_versions(home, 4)
        found = walk(given, home, versions, size)
    show(found)
    frame.keep(given, found)
    if found["failed"] or found["mixed"]:
        raise SystemExit("a request failed, or an answer was not its version's")


def walk(given: argparse.Namespace, home: Path, versions: list[str], size: int) -> dict[str, Any]:
    """The usual, the swaps, the usual again."""
    pixels = standing.pixels(standing.jpeg(), size=size)
    tensor = inference_pb2.Tensor(shape=pixels.shape, pixels=pixels.tobytes())
    request = inference_pb2.PredictRequest(model=f"models/{standing.MODEL}", tensor=tensor)
    with (
        standing.serving(home) as server,
        Client(f"127.0.0.1:{server.port}") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        to = call(server.port, PREDICT, request.SerializeToString())
        rate = given.load * h2load(to, clients=CLIENTS, requests=300).rate
        one = server.mib()
        with Checker(server.port, request) as checker:
            usual = [_steadily(to, rate, given.swaps * given.period / 4)]
            loading = pool.submit(_steadily, to, rate, given.swaps * given.period)
            seconds, sizes = _swap(given, client, server, versions)
            swapping = loading.result()
            usual.append(_steadily(to, rate, given.swaps * given.period / 4))
    before, after = sizes[SETTLING : 2 * SETTLING], sizes[-SETTLING:]
    return {
        "rate": rate,
        "requests": len(swapping.milliseconds),
        "checked": checker.answers,
        "failed": len(checker.failures),  # h2load has raised if one of its own was missing
        "mixed": checker.mixed(),
        "usual": _times(usual),
        "swapping": _times([swapping]),
        "swap_seconds": {
            "median": statistics.median(seconds), "most": max(seconds),
        },
        "mib": {
            "one version": one,
            "after the first swaps": statistics.mean(before),
            "after the last swaps": statistics.mean(after),
        },
    }  # fmt: skip


def _steadily(to: Call, rate: float, seconds: float) -> Load:
    return h2load(to, clients=CLIENTS, requests=max(int(rate * seconds), CLIENTS), rate=rate)


def _swap(
    given: argparse.Namespace, client: Client, server: standing.Server, versions: list[str]
) -> tuple[list[float], list[float]]:
    """Move the alias round, once a period; each move's seconds and the memory after it."""
    seconds, sizes = [], []
    began = time.perf_counter()
    for number in range(given.swaps):
        time.sleep(max(began + number * given.period - time.perf_counter(), 0))
        moved = time.perf_counter()
        client.promote(standing.MODEL, versions[number % len(versions)])
        seconds.append(time.perf_counter() - moved)
        sizes.append(server.mib())
    return seconds, sizes


def _times(loads: list[Load]) -> dict[str, float]:
    return {
        f"p{share}": statistics.mean(load.percentile(share) for load in loads)
        for share in (50, 99, 99.9)
    }


def show(found: dict[str, Any]) -> None:
    """Print what was found."""
    print(f"{found['requests']} requests at {found['rate']:.0f} a second beside the swaps, "
          f"{found['checked']} checked for their version: {found['failed']} failed, "
          f"{'some' if found['mixed'] else 'none'} mixed")  # fmt: skip
    print(f"{'ms':12}" + "".join(f"{name:>9}" for name in found["usual"]))
    for name in ("usual", "swapping"):
        print(f"{name:12}" + "".join(f"{value:9.1f}" for value in found[name].values()))
    ratio = found["swapping"]["p99"] / found["usual"]["p99"]
    swap = found["swap_seconds"]
    print(f"p99 is {ratio:.2f} times the usual; a swap took {swap['median']:.2f} s, at most "
          f"{swap['most']:.2f}")  # fmt: skip
    print("MiB: " + ", ".join(f"{size:.0f} {when}" for when, size in found["mib"].items()))


if __name__ == "__main__":
    main()
