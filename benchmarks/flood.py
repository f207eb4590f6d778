"""What callers who are refused cost those who are answered.

    ./run bench flood [--seconds S] [--rounds N] [--load SHARE] [--clients N]
                      [--home FOLDER] [--quick] [--json PATH]

EfficientNet-Lite0 answers one principal at a share of what the server can do (h2load, on
the same cores), in turns alone, beside clients without a token, and beside a principal
that is far above its rate: these send one call after the other without a pause, and
nearly all of their calls are refused.
"""

from __future__ import annotations

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import frame, standing
from benchmarks.load import Call, Load, call, flood, h2load

from acclimate.v1 import inference_pb2
from acclimate_service.config import ServeSettings
from acclimate_service.domain.access import TokenDraft, principal_of
from acclimate_service.store import open_store

PREDICT = "/acclimate.v1.InferenceService/Predict"
CLIENTS = 8
RATE = 300  # requests a second that each principal may make: more than is asked of the server


def main() -> None:
    """Measure once and print the table."""
    parser = frame.arguments(__doc__, quick="one round of two seconds")
    parser.add_argument("--seconds", type=float, default=30, help="for each row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", type=float, default=0.5, help="of what the server can do")
    parser.add_argument("--clients", type=int, default=16, help="that are refused, at once")
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.rounds = 2, 1
    size = frame.QUICK_SIZE if given.quick else standing.SIZE
    with frame.home(given, size=size) as home:
        found = walk(given, home, size)
    show(found)
    frame.keep(given, found)


def token(home: Path, name: str) -> str:
    """The secret of a new principal of the store in *home*, who may predict."""
    settings = ServeSettings(home=home)
    store = open_store(settings.store_url(), settings.blob_root())
    try:
        principal = principal_of(name, roles=["predict"], models=(), domains=())
        return store.tokens.create(TokenDraft(principal=principal), by="a benchmark").secret
    finally:
        store.close()


def walk(given: argparse.Namespace, home: Path, size: int) -> dict[str, Any]:
    """Start the server, measure in turns, and end it."""
    pixels = standing.pixels(standing.jpeg(), size=size)
    tensor = inference_pb2.Tensor(shape=pixels.shape, pixels=pixels.tobytes())
    request = inference_pb2.PredictRequest(model=f"models/{standing.MODEL}", tensor=tensor)
    mine, theirs = token(home, "answered"), token(home, "refused")
    with standing.serving(home, auth=True, requests_per_second=0) as server:
        to = call(server.port, PREDICT, request.SerializeToString(), token=mine)
        rate = min(given.load * h2load(to, clients=CLIENTS, requests=300).rate, 0.9 * RATE)
    with (
        standing.serving(home, auth=True, requests_per_second=RATE) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        to = call(server.port, PREDICT, request.SerializeToString(), token=mine)
        small = inference_pb2.PredictRequest(model=request.model).SerializeToString()
        floods = {
            "alone": None,
            "no token": Call(port=server.port, method=PREDICT, request=small, answer=b""),
            "above its rate": Call(
                port=server.port, method=PREDICT, request=small, answer=b"", token=theirs
            ),
        }
        answered: dict[str, list[Load]] = {name: [] for name in floods}
        refused: dict[str, list[float]] = {name: [] for name in floods}
        seconds = given.seconds / given.rounds
        for _ in range(given.rounds):
            for name, other in floods.items():
                flooding = None if other is None else pool.submit(
                    flood, other, clients=given.clients, seconds=seconds
                )  # fmt: skip
                count = max(int(rate * seconds), CLIENTS)
                answered[name].append(h2load(to, clients=CLIENTS, requests=count, rate=rate))
                refused[name].append(flooding.result() if flooding else 0.0)
    return {
        "rate": rate,
        "rows": {
            name: {
                "refused": statistics.mean(refused[name]),
                **{f"p{share}": _of(answered[name], share) for share in (50, 90, 99)},
            }
            for name in floods
        },
    }


def _of(loads: list[Load], share: float) -> float:
    """A percentile over the requests of all rounds."""
    return float(np.percentile(np.concatenate([load.milliseconds for load in loads]), share))


def show(found: dict[str, Any]) -> None:
    """Print what was found."""
    print(f"{found['rate']:.0f} requests a second")
    print(f"{'beside':16}{'refused/s':>10}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'p99':>12}")
    usual = found["rows"]["alone"]["p99"]
    for name, row in found["rows"].items():
        print(f"{name:16}{row['refused']:10.0f}{row['p50']:9.1f}{row['p90']:9.1f}{row['p99']:9.1f}"
              f"{row['p99'] / usual:6.2f} times")  # fmt: skip


if __name__ == "__main__":
    main()
