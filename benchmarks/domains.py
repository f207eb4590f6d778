"""Many domains on one trunk: memory, throughput, and a tail that is asked for the first time.

    ./run bench domains [--domains N] [--rounds N] [--seconds S] [--stage S] [--home FOLDER]
                        [--make] [--quick] [--json PATH]

EfficientNet-Lite0 at 224 pixels, registered as a user would, with a new head for 10
labels, which is in production. From it come versions whose weights differ in the last
stage (``neck`` and head), or from ``block4`` on, cut and proven as a worker cuts them, one
for each domain. A server answers for 1, 10 or 100 of them, requests drawn among the domains
by chance; beside it one that serves the same versions whole, a session each. Memory is
resident, after every domain has answered. Rates are of eight clients of our own, which
share the machine's cores with what they measure; the servers run at once, take turns within
each round, and a share is of its own round. A cold tail is one whose version the server has
not loaded: the time is a client's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import torch
from benchmarks import standing
from numpy.typing import NDArray

from acclimate.v1 import inference_pb2, inference_pb2_grpc
from acclimate_service.config import ServeSettings
from acclimate_service.domain.model import Artifacts, Manifest, Parts
from acclimate_service.domain.names import AliasName, VersionName
from acclimate_service.store import Store, open_store
from acclimate_service.training import weights
from acclimate_service.training.export import patch, trace
from acclimate_service.training.network import Network, build
from acclimate_service.worker.parting import part

CLIENTS = 8
LABELS = tuple(f"label-{number}" for number in range(10))
STAGES = ("neck", "block4")
DATABASE, DIGEST = "acclimate.db", 64  # a file's name, and how long a blob's is
COLD = 12  # tails asked for the first time, of which the median and the slowest are told


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A home with a version for each domain, and what their tails weigh together."""

    home: Path
    domains: tuple[str, ...]
    tail_bytes: int


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A server under test, asked for so many domains."""

    name: str
    domains: tuple[str, ...]
    server: standing.Server
    predict: Any


# ── the versions ─────────────────────────────────────────────────────────────


def fleet(base: Path, home: Path, stage: str, count: int) -> Fleet:
    """A copy of the *base* home in which *count* domains have versions of their own.

    What is there from an earlier call is taken as it is.
    """
    note = home / "fleet.json"
    if not note.exists():
        shutil.copytree(base, home)
        settings = ServeSettings(home=home)
        store = open_store(settings.store_url(), settings.blob_root())
        try:
            tails = _filled(store, stage, count)
        finally:
            store.close()
        note.write_text(json.dumps({"domains": count, "tail_bytes": tails}))
    told = json.loads(note.read_text())
    domains = tuple(f"dock-{number}" for number in range(told["domains"]))
    return Fleet(home=home, domains=domains, tail_bytes=told["tail_bytes"])


def whole(of: Fleet, home: Path) -> Fleet:
    """The same versions in another home, without their parts: each is a session of its own."""
    if not home.exists():
        shutil.copytree(of.home, home, copy_function=os.link, ignore=_but_blobs)
        shutil.copy(of.home / DATABASE, home / DATABASE)
        with contextlib.closing(sqlite3.connect(home / DATABASE)) as database, database:
            database.execute(
                "UPDATE versions SET manifest = json_set(manifest, '$.artifacts.parts', NULL)"
            )
    return replace(of, home=home)


def _but_blobs(folder: str, names: list[str]) -> list[str]:
    """What is not to be linked: all files that a server writes to."""
    return [name for name in names if Path(folder, name).is_file() and len(name) != DIGEST]


def _filled(store: Store, stage: str, count: int) -> int:
    """Make the versions; what their tails weigh together, in bytes."""
    first = store.registry.get_version(VersionName(standing.MODEL, "2")).manifest
    parent = store.blobs.get(first.artifacts.onnx)
    network = _network(first)
    weights.restore(network, store.blobs.get(first.artifacts.weights))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    image = standing.pixels(standing.jpeg(), size=first.preprocessing.size)
    tails = 0
    for number in range(count):
        network.load_state_dict(before)
        _move(network, stage, seed=number)
        content = patch(parent, network, first.labels)
        if content is None:
            raise RuntimeError("the base's graph does not fit")
        parts = _parts(store, content, network, image, parent)
        tails += parts.tail_bytes
        artifacts = Artifacts(
            onnx=store.blobs.put(content),
            weights=first.artifacts.weights,
            onnx_bytes=len(content),
            weights_bytes=first.artifacts.weights_bytes,
            parts=parts,
        )
        made = standing.add_version(store, first, artifacts)
        store.registry.set_alias(AliasName(standing.MODEL, f"dock-{number}"), made)
    return tails


def make_base(home: Path) -> None:
    """Put a version with a head for ``LABELS`` into production."""
    settings = ServeSettings(home=home)
    store = open_store(settings.store_url(), settings.blob_root())
    try:
        registered = store.registry.get_version(VersionName(standing.MODEL, "1")).manifest
        network = _network(registered)
        weights.restore(network, store.blobs.get(registered.artifacts.weights))
        network.replace_head(len(LABELS), generator=torch.Generator().manual_seed(0))
        content = trace(network, LABELS)
        saved = weights.save(network)
        image = standing.pixels(standing.jpeg(), size=registered.preprocessing.size)
        artifacts = Artifacts(
            onnx=store.blobs.put(content),
            weights=store.blobs.put(saved),
            onnx_bytes=len(content),
            weights_bytes=len(saved),
            parts=_parts(store, content, network, image, None),
        )
        like = registered.model_copy(update={"labels": LABELS})
        made = standing.add_version(store, like, artifacts)
        store.registry.set_alias(AliasName(standing.MODEL, "production"), made)
    finally:
        store.close()


def _network(like: Manifest) -> Network:
    network = build(like.architecture, labels=len(like.labels), size=like.preprocessing.size)
    network.preprocessing = like.preprocessing
    return network.eval()


def _move(network: Network, stage: str, *, seed: int) -> None:
    """Change every weight from *stage* on, as an adaptation does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for index in range(network.boundary(stage), len(network.stages) + 1):
            for tensor in network.stage_parameters(index):
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(0.01 * tensor.std(unbiased=False) * noise)


