"""What decoding large JPEGs small saves, what it changes, and what a service gains by it.

    ./run bench decoding [--photos FOLDER] [--images N] [--no-service] [--quick] [--json PATH]

Photographs of cameras' sizes are mosaics of webcam photographs at their own resolution.
*Processor ms* are of one thread, full and scaled in turns, the median; a *view* is an
augmented one of training. Differences are in grey levels of the prepared input.

Answers are those of EfficientNet-Lite0 with its packaged weights, with full decoding and
with scaled; beside it, with full decoding of the picture moved by one pixel of the camera,
as a measure of what a difference means. Real photographs are prepared at so few pixels that
they are large for it. There, heads of ten labels are fitted to two thirds and asked about
the rest, in turns, each with its own decoding in both: what a model gets that is trained
here.

The service is one server with two versions of one file, each asked in turn over gRPC.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks import frame, mosaics, standing
from benchmarks.answers import answers, network_at, scaled_of
from benchmarks.contest.pairs import PHOTOS
from benchmarks.load import call, h2load
from benchmarks.serving import PREDICT
from numpy.typing import NDArray

from acclimate.v1 import inference_pb2
from acclimate_service.config import ServeSettings
from acclimate_service.domain.model import Preprocessing, manifest_format
from acclimate_service.domain.names import VersionName
from acclimate_service.imaging import (
    Augmentation,
    centre_box,
    opened,
    prepare,
    prepare_view,
    scale_for,
)
from acclimate_service.store import open_store
from acclimate_service.training.augment import GENTLE

Pixels = NDArray[np.uint8]

SIZES = ((320, 240), (640, 480), (1280, 720), (1920, 1080), (3840, 2160))
SERVED = ((640, 480), (1920, 1080), (3840, 2160))
SMALL = (64, 96, 112)  # pixels a side at which real photographs are large
AT_ONCE = 8
VIEW = Augmentation(area=GENTLE.area, ratio=GENTLE.ratio)

# What a process of its own says that decoding one file adds to its peak, in MiB.
PEAK = """
import sys
from acclimate_service.domain.model import Preprocessing
from acclimate_service.imaging import decode_prepared

def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

small, large, decoding = sys.argv[1:]
how = Preprocessing(size=224, decoding=decoding)
decode_prepared(open(small, "rb").read(), how)
file = open(large, "rb").read()
before = peak()
decode_prepared(file, how)
print(peak() - before)
"""


# ── what it costs ────────────────────────────────────────────────────────────


def cost(files: Sequence[bytes], full: Preprocessing, scaled: Preprocessing) -> dict[str, Any]:
    """Times, differences and memory of some files of one size."""
    times: dict[str, list[float]] = {name: [] for name in ("full", "scaled", "view", "view scaled")}
    differences = []
    for number, file in enumerate(files):
        inputs = {}
        for name, how in (("full", full), ("scaled", scaled))[:: 1 if number % 2 else -1]:
            inputs[name], milliseconds = timed(shown, file, how)
            times[name].append(milliseconds)
            _, milliseconds = timed(view, file, how, number)
            times["view" if name == "full" else "view scaled"].append(milliseconds)
        differences.append(abs(inputs["full"].astype(int) - inputs["scaled"]))
    width, height = opened(files[0]).size
    return {
        "size": f"{width} x {height}",
        "scale": scale_for(centre_box(width, height, scaled), scaled),
        "bytes": round(statistics.mean(map(len, files))),
        "milliseconds": {name: statistics.median(found) for name, found in times.items()},
        "mean": float(np.mean(differences)),
        "most": int(np.max(differences)),
        "mebibytes": {how.decoding: peak(files[0], how.decoding) for how in (full, scaled)},
    }


def timed(act: Callable[..., Pixels], *given: Any) -> tuple[Pixels, float]:
    """What *act* gives, and the milliseconds of this thread that it took."""
    began = time.thread_time()
    made = act(*given)
    return made, (time.thread_time() - began) * 1000


def shown(file: bytes, how: Preprocessing) -> Pixels:
    """What is served of a file."""
    return prepare(opened(file), how)


def view(file: bytes, how: Preprocessing, seed: int) -> Pixels:
    """A view of training; the same part for the same seed."""
    return prepare_view(opened(file), how, rng=np.random.default_rng(seed), augment=VIEW)


def peak(file: bytes, decoding: str) -> float:
    """The MiB that a process needs at most to prepare *file*, beyond what it has."""
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        small.write_bytes(standing.jpeg())
        large.write_bytes(file)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(small), str(large), decoding],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return float(done.stdout)


# ── what a service gains ─────────────────────────────────────────────────────


def add_scaled(home: Path) -> VersionName:
    """A version like the first, of the same files, that decodes scaled."""
    settings = ServeSettings(home=home)
    store = open_store(settings.store_url(), settings.blob_root())
    try:
        first = store.registry.get_version(VersionName(standing.MODEL, "1")).manifest
        how = scaled_of(first.preprocessing)
        like = first.model_copy(update={"preprocessing": how, "format": manifest_format(how)})
        return standing.add_version(store, like, first.artifacts)
    finally:
        store.close()


def served(
    given: argparse.Namespace, files: Sequence[bytes], *, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Images a second of either version for each of the *files*, medians over the rounds."""
    with frame.home(given) as home:
        versions = {"full": VersionName(standing.MODEL, "1"), "scaled": add_scaled(home)}
        rows = []
        with standing.serving(home) as server:
            for file in files:
                calls = {
                    name: call(
                        server.port,
                        PREDICT,
                        inference_pb2.PredictRequest(
                            model=str(version), images=[file]
                        ).SerializeToString(),
                    )
                    for name, version in versions.items()
                }
                rates: dict[str, list[float]] = {name: [] for name in calls}
                for _ in range(rounds):
                    for name, to in calls.items():
                        likely = rates[name][-1] if rates[name] else 30.0
                        count = max(round(likely * seconds), 2 * AT_ONCE)
                        rates[name].append(h2load(to, clients=AT_ONCE, requests=count).rate)
                # The first of each only says how many requests are worth sending.
                medians = {name: statistics.median(found[1:]) for name, found in rates.items()}
                width, height = opened(file).size
                rows.append({"size": f"{width} x {height}", "bytes": len(file), "rate": medians})
        return rows


