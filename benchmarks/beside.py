"""What a training job on the same machine costs those who ask for predictions, and what it gets.

    ./run bench beside [--seconds S] [--rounds N] [--load SHARE]
                       [--strangers N] [--quick] [--json PATH]

EfficientNet-Lite0 answers at a share of what the server can do (h2load, on the same
cores), in turns beside a job that trains all of the same network on digits at 160 pixels,
and while that is stopped (SIGSTOP): so what else the machine does weighs on both alike.
What the job gets is told as its epochs and its processor seconds a second:
without requests, beside them, and beside N processes of strangers that do nothing but
compute at the usual priority. Settings of the worker come from the environment, as always.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from benchmarks import standing
from benchmarks.load import Load, call, h2load

from acclimate import Client, Job, Preprocessing, Role
from acclimate.demo import digits
from acclimate.resources import EventKind
from acclimate.v1 import inference_pb2
from acclimate_service.worker.turns import WINDOW_SECONDS

PREDICT = "/acclimate.v1.InferenceService/Predict"
CLIENTS = 8
TRAINED = "digits"
STRATEGY = "naive"  # all of the network, from the first step
START_SECONDS = 300.0

T = TypeVar("T")


class Training:
    """A job of *worker* that trains, seen from outside."""

    def __init__(self, worker: int, job: Job) -> None:
        self._worker = worker
        self._job = job
        self._epochs = 0
        self._began = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def _watch(self) -> None:
        for event in self._job.watch():
            if event.kind is EventKind.EPOCH:
                self._epochs += 1
                self._began.set()

    def wait(self) -> None:
        """Return after the first epoch."""
        if not self._began.wait(START_SECONDS):
            raise TimeoutError(f"the job does not train: {self._job.refresh().snapshot}")

    def beside(self, act: Callable[[], T]) -> tuple[T, dict[str, float]]:
        """What *act* gives, and what the trainer got meanwhile, each a second."""
        computed, epochs, began = self._processor_seconds(), self._epochs, time.perf_counter()
        outcome = act()
        seconds = time.perf_counter() - began
        return outcome, {
            "processors": (self._processor_seconds() - computed) / seconds,
            "epochs": (self._epochs - epochs) / seconds,
        }

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Have the trainer stand still."""
        trainers = [pid for pid, _ in self._children()]
        for pid in trainers:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in trainers:
                os.kill(pid, signal.SIGCONT)

    def _processor_seconds(self) -> float:
        """What the worker's children have computed so far."""
        return sum(seconds for _, seconds in self._children())

    def _children(self) -> Iterator[tuple[int, float]]:
        """The worker's children, each with its processor seconds."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self._worker:
                    ticks = int(fields[11]) + int(fields[12])
                    yield int(stat.parent.name), ticks / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Cancel the job and see it gone."""
        self._job.cancel().wait(timeout=60)


@contextlib.contextmanager
def strangers(count: int) -> Iterator[None]:
    """So many processes that compute without end."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def main() -> None:
    """Measure once and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="for each row")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--load", type=float, default=0.5, help="of what the server can do")
    parser.add_argument("--strangers", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one round of five seconds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.rounds = 5, 1
    with tempfile.TemporaryDirectory(prefix="beside-") as folder:
        home = Path(folder)
        standing.register(home)
        found = walk(given, home)
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def walk(given: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Start everything, measure in turns, and end it."""
    pixels = standing.pixels(standing.jpeg())
    tensor = inference_pb2.Tensor(shape=pixels.shape, pixels=pixels.tobytes())
    request = inference_pb2.PredictRequest(model=f"models/{standing.MODEL}", tensor=tensor)
    with standing.serving(home) as server, Client(f"127.0.0.1:{server.port}") as client:
        to = call(server.port, PREDICT, request.SerializeToString())
        rate = given.load * h2load(to, clients=CLIENTS, requests=300).rate

        def predict() -> Load:
            count = int(rate * given.seconds / given.rounds)
            return h2load(to, clients=CLIENTS, requests=count, rate=rate)

        usual, loaded, shared = [], [], []
        with standing.ours("work", home) as worker:
            training = Training(worker.pid, start(client))
            training.wait()
            _, alone = training.beside(lambda: time.sleep(given.seconds))
            for _ in range(given.rounds):
                with training.stopped():
                    usual.append(predict())
                load, got = training.beside(predict)
                loaded.append(load)
                shared.append(got)
            with strangers(given.strangers):
                # Long enough for the worker to notice that its trainer gets no turns, and
                # for the next one to come as far.
                time.sleep(2 * WINDOW_SECONDS)
                _, crowded = training.beside(lambda: time.sleep(given.seconds))
            training.end()
    return {
        "rate": rate,
        "ms": {
            f"p{share}": {"without": _of(usual, share), "beside": _of(loaded, share)}
            for share in (50, 90, 99)
        },
        "training": {
            "alone": alone,
            "beside requests": {
                name: sum(got[name] for got in shared) / len(shared) for name in alone
            },
            "beside strangers": crowded,
        },
    }


def start(client: Client) -> Job:
    """A job that trains all of a network for longer than anybody measures."""
    found = digits.mnist(train=200, holdout=100)
    client.create_domain(TRAINED, digits.LABELS)
    for role, examples in ((Role.HOLDOUT, found.holdout), (Role.TRAIN, found.train)):
        client.upload(TRAINED, examples, role=role)
    client.register_model(
        TRAINED,
        "timm/tf_efficientnet_lite0",
        weights=standing.PACKAGE,
        preprocessing=Preprocessing(size=160),
        source_domain=TRAINED,
    )
    return client.adapt(TRAINED, TRAINED, strategy=STRATEGY, epochs=400)


def _of(loads: list[Load], share: float) -> float:
    """A percentile over the requests of all rounds."""
    return float(np.percentile(np.concatenate([load.milliseconds for load in loads]), share))


def show(found: dict[str, Any]) -> None:
    """Print what was found."""
    print(f"{found['rate']:.0f} requests a second")
    for name, times in found["ms"].items():
        print(f"{name}: {times['without']:.1f} ms without a job, {times['beside']:.1f} beside one "
              f"({times['beside'] / times['without']:.2f} times)")  # fmt: skip
    for name, got in found["training"].items():
        print(f"training {name}: {got['processors']:.2f} processors, "
              f"{60 * got['epochs']:.1f} epochs a minute")  # fmt: skip


if __name__ == "__main__":
    main()