def _parts(
    store: Store, content: bytes, network: Network, image: NDArray[np.uint8], parent: bytes | None
) -> Parts:
    parting = part(content, network, image, parent=parent)
    if parting.halves is None:
        raise RuntimeError(f"the version is not cut: {parting.why}")
    trunk, tail = parting.halves.trunk, parting.halves.tail
    return Parts(
        stage=parting.stage,
        trunk=store.blobs.put(trunk),
        tail=store.blobs.put(tail),
        trunk_bytes=len(trunk),
        tail_bytes=len(tail),
    )


# ── the load ─────────────────────────────────────────────────────────────────


class Asking:
    """The same image for one domain or another."""

    def __init__(self, size: int) -> None:
        pixels = standing.pixels(standing.jpeg(), size=size)
        self._tensor = inference_pb2.Tensor(shape=pixels.shape, pixels=pixels.tobytes())

    def request(self, domain: str) -> inference_pb2.PredictRequest:
        """A request for a domain."""
        model = f"models/{standing.MODEL}"
        return inference_pb2.PredictRequest(model=model, domain=domain, tensor=self._tensor)

    def seconds(self, under: Standing, domain: str) -> float:
        """How long one answer takes, and that it is the domain's own version's."""
        began = time.perf_counter()
        answer = under.predict(self.request(domain), timeout=60)
        passed = time.perf_counter() - began
        # Versions 1 and 2 are the base; the domains' follow in their order.
        if answer.version.rpartition("/")[2] != str(3 + int(domain.rpartition("-")[2])):
            raise RuntimeError(f"{domain} was answered by {answer.version}")
        return passed

    def rate(self, under: Standing, seconds: float) -> float:
        """Answers a second to eight clients, which draw a domain for each request."""
        until = time.perf_counter() + seconds

        def work(seed: int) -> int:
            drawn, answered = random.Random(seed), 0  # noqa: S311  # chance, not a secret
            while time.perf_counter() < until:
                self.seconds(under, drawn.choice(under.domains))
                answered += 1
            return answered

        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            total = sum(pool.map(work, range(CLIENTS)))
        return total / (time.perf_counter() - began)


