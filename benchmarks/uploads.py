"""How fast images come in, into a folder and into a bucket.

    ./run bench uploads                # 1,000 JPEGs of about 20 KB, by `acclimate upload`
    ./run bench uploads --images 200

A server of its own over SQLite for each row, and a client beside it on the same processors.
The bucket's server is moto, in Python, which takes a part of them too: what it shows is what
waiting for a store costs, by a proxy that holds every request back for so many milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tests.acceptance.processes import Service
from tests.objectstore import FaultProxy, fault_proxy, object_store

SIDE = 144  # pixels: as JPEG of this quality, about 20 KB of noise
QUALITY = 92
LABELS = 10


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, object_store(Path(name) / "moto.log") as store:
        home = Path(name)
        photos = home / "photos"
        kib = make_photos(photos, asked.images) / asked.images / 1024
        print(f"{asked.images} images of {kib:.1f} KiB on the mean")
        rows = [("folder", measured(home / "folder", photos, {}, {}))]
        with fault_proxy(store) as proxy:
            for what, at, delay in (
                ("bucket", store, 0.0),
                ("bucket behind a proxy", proxy.store, 0.0),
                ("bucket 20 ms away", proxy.store, 0.02),
                ("bucket 100 ms away", proxy.store, 0.1),
            ):
                proxy.faults.delay = delay
                place = {"blobs": at.bucket()}
                seconds = measured(home / what, photos, place, at.environment)
                rows.append((f"{what}{requests(proxy)}", seconds))
    print("\n| Files in | seconds | images/s |\n|---|---|---|")
    for what, seconds in rows:
        print(f"| {what} | {seconds:.1f} | {asked.images / seconds:.0f} |")
    if asked.json:
        told = [{"place": what, "seconds": seconds} for what, seconds in rows]
        asked.json.write_text(json.dumps({"images": asked.images, "rows": told}, indent=1))


def requests(proxy: FaultProxy) -> str:
    """How many requests came through the proxy since this was last asked."""
    count = len(proxy.faults.asked)
    proxy.faults.asked.clear()
    return f", {count:,} requests" if count else ""


def make_photos(folder: Path, count: int) -> int:
    """Write *count* images into subfolders that are their labels; their bytes together."""
    drawn = np.random.default_rng(1)
    size = 0
    for number in range(count):
        path = folder / f"label-{number % LABELS}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = drawn.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=QUALITY)
        size += path.stat().st_size
    return size


def measured(home: Path, photos: Path, place: dict[str, str], environment: dict[str, str]) -> float:
    """The seconds that `acclimate upload` takes, its own start included."""
    with serving(home, place, environment) as target:
        began = time.monotonic()
        words = ["upload", str(photos), "-d", "photos", "--create"]
        subprocess.run(
            [sys.executable, "-m", "acclimate", *words],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"ACCLIMATE_SERVER": target},
        )
        return time.monotonic() - began


@contextlib.contextmanager
def serving(home: Path, place: dict[str, str], environment: dict[str, str]) -> Iterator[str]:
    """A server that is ready; where it listens."""
    service = Service(home, serve=place, work={}, environment=environment)
    service.serve.start()
    try:
        service.client().close()
        yield service.target
    finally:
        service.stop()


if __name__ == "__main__":
    main()
