"""How much each way of adapting gains on the target, and what it costs of the source.

    ./run bench adaptation                      # amazon -> webcam and back, 3 seeds
    ./run bench adaptation --rivals             # fastai and Avalanche too, in their environment
    ./run bench adaptation --quick              # one pair, one seed, 10 images a class
    ./run bench adaptation --source DIR --target DIR --per-class 3 --per-class 10

Every method of a split sees the same files: the target's training and select images,
the same source images to replay. Each runs in a process of its own and hands back
weights, which are scored here on verify images that none of them was given. So are AUTO's
candidates on its way, each with the seconds until it stood. Records
are appended as they come; --resume goes on where a run stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from benchmarks.contest import pairs
from benchmarks.contest.entrants import ENTRANTS, RIVALS_PYTHON, ROOT, EntrantFailed, run
from benchmarks.contest.pairs import Pair
from benchmarks.contest.record import Milestone, Record, read_records
from benchmarks.contest.score import Scorer
from benchmarks.contest.table import report
from benchmarks.contest.task import ADAPTED_WEIGHTS, SOURCE_WEIGHTS, Finished, Pictures, Task

ARCHITECTURE = "tf_efficientnet_lite0"
HALF = (0.5, 0.5, 0.5)  # what its weights expect to be subtracted and divided by
BOOTSTRAP = "bootstrap"
RECORDS = "adaptation.jsonl"


def task_of(pair: Pair, per_class: int | None, seed: int, given: argparse.Namespace) -> Task:
    """What a method is asked to do on one split."""
    source, target = pair.source_parts(), pair.target_parts(per_class, seed)
    return Task(
        architecture=ARCHITECTURE,
        labels=pair.labels,
        size=pair.size,
        crop=pair.crop,
        mean=HALF,
        std=HALF,
        flip=pair.flip,
        seed=seed,
        epochs=given.epochs,
        batch=given.batch,
        threads=given.threads,
        device=given.device,
        train=target.train,
        select=target.select,
        replay=pair.replay(seed),
        source_select=source.select,
    )


def source_model(pair: Pair, task: Task, given: argparse.Namespace) -> Path:
    """The file of the pair's source model's weights, made if it is not there."""
    parts = pair.source_parts()
    seen = "".join(picture.content for picture in parts.train)
    key = hashlib.sha256(f"{seen}{task.size}{task.crop}".encode()).hexdigest()[:16]
    file: Path = given.models / f"{key}.safetensors"
    if not file.exists():
        print(f"making the source model of {pair.name}", file=sys.stderr, flush=True)
        folder = given.models / key
        asked = replace(task, seed=0, train=parts.train, select=parts.select, replay=())
        asked.write(folder)
        shutil.copy(_untrained(folder), folder / SOURCE_WEIGHTS)
        run(BOOTSTRAP, folder, threads=given.threads, rivals=given.rivals_python)
        (folder / ADAPTED_WEIGHTS).replace(file)
        shutil.rmtree(folder)
    return file


def _untrained(folder: Path) -> Path:
    """An empty set of weights: a source model begins with ImageNet's."""
    import safetensors.torch

    file = folder / "none.safetensors"
    safetensors.torch.save_file({}, file)
    return file


def compete(
    pair: Pair, per_class: int | None, seed: int, done: set[str], given: argparse.Namespace
) -> Iterator[Record]:
    """Let every method that is not *done* adapt on one split."""
    task = task_of(pair, per_class, seed, given)
    model = source_model(pair, task, given)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()[:16]
    scorer = Scorer(task)
    verify = (pair.target_parts(per_class, seed).verify, pair.source_parts().verify)
    before = None
    for method in given.method:
        if f"{method} {digest}" in done:
            continue
        before = before or scorer.answers(model, *verify)
        with tempfile.TemporaryDirectory(prefix="adaptation-") as scratch:
            folder = Path(scratch)
            task.write(folder)
            shutil.copy(model, folder / SOURCE_WEIGHTS)
            try:
                effort = run(method, folder, threads=given.threads, rivals=given.rivals_python)
            except (EntrantFailed, subprocess.TimeoutExpired) as error:
                print(f"{pair.name} seed {seed}: {error}", file=sys.stderr, flush=True)
                continue
            if given.verbose:
                print((folder / f"{method}.log").read_text(), file=sys.stderr)
            after = scorer.answers(folder / ADAPTED_WEIGHTS, *verify)
            milestones = tuple(scored(one, scorer, folder, verify) for one in effort.finished)
        yield Record(
            pair=pair.name,
            per_class=per_class,
            seed=seed,
            method=method,
            model=digest,
            revision=revision(),
            target=after[0],
            source=after[1],
            target_before=before[0],
            source_before=before[1],
            milestones=milestones,
            seconds=effort.seconds,
            cpu_seconds=effort.cpu_seconds,
            peak_mib=effort.peak_mib,
            detail=effort.detail,
            versions=effort.versions,
        )