@contextlib.contextmanager
def serving(name: str, of: Fleet, count: int) -> Iterator[Standing]:
    """A server over a fleet, to be asked for its first *count* domains."""
    with (
        standing.serving(of.home, resident_mib=8192) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        predict = inference_pb2_grpc.InferenceServiceStub(channel).Predict
        yield Standing(name=name, domains=of.domains[:count], server=server, predict=predict)


def measured(
    fleets: Sequence[tuple[str, Fleet, int]], asking: Asking, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each server; the first is the one that the others' rates are shares of."""
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        under = [stack.enter_context(serving(*one)) for one in fleets]
        for one, (_, of, count) in zip(under, fleets, strict=True):
            cold = [asking.seconds(one, domain) for domain in one.domains]
            # The first answer opens the trunk, too; whole versions were loaded at the start.
            some = cold[1 : 1 + COLD] if of.home.name in STAGES else []
            rows.append(
                {
                    "server": one.name,
                    "domains": count,
                    "tails_mib": of.tail_bytes * count / len(of.domains) / 2**20,
                    "mib": 0.0,
                    "cold_ms": 1000 * statistics.median(some) if some else None,
                    "coldest_ms": 1000 * max(some) if some else None,
                    "rates": [],
                }
            )
        for number in range(given.rounds):
            for one, row in zip(under, rows, strict=True):
                row["rates"].append(asking.rate(one, given.seconds))
            print(f"round {number + 1} of {given.rounds}", flush=True)
        for one, row in zip(under, rows, strict=True):
            row["mib"] = one.server.mib()
    for row in rows:
        shares = [rate / alone for rate, alone in zip(row["rates"], rows[0]["rates"], strict=True)]
        row["rate"] = statistics.median(row["rates"])
        row["share"] = statistics.median(shares)
    return rows


# ── the whole ────────────────────────────────────────────────────────────────


def walk(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the versions that are not there, and measure them stage by stage."""
    size = 64 if given.quick else standing.SIZE
    base = folder / "base"
    if not (base / "made").exists():
        base.mkdir()
        standing.register(base, size=size)
        make_base(base)
        (base / "made").touch()
    asking = Asking(size)
    found: dict[str, Any] = {"cores": os.cpu_count(), "onnxruntime": onnxruntime.__version__}
    counts = sorted({1, 10, given.domains} - ({10} if given.domains < 10 else set()))
    for stage in given.stage or STAGES:
        tails = fleet(base, folder / stage, stage, given.domains)
        wholes = whole(tails, folder / f"{stage}-whole")
        fleets = [("one trunk", tails, count) for count in counts]
        fleets.append(("a session each", wholes, given.domains))
        if given.make:
            continue
        found[stage] = measured(fleets, asking, given)
        show(stage, found[stage])
    return found


def show(stage: str, rows: list[dict[str, Any]]) -> None:
    """Print a stage's table, and whether it is as it should be."""
    print(f"\ntails from {stage} on\n{'server':16}{'domains':>8}{'tails MiB':>11}{'RSS MiB':>9}"
          f"{'images/s':>10}{'of one':>8}{'cold ms':>9}{'slowest':>9}")  # fmt: skip
    for row in rows:
        cold = [
            f"{row[key]:9.0f}" if row[key] else f"{'-':>9}" for key in ("cold_ms", "coldest_ms")
        ]
        print(f"{row['server']:16}{row['domains']:8}{row['tails_mib']:11.1f}{row['mib']:9.0f}"
              f"{row['rate']:10.1f}{row['share']:8.0%}{''.join(cold)}")  # fmt: skip
    one, many = rows[0], rows[-2]
    more = (many["mib"] - one["mib"]) / (many["tails_mib"] - one["tails_mib"])
    print(f"{many['domains']} domains take {many['mib'] / one['mib']:.2f} times the memory of one, "
          f"{more:.2f} times what their tails weigh beyond it")  # fmt: skip


def main() -> None:
    """Measure once and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--domains", type=int, default=100)
    parser.add_argument("--stage", action="append", choices=STAGES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="for each run")
    parser.add_argument("--home", type=Path, help="keep the versions in this folder")
    parser.add_argument("--make", action="store_true", help="make the versions, measure nothing")
    parser.add_argument("--quick", action="store_true", help="12 domains, one round, 64 pixels")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.domains, given.rounds, given.seconds = 12, 1, 1.0
    torch.set_num_threads(1)
    if given.home:
        given.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="domains-") as folder:
        found = walk(given, given.home or Path(folder))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
