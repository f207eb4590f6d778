"""What decoding large JPEGs small saves, what it changes, and what a service gains by it.

    ./run bench decoding [--photos FOLDER] [--images N] [--only TABLE] [--quick] [--json PATH]

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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks import frame, mosaics, standing
from benchmarks.answers import answers, network_at, scaled_of
from benchmarks.contest.pairs import PHOTOS
from benchmarks.load import Call, call, h2load
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
GUESS = 30.0  # requests a second, before any was measured
ANSWERS = (
    "images, how many, same top of 1000, most, moved: same, most, labels, same top, moved: same,"
    " full right, scaled right, lost and won, moved: lost and won, drop at most"
)
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


def costs(files: Mapping[tuple[int, int], Sequence[bytes]]) -> list[dict[str, Any]]:
    """What either decoding of each size costs."""
    heading(
        "photograph, bytes, decoded at, full ms, scaled ms, times, view full, view scaled,"
        " mean difference, most, full MiB, scaled MiB"
    )
    full = network_at(standing.SIZE).preprocessing
    return [show_cost(cost(some, full, scaled_of(full))) for some in files.values()]


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
    given: argparse.Namespace, files: Mapping[tuple[int, int], Sequence[bytes]]
) -> list[dict[str, Any]]:
    """Images a second of either version for one file of each size, medians over the rounds."""
    heading("photograph, bytes, full images/s, scaled, times")
    rounds, seconds = (2, 1.0) if given.quick else (5, 3.0)
    rows = []
    with frame.home(given) as home:
        versions = {"full": VersionName(standing.MODEL, "1"), "scaled": add_scaled(home)}
        with standing.serving(home) as server:
            for size in SERVED:
                if size in files:
                    file = files[size][0]
                    calls = {
                        name: call(server.port, PREDICT, asked(version, file))
                        for name, version in versions.items()
                    }
                    rates = rates_of(calls, rounds=rounds, seconds=seconds)
                    rows.append(show_rates(size, file, rates))
    return rows


def asked(version: VersionName, file: bytes) -> bytes:
    """The request for what a version says of a file."""
    return inference_pb2.PredictRequest(model=str(version), images=[file]).SerializeToString()


def rates_of(calls: Mapping[str, Call], *, rounds: int, seconds: float) -> dict[str, float]:
    """Requests a second of each call, in turns; the median of all rounds but the first."""
    rates = {name: [GUESS] for name in calls}
    for _ in range(rounds):
        for name, to in calls.items():
            count = max(round(rates[name][-1] * seconds), 2 * AT_ONCE)
            rates[name].append(h2load(to, clients=AT_ONCE, requests=count).rate)
    return {name: statistics.median(found[2:]) for name, found in rates.items()}


# ── the whole ────────────────────────────────────────────────────────────────


def main() -> None:
    """Measure once and print the tables."""
    parser = frame.arguments(__doc__, quick="few images, two sizes")
    photos = Path(os.environ.get("ACCLIMATE_TEST_PHOTOS", PHOTOS))
    parser.add_argument("--photos", type=Path, default=photos)
    parser.add_argument("--images", type=int, default=60, help="of each size")
    parser.add_argument("--only", choices=["costs", "answers", "service"], help="one table")
    given = parser.parse_args()
    if given.quick:
        given.images = 4
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    webcam = mosaics.photographs(given.photos / "webcam")
    files = {
        size: [mosaics.mosaic(webcam, *size, rng=rng) for _ in range(given.images)]
        for size in (SIZES[2:4] if given.quick else SIZES)
    }
    found: dict[str, Any] = {}
    if given.only in (None, "costs"):
        found["costs"] = costs(files)
    if given.only in (None, "answers"):
        found["answers"] = [*of_mosaics(files), *of_photographs(given)]
    if given.only in (None, "service"):
        found["served"] = served(given, files)
    frame.keep(given, found)


def of_mosaics(files: Mapping[tuple[int, int], Sequence[bytes]]) -> list[dict[str, Any]]:
    """How the answers to mosaics change that are large for 224 pixels."""
    heading(ANSWERS)
    network = network_at(standing.SIZE)
    how = scaled_of(network.preprocessing)
    rows = []
    for size, some in files.items():
        if scale_for(centre_box(*size, how), how) > 1:
            what = f"mosaics of {size[0]} x {size[1]}, {standing.SIZE} px"
            rows.append(show_answers(what, answers(network, some)))
    return rows


def of_photographs(given: argparse.Namespace) -> list[dict[str, Any]]:
    """How the answers to real photographs change, with so few pixels that these are large."""
    photos = [
        photo
        for domain in ("webcam", "amazon")
        for photo in mosaics.photographs(given.photos / domain)[:: 20 if given.quick else 1]
    ]
    files, truth = [photo.read_bytes() for photo in photos], [p.parent.name for p in photos]
    return [
        show_answers(f"photographs, {side} px", answers(network_at(side), files, truth))
        for side in (SMALL[:1] if given.quick else SMALL)
    ]


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
    cells = [what, row["images"]]
    for name in ("scaled", "moved"):
        cells += [f"{row[name]['same']:.1%}", f"{row[name]['most']:.3f}"]
    if "labels" in row:
        scaled, other = row["scaled"]["heads"], row["moved"]["heads"]
        cells += [row["labels"], f"{scaled['same']:.1%}", f"{other['same']:.1%}"]
        cells += [f"{scaled['accuracy'][name]:.1%}" for name in ("full", "other")]
        cells += [f"{one['lost']}; {one['won']}" for one in (scaled, other)]
        cells += [f"{scaled['drop at most']:.1%}"]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return row


def show_rates(size: tuple[int, int], file: bytes, rates: dict[str, float]) -> dict[str, Any]:
    """Print a row of the third table."""
    full, scaled = rates["full"], rates["scaled"]
    print(
        f"| {size[0]} x {size[1]} | {len(file):,} | {full:.1f} | {scaled:.1f} "
        f"| {scaled / full:.2f} |",
        flush=True,
    )
    return {"size": size, "bytes": len(file), "rates": rates}


if __name__ == "__main__":
    main()
