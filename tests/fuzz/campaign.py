"""Throws inputs at the decoders and at a real server, and counts what must not happen.

    ./run fuzz                  # 130,000 inputs, minutes
    ./run fuzz --scale 0.01     # the same, a hundredth of each
    ./run fuzz --seed 7         # other inputs

A process that dies is a crash, no answer in time a hang, INTERNAL and UNKNOWN a fault. A
line of the server's log that is not one JSON object is a forged line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from tests.fuzz import inputs
from tests.integration.rpc_server import SIZE, classifier, fresh_store, model, version
from tests.unit.rpc.methods import Method, methods

from acclimate_service.domain.names import AliasName

COUNTS: Final = {"images": 50_000, "messages": 40_000, "tensors": 10_000, "names": 30_000}
HANG_SECONDS: Final = 20.0  # of a call on a busy machine
DECODE_SECONDS: Final = 1.0
AT_ONCE: Final = 32
FAULTS: Final = {grpc.StatusCode.INTERNAL.name, grpc.StatusCode.UNKNOWN.name}
# What grpc.aio says where a stream was refused while it still wrote: the status got lost
# in the client, about once in a thousand times, and asking again brings it.
LOST: Final = "Internal error from Core"
SERVER_LINES: Final = ("acclimate serving on ", "I1", "E1", "W1")  # ours, and gRPC's own log


@dataclass(kw_only=True)
class Tally:
    """What became of one kind of input."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    hangs: int = 0
    faults: list[str] = field(default_factory=list)  # of the first: what it was
    forged: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing happened that must not."""
        return not (self.crashes or self.hangs or self.faults or self.forged)


def decode_images(count: int, seed: int) -> Tally:
    """Decode *count* files in this process, at every scale that they can be decoded at."""
    from acclimate_service.domain.errors import BadImage
    from acclimate_service.imaging import Limits, opened

    rng, tally = random.Random(seed), Tally(kind="images")
    for _ in range(count):
        file, started = inputs.image(rng), time.perf_counter()
        try:
            picture = opened(file, Limits(pixels=1_000_000))
            for scale in (1, 2, 4, 8) if picture.scalable else (1,):
                picture.pixels(scale)
            outcome = "OK"
        except BadImage as error:
            outcome = error.metadata["why"]
        except Exception as error:  # noqa: BLE001  that is what is looked for
            outcome = "UNKNOWN"
            tally.faults.append(f"{error!r} {file[:400].hex()}")
        tally.hangs += time.perf_counter() - started > DECODE_SECONDS
        tally.outcomes[outcome] += 1
    return tally


def images(count: int, seed: int) -> Tally:
    """Decode in a process of its own, whose death is counted rather than shared."""
    program = (
        "import json; from tests.fuzz import campaign; "
        f"print(json.dumps(vars(campaign.decode_images({count}, {seed}))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return Tally(kind="images", crashes=1, faults=[done.stderr[-2000:]])
    found = json.loads(done.stdout.splitlines()[-1])
    return Tally(**found | {"outcomes": Counter(found["outcomes"])})


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """A real server over a store with one served model, `m`: its address and its log."""
    home = folder / "home"
    store = fresh_store(home_of(home))
    made = version(store, model(store, "m"), classifier())
    store.registry.set_alias(AliasName("m", "production"), made)
    store.close()
    log = folder / "serve.log"
    settings = {"HOME": str(home), "PORT": "0", "THREADS": "1", "MAX_QUEUED_JOBS": "50"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "acclimate_service.serve"],
            env=os.environ | {f"ACCLIMATE_{name}": text for name, text in settings.items()},
            stdout=output,
            stderr=output,
        )
    try:
        port = home / "serve.port"
        until = time.monotonic() + 60
        while not port.is_file():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, "the server does not start"
            time.sleep(0.05)
        yield f"127.0.0.1:{port.read_text().strip()}", process, log
    finally:
        process.terminate()
        process.wait(60)


def home_of(home: Path) -> Path:
    """The folder, made."""
    home.mkdir(parents=True)
    return home


Call = tuple[Method, list[bytes]]


async def throw(target: str, calls: Iterator[Call], tally: Tally) -> None:
    """Make all *calls*, some at once."""
    async with grpc.aio.insecure_channel(target) as channel:

        async def work() -> None:
            for method, requests in calls:
                tally.outcomes[await outcome(channel, method, requests, tally)] += 1

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def outcome(
    channel: grpc.aio.Channel, method: Method, requests: list[bytes], tally: Tally
) -> str:
    """The code with which one call ended."""
    kind = ("stream" if method.streams_in else "unary", "stream" if method.streams_out else "unary")
    callable_: Callable[..., Any] = getattr(channel, "_".join(kind))(method.name)
    started = time.monotonic()
    call = callable_(iter(requests) if method.streams_in else requests[0], timeout=HANG_SECONDS)
    try:
        if method.streams_out:
            async for _ in call:
                if method.name.endswith("/Watch"):  # it ends when its caller says so
                    call.cancel()
                    return "OK"
        else:
            await call
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        if error.details() == LOST:
            return await outcome(channel, method, requests, tally)
        # Not the code alone: a request may itself ask for an answer within a microsecond.
        tally.hangs += time.monotonic() - started >= 0.9 * HANG_SECONDS
        if code in FAULTS:
            sent = [request[:300].hex() for request in requests]
            tally.faults.append(f"{method.name} {code} {error.details()} {sent}")
        return code
    return "OK"


def calls_of(kind: str, count: int, rng: random.Random) -> Iterator[Call]:
    """*count* calls of one kind."""
    known = methods()
    if kind == "names":
        return ((m, [raw]) for m, raw in islice(inputs.named_calls(rng, known), count))
    if kind == "tensors":
        by_name = {method.name: method for method in known}
        made = (inputs.tensor_call(rng, "m", SIZE) for _ in range(count))
        return ((by_name[name], [raw]) for name, raw in made)
    return (
        (method, inputs.messages(rng, method))
        for method in (rng.choice(known) for _ in range(count))
    )


def forged_lines(log: Path) -> int:
    """The lines of the server's log that are neither JSON nor known to be others'."""
    forged = 0
    for line in log.read_bytes().splitlines():
        try:
            json.loads(line)
        except ValueError:
            forged += not line.decode(errors="replace").startswith(SERVER_LINES)
    return forged


def run(counts: dict[str, int], seed: int, folder: Path) -> list[Tally]:
    """The whole campaign; what must not happen stands in the tallies."""
    tallies = []
    started = time.perf_counter()
    if counts.get("images"):
        tally = images(counts["images"], seed)
        tally.seconds = time.perf_counter() - started
        tallies.append(tally)
    with server(folder) as (target, process, log):
        # Tensors first: one of the messages will unload the model that they are for.
        for kind in ("tensors", "messages", "names"):
            tally, started = Tally(kind=kind), time.perf_counter()
            calls = calls_of(kind, counts[kind], random.Random(f"{seed} {kind}"))
            thrown: Awaitable[None] = throw(target, calls, tally)
            asyncio.run(_whole(thrown))
            tally.crashes = int(process.poll() is not None)
            tally.forged = forged_lines(log)
            tally.seconds = time.perf_counter() - started
            tallies.append(tally)
    strangers = sorted(path.name for path in folder.iterdir())
    if strangers != ["home", "serve.log"]:  # a name became a path
        tallies[-1].faults.append(f"files outside of the home folder: {strangers}")
    return tallies


async def _whole(work: Awaitable[None]) -> None:
    await work


def main() -> int:
    """Print the table; 1 if something happened that must not."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the inputs")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    counts = {kind: max(1, round(count * asked.scale)) for kind, count in COUNTS.items()}
    with tempfile.TemporaryDirectory() as folder:
        tallies = run(counts, asked.seed, Path(folder))
    print(f"{'kind':10}{'inputs':>9}{'crashes':>9}{'hangs':>7}{'faults':>8}{'forged':>8}{'s':>7}")
    total = sum(tally.outcomes.total() for tally in tallies)
    for tally in tallies:
        print(
            f"{tally.kind:10}{tally.outcomes.total():>9}{tally.crashes:>9}{tally.hangs:>7}"
            f"{len(tally.faults):>8}{tally.forged:>8}{tally.seconds:>7.0f}   "
            + ", ".join(f"{code} {n}" for code, n in tally.outcomes.most_common(6))
        )
        for fault in tally.faults[:5]:
            print("  ", fault[:1500])
    print(f"{total:,} inputs, seed {asked.seed}")
    return 0 if all(tally.clean for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