def scored(
    one: Finished, scorer: Scorer, folder: Path, verify: tuple[Pictures, Pictures]
) -> Milestone:
    """A candidate that a method had on its way, on verify images."""
    target, source = scorer.answers(folder / one.weights, *verify)
    return Milestone(
        name=one.name,
        seconds=one.seconds,
        cpu_seconds=one.cpu_seconds,
        target=target.accuracy,
        source=source.accuracy,
    )


def revision() -> str:
    """The commit that runs, if it can be told."""
    words = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def chosen_pairs(given: argparse.Namespace) -> Iterator[Pair]:
    """Those asked for, one at a time, as their images take memory and seconds to read."""
    if given.source or given.target:
        if not (given.source and given.target):
            raise SystemExit("give both --source and --target, or neither")
        yield pairs.of_folders(given.source, given.target, size=given.size, flip=not given.no_flip)
        return
    for name in given.pair or (pairs.REAL[:1] if given.quick else pairs.REAL):
        yield pairs.named(name, given.models / "images", given.photos)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, its defaults filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0],
        epilog="methods: " + "; ".join(f"{name}: {e.summary}" for name, e in ENTRANTS.items()),
    )
    add = parser.add_argument
    add("--source", type=Path, help="image folder, one subfolder a label")
    add("--target", type=Path, help="the same of the new domain; labels may be missing")
    add("--size", type=int, default=160, help="pixels a side, with --source")
    add("--no-flip", action="store_true", help="a mirrored image is another, with --source")
    add("--pair", action="append", choices=pairs.NAMES, help="built-in pairs; else the first two")
    add("--photos", type=Path, default=Path(os.environ.get("ACCLIMATE_TEST_PHOTOS", pairs.PHOTOS)))
    add("--per-class", type=int, action="append", help="labelled target images a class; 0: all")
    add("--seed", type=int, action="append", help="these seeds, else the first --seeds")
    add("--seeds", type=int, default=3)
    add("--method", action="append", help="a method below, or any strategy of the engine")
    add("--rivals", action="store_true", help="with the methods of other libraries")
    add("--rivals-python", type=Path, default=RIVALS_PYTHON, help="their environment's Python")
    add("--quick", action="store_true", help="one pair, one seed")
    add("--epochs", type=int, default=15)
    add("--batch", type=int, default=32)
    add("--threads", type=int, default=1, help="for each method, one at a time")
    add("--device", default="cpu", help="where methods train: cpu, cuda")
    scratch = Path(tempfile.gettempdir()) / "acclimate-benchmark"
    add("--models", type=Path, default=scratch, help="where source models and made images are kept")
    add("--records", type=Path, help="JSON lines, appended to; else in --models")
    add("--resume", action="store_true", help="skip what is in --records; else it begins anew")
    add("--again", action="append", default=[], help="with --resume: run this method once more")
    add("--table", action="store_true", help="only show what is in --records")
    add("--verbose", action="store_true", help="show what each method printed")
    add("--json", type=Path, help="write the records as one JSON list")
    given = parser.parse_args(arguments)
    given.records = given.records or given.models / RECORDS
    given.method = given.method or [
        name for name, one in ENTRANTS.items() if given.rivals or not one.rival
    ]
    given.seed = given.seed or list(range(1 if given.quick else given.seeds))
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    if not (given.resume or given.table) and given.records.exists():
        given.records.replace(given.records.with_suffix(f".{time.time_ns()}.jsonl"))
    known = read_records(given.records)
    for pair in () if given.table else chosen_pairs(given):
        for per_class in given.per_class or [10]:
            for seed in given.seed:
                split = (pair.name, per_class or None, seed)
                done = {
                    f"{r.method} {r.model}"
                    for r in known.values()
                    if (r.pair, r.per_class, r.seed) == split and r.method not in given.again
                }
                for record in compete(pair, per_class or None, seed, done, given):
                    record.append(given.records)
                    print(record, file=sys.stderr, flush=True)
    records = list(read_records(given.records).values())
    print(report(records))
    if given.json:
        given.json.write_text(json.dumps([asdict(r) for r in records], indent=1) + "\n")


if __name__ == "__main__":
    main()
