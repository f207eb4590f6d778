"""How much memory training needs, whatever the number of images.

    ./run bench memory              # 500, 10,000 and 100,000 images of 224 x 224
    ./run bench memory --quick      # fewer and smaller ones
    ./run bench memory --images 20000 --cache-mib 512 --seconds 300

Synthetic images, made when they are read, so that only what the engine keeps counts. A
tail of EfficientNet-Lite0 is tuned on them for so many seconds, each row in a process of
its own. *Own* memory is anonymous: it must stay under the cache's budget and 2 GiB, and the
command fails if it does not. *Mapped* is the cache's file, which the kernel takes back
when it needs the room.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from acclimate_service.domain.job import EventKind
from acclimate_service.domain.model import Architecture
from acclimate_service.training.augment import GENTLE
from acclimate_service.training.cache import Cache
from acclimate_service.training.candidate import Effort
from acclimate_service.training.dataset import prepare
from acclimate_service.training.finetune import tune
from acclimate_service.training.network import build
from acclimate_service.training.run import Cancelled, Facts, Run
from acclimate_service.training.strategies import parse
from acclimate_service.training.trunk import LAYOUT, Trunk

LABELS = 10
VIEWS = 4
ALLOWED = 2 << 10  # MiB beside the cache's budget
INTERVAL = 0.05  # seconds between two looks at the memory


class Synthetic:
    """Noise of a label's brightness, made anew at each reading."""

    def __init__(self, count: int, *, side: int, first: int) -> None:
        self._side, self._first = side, first
        self.labels = [index % LABELS for index in range(count)]
        self.contents = [f"{first + index:064x}" for index in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        """The pixels of one image."""
        rng = np.random.default_rng(self._first + index)
        noise = rng.integers(0, 32, (self._side, self._side, 3), dtype=np.uint8)
        return noise + np.uint8(20 * self.labels[index])


class Watch(threading.Thread):
    """Looks at this process's memory again and again; peaks in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own = self.mapped = 0

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            found = {line.split(":")[0]: line.split()[1] for line in lines if line[:3] == "Rss"}
            self.own = max(self.own, int(found["RssAnon"]) >> 10)
            self.mapped = max(self.mapped, int(found["RssFile"]) >> 10)
            time.sleep(INTERVAL)


def one(images: int, *, side: int, cache_mib: int, seconds: float) -> dict[str, object]:
    """Tune on so many images for at most so many seconds, in this process."""
    watch = Watch()
    watch.start()
    network = build(Architecture(library="timm", name="tf_efficientnet_lite0"), labels=LABELS,
                    size=side).to(memory_format=LAYOUT)  # fmt: skip
    before = watch.own
    told: list[str] = []
    epochs = []
    began = time.monotonic()

    def hear(kind: EventKind, message: str, _facts: Facts) -> None:
        if kind is EventKind.DECISION:
            told.append(message)
        if kind is EventKind.EPOCH:
            epochs.append(message)

    run = Run(
        clock=time.monotonic,
        readers=2,
        on_event=hear,
        cancelled=lambda: time.monotonic() - began > seconds,
    )
    stock = prepare(
        Synthetic(images, side=side, first=0),
        labels=LABELS,
        select=Synthetic(50, side=side, first=10**6),
        replay=Synthetic(200, side=side, first=2 * 10**6),
        source_select=Synthetic(50, side=side, first=3 * 10**6),
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(budget=cache_mib << 20, folder=Path(folder))
        trunk = Trunk(network, cache, augmentation=GENTLE, views=VIEWS, run=run)
        with contextlib.suppress(Cancelled):
            tune(network, parse("tail"), start={}, stock=stock, trunk=trunk,
                 effort=Effort(epochs=3), run=run)  # fmt: skip
    return {
        "images": images, "side": side, "cache_mib": cache_mib, "start_mib": before,
        "own_mib": watch.own, "mapped_mib": watch.mapped, "epochs": len(epochs),
        "seconds": round(time.monotonic() - began),
        "streamed": any("do not fit" in text for text in told),
    }  # fmt: skip


def table(rows: Sequence[dict[str, object]]) -> str:
    """A line for each number of images; memory in MiB."""
    head = (
        "| images | side | cache | trunk | own at start | own at most | mapped | epochs | seconds |"
    )
    lines = [
        f"| {r['images']:,} | {r['side']} | {r['cache_mib']} | "
        f"{'streamed' if r['streamed'] else 'kept'} | {r['start_mib']} | {r['own_mib']} | "
        f"{r['mapped_mib']} | {r['epochs']} | {r['seconds']} |"
        for r in rows
    ]
    return "\n".join([head, "|---|---|---|---|---|---|---|---|---|", *lines])


def main() -> None:
    """Run each size in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--images", type=int, action="append")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--cache-mib", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=100, help="stop each row then")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sizes = given.images or ([200, 5000] if given.quick else [500, 10_000, 100_000])
    side, cache = (96, 16) if given.quick else (given.side, given.cache_mib)
    if given.one:
        print(json.dumps(one(sizes[0], side=given.side, cache_mib=given.cache_mib,
                             seconds=given.seconds)))  # fmt: skip
        return
    rows = []
    for images in sizes:
        words = [sys.executable, __file__, "--one", "--images", str(images), "--side", str(side),
                 "--cache-mib", str(cache), "--seconds", str(given.seconds),
                 "--threads", str(given.threads)]  # fmt: skip
        ran = subprocess.run(words, check=True, capture_output=True, text=True)
        rows.append(json.loads(ran.stdout))
        print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    over = [r for r in rows if int(str(r["own_mib"])) > cache + ALLOWED]
    if over:
        raise SystemExit(f"more than the cache's budget and {ALLOWED} MiB: {over}")


if __name__ == "__main__":
    main()