# ── the whole ────────────────────────────────────────────────────────────────


def main() -> None:
    """Measure once and print the tables."""
    parser = frame.arguments(__doc__, quick="few images, two sizes")
    photos = Path(os.environ.get("ACCLIMATE_TEST_PHOTOS", PHOTOS))
    parser.add_argument("--photos", type=Path, default=photos)
    parser.add_argument("--images", type=int, default=60, help="of each size")
    parser.add_argument("--no-service", action="store_true", help="only the first two tables")
    given = parser.parse_args()
    if given.quick:
        given.images = 4
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    webcam = mosaics.photographs(given.photos / "webcam")
    sizes = SIZES[2:4] if given.quick else SIZES
    files = {
        size: [mosaics.mosaic(webcam, *size, rng=rng) for _ in range(given.images)]
        for size in sizes
    }
    network = network_at(standing.SIZE)
    full = network.preprocessing
    found: dict[str, Any] = {"interpolation": full.interpolation}
    heading(
        "photograph, bytes, decoded at, full ms, scaled ms, times, view full, view scaled,"
        " mean difference, most, full MiB, scaled MiB"
    )
    found["costs"] = [show_cost(cost(some, full, scaled_of(full))) for some in files.values()]
    heading(
        "images, how many, same top of 1000, most, moved: same, most,"
        " labels, same top, full right, scaled right, lost, won, drop at most"
    )
    found["answers"] = []
    for size in sizes:
        if scale_for(centre_box(*size, scaled_of(full)), scaled_of(full)) > 1:
            what = f"mosaics of {size[0]} x {size[1]}, {standing.SIZE} px"
            found["answers"].append(show_answers(what, answers(network, files[size])))
    every = webcam + mosaics.photographs(given.photos / "amazon")
    every = every[:: 20 if given.quick else 1]
    real, truth = [photo.read_bytes() for photo in every], [photo.parent.name for photo in every]
    for side in SMALL[:1] if given.quick else SMALL:
        told = answers(network_at(side), real, truth)
        found["answers"].append(show_answers(f"photographs, {side} px", told))
    if not given.no_service:
        heading("photograph, bytes, full images/s, scaled, times")
        rounds, seconds = (2, 1.0) if given.quick else (4, 3.0)
        asked = [files[size][0] for size in sizes if size in SERVED]
        found["served"] = served(given, asked, rounds=rounds, seconds=seconds)
        show_served(found["served"])
    frame.keep(given, found)


def heading(columns: str) -> None:
    """Print the head of a table."""
    names = columns.split(", ")
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)


def show_cost(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row of the first table."""
    took, held = row["milliseconds"], row["mebibytes"]
    print(
        f"| {row['size']} | {row['bytes']:,} | 1/{row['scale']} "
        f"| {took['full']:.1f} | {took['scaled']:.1f} | {took['full'] / took['scaled']:.1f} "
        f"| {took['view']:.1f} | {took['view scaled']:.1f} "
        f"| {row['mean']:.2f} | {row['most']} | {held['full']:.1f} | {held['scaled']:.1f} |",
        flush=True,
    )
    return row


def show_answers(what: str, row: dict[str, Any]) -> dict[str, Any]:
    """Print a row of the second table."""
    scaled, other = row["scaled"], row["moved"]
    print(
        f"| {what} | {row['images']} | {scaled['same']:.1%} | {scaled['most']:.3f} "
        f"| {other['same']:.1%} | {other['most']:.3f} |",
        end="",
    )
    if ten := row.get("heads"):
        right = ten["accuracy"]
        print(
            f" {ten['labels']} | {ten['same']:.1%} | {right['full']:.1%} | {right['scaled']:.1%} "
            f"| {ten['lost']} | {ten['won']} | {ten['drop at most']:.1%} |",
            end="",
        )
    print(flush=True)
    return row


def show_served(rows: Sequence[dict[str, Any]]) -> None:
    """Print the third table."""
    for row in rows:
        rate = row["rate"]
        print(
            f"| {row['size']} | {row['bytes']:,} | {rate['full']:.1f} | {rate['scaled']:.1f} "
            f"| {rate['scaled'] / rate['full']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
