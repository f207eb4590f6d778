"""What an int8 variant costs and saves, on real photographs.

    ./run bench variants [--photos FOLDER] [--home FOLDER] [--rounds N] [--quick] [--json PATH]

EfficientNet-Lite0 at 224 pixels learns amazon and is adapted to webcam through the
product, with ``--variant int8`` and the exploratory guard: whether the version itself
passes is not what is measured. Then both files of the version answer the verify images,
are judged by the default guard as at a first look, and take turns in onnxruntime as a
server runs them: a thread for each core, all calling one session, one image a call. A
ratio is of one round; the median over the rounds and the quartiles are printed.
``careless`` is the same file made without looking (onnxruntime's defaults, ranges from
one image), judged by the same guard and kept nowhere.

With ``--home`` the versions stay in that folder, and a second call only measures;
``--make`` only makes them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from benchmarks import camera_shift, standing
from benchmarks.contest.pairs import PHOTOS
from numpy.typing import NDArray
from onnxruntime import quantization

from acclimate import Client, JobState, Preprocessing, Role
from acclimate.folders import labels_of_folder
from acclimate_service.config import ServeSettings
from acclimate_service.domain.evidence import Evidence, FileFacts, Paired
from acclimate_service.domain.guard import judge
from acclimate_service.domain.model import Manifest
from acclimate_service.domain.names import AliasName, DomainName
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.imaging import decode_prepared
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution
from acclimate_service.store import Store, open_store
from acclimate_service.worker.evaluate import VerifySet, predict
from acclimate_service.worker.stock import verify_images
from acclimate_service.worker.timing import milliseconds

DOMAINS = ("amazon", "webcam")
THREADS = os.cpu_count() or 1
DONE = "variants.made"  # in a home whose versions are there
ROUND_IMAGES = 40  # of each thread


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a version, opened as a server opens it."""

    name: str
    content: bytes
    classifier: Classifier


# ── made by the product ──────────────────────────────────────────────────────


