"""A soak: predictions at four fifths of what could be asked, with swaps, uploads and jobs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from tests.chaos.colours import IMAGE, MODEL, matches, percentile, serve_colours
from tests.chaos.ledger import Ledger, account
from tests.chaos.row import Row, Tally
from tests.chaos.traffic import Traffic
from tests.chaos.world import Plan, Repeated, World, place
from tests.integration.rpc_server import ask

from acclimate.v1 import inference_pb2_grpc

GROWTH = 100 * 2**20  # bytes from the midpoint on
EVERY = 0.5  # seconds between two looks
CLIENTS = 8
MODELS = 3  # registered beside those that are swapped and adapted
REST = 0.25  # of the time that an answer took: four fifths of what could be asked
LEAK = "import time; kept = []\nwhile True: kept.append(b'x' * 2**22); time.sleep(0.05)"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a process held at a moment: bytes in memory, open file descriptors."""

    memory: int
    files: int


def soak(plan: Plan, *, seconds: float = 1800.0) -> Iterator[Row]:
    """So many seconds of it, and the same check over a process that leaks."""
    yield _soaked(plan, seconds)
    yield _control(min(seconds, 15.0))


def _soaked(plan: Plan, seconds: float) -> Row:
    ledger, times, looks = Ledger(), list[float](), list[Look]()
    tally = Tally("predictions failed", "of another version")
    swaps = 0
    with place("sqlite", "soak") as (home, _), World(home) as world:
        versions = serve_colours(world, versions=3)
        world.furnish(plan, first_version=True)
        # Jobs for ever, models not: each of them is there to be kept, and would count as a leak.
        traffic = Traffic(world, plan, ledger, models=MODELS)
        lock = threading.Lock()

        def predict(channel: grpc.Channel) -> None:
            began = time.monotonic()
            request = ask(f"models/{MODEL}", IMAGE, logits=True)
            try:
                stub = inference_pb2_grpc.InferenceServiceStub(channel)
                answer = stub.Predict(request, timeout=30)
            except grpc.RpcError:
                with lock:
                    tally["predictions failed"] += 1
                return
            took = time.monotonic() - began
            with lock:
                times.append(took)
                tally.note("of another version", wrong=not matches(answer))
            time.sleep(REST * took)

        def upload(number: int) -> None:
            traffic.upload(number)
            time.sleep(0.5)

        with (
            world.service.client() as client,
            grpc.insecure_channel(world.service.target) as channel,
            Repeated(upload, name="uploader"),
            Repeated(traffic.ask, name="asker"),
            contextlib.ExitStack() as stack,
        ):
            for number in range(CLIENTS):
                asking = Repeated(lambda _: predict(channel), name=f"client {number}")
                stack.enter_context(asking)
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                client.promote(MODEL, str(versions[swaps % len(versions)]))
                swaps += 1
                looks.append(look(world.service.serve.pid))
                time.sleep(EVERY)
        world.settle()
        tally.update(account(world, ledger))
    growth, files = grown(looks)
    tally.note("growth over 100 MiB", wrong=growth > GROWTH)
    tally.note("descriptors grown", wrong=files > 16)
    return Row(
        scenario="soak",
        did=f"{CLIENTS} clients, swaps, uploads and jobs for {seconds:g} s",
        times=len(times),
        broken=tally,
        measured={
            "swaps": swaps,
            "examples": ledger.examples,
            "jobs": len(ledger.jobs),
            "ms p99": percentile(times, 0.99) * 1000,
            "MiB grown from the midpoint": growth / 2**20,
            "MiB at the end": looks[-1].memory / 2**20,
            "descriptors at the end": looks[-1].files,
        },
    )


def _control(seconds: float) -> Row:
    """A process that leaks on purpose must be caught by the same check."""
    leaking = subprocess.Popen([sys.executable, "-c", LEAK])
    looks = []
    try:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(EVERY)
            looks.append(look(leaking.pid))
    finally:
        leaking.kill()
        leaking.wait()
    growth, _ = grown(looks)
    tally = Tally("leaks missed")
    tally.note("leaks missed", wrong=growth <= GROWTH)
    return Row(
        scenario="soak: the control",
        did="a process that leaks 80 MiB a second, under the same check",
        times=1,
        broken=tally,
        measured={"MiB grown from the midpoint": growth / 2**20},
    )


def look(pid: int) -> Look:
    """What the process holds now."""
    folder = Path("/proc") / str(pid)
    pages = int((folder / "statm").read_text().split()[1])
    return Look(memory=pages * 4096, files=sum(1 for _ in (folder / "fd").iterdir()))


def grown(looks: Sequence[Look]) -> tuple[float, float]:
    """Bytes and descriptors that were added from the midpoint on: between the quarters' means."""
    half = looks[len(looks) // 2 :]
    first, last = half[: len(half) // 2], half[len(half) // 2 :]
    return (
        _mean([one.memory for one in last]) - _mean([one.memory for one in first]),
        _mean([one.files for one in last]) - _mean([one.files for one in first]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