def make(home: Path, photos: Path, *, size: int, epochs: int) -> None:
    """Learn the first domain, then adapt to ten images a class of the second, with int8.

    Called again in the same *home* it goes on where it was: every call has its request id.
    """
    # Nobody asks the server for anything meanwhile, so training need not step back.
    with (
        standing.serving(home) as server,
        standing.ours("work", home, idle_priority=False),
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        for domain, train_per_class in zip(DOMAINS, (None, 10), strict=True):
            folder = photos / domain
            client.create_domain(domain, labels_of_folder(folder), request_id=f"create-{domain}")
            parts = camera_shift.split(folder, train_per_class=train_per_class)
            for role, examples in zip((Role.TRAIN, Role.HOLDOUT), parts, strict=True):
                client.upload(domain, examples, role=role, request_id=f"{role.value}-{domain}")
        client.register_model(
            standing.MODEL,
            "timm/tf_efficientnet_lite0",
            weights=standing.PACKAGE,
            preprocessing=Preprocessing(size=size),
            source_domain=DOMAINS[0],
            request_id="register",
        )
        for domain, variants in zip(DOMAINS, ([], ["int8"]), strict=True):
            job = client.adapt(
                standing.MODEL,
                domain,
                strategy="head",
                epochs=epochs,
                promote_to="production",
                guard_preset="exploratory",
                variants=variants,
                request_id=f"adapt-{domain}",
            )
            if camera_shift.finished(job, 3000).state is not JobState.SUCCEEDED:
                raise SystemExit(f"{domain} ended {job.state}: {job.snapshot}")


# ── judged and timed ─────────────────────────────────────────────────────────


def opened(store: Store, manifest: Manifest) -> list[File]:
    """The version's files, and the careless one."""
    artifacts = manifest.artifacts
    fp32 = store.blobs.get(artifacts.onnx)
    found = [_file("fp32", fp32, manifest)]
    for name, variant in artifacts.variants.items():
        found.append(_file(name, store.blobs.get(variant.onnx), manifest))
    image = next(iter(_images(store, manifest, DOMAINS[0], 1)))
    return [*found, _file("careless", careless(fp32, image), manifest)]


def _file(name: str, content: bytes, manifest: Manifest) -> File:
    classifier = Classifier.open(
        content,
        digest=hashlib.sha256(content).hexdigest(),
        labels=len(manifest.labels),
        size=manifest.preprocessing.size,
        execution=Execution.for_throughput(THREADS),
    )
    return File(name=name, content=content, classifier=classifier)


class _Once(quantization.CalibrationDataReader):  # type: ignore[misc]  # it is untyped
    def __init__(self, image: NDArray[np.uint8]) -> None:
        self._images = [image]

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return {"images": self._images.pop()[None]} if self._images else None


def careless(fp32: bytes, image: NDArray[np.uint8]) -> bytes:
    """int8 by onnxruntime's defaults, its ranges from one image."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        before.write_bytes(fp32)
        quantization.quantize_static(before, after, _Once(image))
        content = after.read_bytes()
    logging.disable(logging.NOTSET)
    return content


def _verify(store: Store, manifest: Manifest, domain: str) -> VerifySet:
    return verify_images(store, DomainName(domain), manifest.labels)


def _images(store: Store, manifest: Manifest, domain: str, count: int) -> list[NDArray[np.uint8]]:
    verify = _verify(store, manifest, domain)
    return [
        decode_prepared(store.blobs.get(example.blob), manifest.preprocessing)
        for example in verify.examples[:count]
    ]


def answered(store: Store, manifest: Manifest, files: Sequence[File]) -> list[dict[str, Any]]:
    """Every file beside the first, on both domains: agreement, accuracies, the guard's word."""
    sets = [_verify(store, manifest, domain) for domain in DOMAINS]
    found = [
        predict(
            [file.classifier for file in files],
            verify,
            read=store.blobs.get,
            preprocessing=manifest.preprocessing,
            step=lambda: None,
        )
        for verify in sets
    ]
    image = _images(store, manifest, DOMAINS[1], 1)[0]
    calm = milliseconds([file.classifier for file in files], image)
    rows = []
    for place, file in enumerate(files):
        pairs = [
            Paired(
                name=verify.name,
                labels=verify.labels,
                incumbent=answers[0],
                candidate=answers[place],
            )
            for verify, answers in zip(sets, found, strict=True)
        ]
        facts = [
            FileFacts(bytes=len(files[at].content), milliseconds=calm[at]) for at in (0, place)
        ]
        verdict = judge(
            GuardPolicy(),
            Evidence(
                source=pairs[0],
                target=None,
                earlier=(pairs[1],),
                looks=0,
                labels=manifest.labels,
                incumbent_file=facts[0],
                candidate_file=facts[1],
            ),
        )
        rows.append(
            {
                "file": file.name,
                "accuracy": [float(one.after.mean()) for one in pairs],
                "agreement": [
                    float((one.incumbent.argmax(1) == one.candidate.argmax(1)).mean())
                    for one in pairs
                ],
                "images": [len(one) for one in pairs],
                "verdict": verdict.decision.value if place else "",
                "summary": verdict.summary if place else "",
                "bytes": len(file.content),
                "milliseconds": calm[place],
            }
        )
    return rows


def rate(classifier: Classifier, images: Sequence[NDArray[np.uint8]]) -> float:
    """Images a second, as a server's threads make them."""

    def work() -> None:
        for place in range(ROUND_IMAGES):
            classifier.run(images[place % len(images)][None])

    workers = [threading.Thread(target=work) for _ in range(THREADS)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return THREADS * ROUND_IMAGES / (time.perf_counter() - began)


def timed(
    files: Sequence[File], images: Sequence[NDArray[np.uint8]], rounds: int
) -> list[list[float]]:
    """Every file's rate in every round, in turn."""
    rates: list[list[float]] = [[] for _ in files]
    for number in range(rounds):
        order = list(zip(rates, files, strict=True))
        for mine, file in order if number % 2 else reversed(order):
            mine.append(rate(file.classifier, images))
    return rates


# ── the whole ────────────────────────────────────────────────────────────────


def walk(home: Path, rounds: int) -> dict[str, Any]:
    """Measure the version in production in *home*."""
    settings = ServeSettings(home=home)
    store = open_store(settings.store_url(), settings.blob_root())
    try:
        alias = store.registry.get_alias(AliasName(standing.MODEL, "production"))
        version = store.registry.get_version(alias.version)
        files = opened(store, version.manifest)
        rows = answered(store, version.manifest, files)
        rates = timed(files, _images(store, version.manifest, DOMAINS[1], 32), rounds)
        for row, mine in zip(rows, rates, strict=True):
            ratios = np.array(mine) / np.array(rates[0])
            row["rate"] = float(np.median(mine))
            row["ratio"] = [float(value) for value in np.percentile(ratios, [25, 50, 75])]
        summary = store.jobs.get(version.job).summary
    finally:
        store.close()
    return {
        "version": str(version.name),
        "cores": THREADS,
        "onnxruntime": onnxruntime.__version__,
        "variants": summary.get("variants", []),
        "rows": rows,
    }


def show(found: dict[str, Any]) -> None:
    """Print the table, and what the job said."""
    images = " and ".join(
        f"{n} of {domain}" for n, domain in zip(found["rows"][0]["images"], DOMAINS, strict=True)
    )
    print(f"\n{found['version']}, onnxruntime {found['onnxruntime']}, {found['cores']} cores; "
          f"verify images: {images}\n")  # fmt: skip
    print(f"{'file':10}{'agreement':>16}{'accuracy':>16}  {'verdict':14}{'MB':>6}{'ms':>7}"
          f"{'images/s':>10}{'times fp32 (quartiles)':>26}")  # fmt: skip
    for row in found["rows"]:
        both = ["  ".join(f"{one:.1%}" for one in row[key]) for key in ("agreement", "accuracy")]
        low, middle, high = row["ratio"]
        size, ms, pace = row["bytes"] / 1e6, row["milliseconds"], row["rate"]
        times = f"{middle:.2f} ({low:.2f}–{high:.2f})"
        print(f"{row['file']:10}{both[0]:>16}{both[1]:>16}  {row['verdict']:14}"
              f"{size:6.1f}{ms:7.1f}{pace:10.1f}{times:>26}")  # fmt: skip
    print()
    for told in found["variants"]:
        print(f"the job: {told['told']}")
    for row in found["rows"][1:]:
        print(f"{row['file']}: {row['summary']}")


def main() -> None:
    """Make what is not there, measure once, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    photos = Path(os.environ.get("ACCLIMATE_TEST_PHOTOS", PHOTOS))
    parser.add_argument("--photos", type=Path, default=photos)
    parser.add_argument("--home", type=Path, help="keep the versions in this folder")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--make", action="store_true", help="only make the versions")
    parser.add_argument("--quick", action="store_true", help="images of 64 pixels, 2 rounds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="variants-") as folder:
        home = given.home or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        if not (home / DONE).exists():
            size, epochs = (64, 3) if given.quick else (standing.SIZE, 15)
            make(home, given.photos, size=size, epochs=epochs)
            (home / DONE).touch()
        if given.make:
            return
        found = walk(home, 2 if given.quick else given.rounds)
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
