"""Report documents as a job makes them: real results, drawn at random, no training."""

from __future__ import annotations

import copy
import datetime as dt
import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from acclimate_service.domain.errors import BlobNotFound
from acclimate_service.domain.evidence import Evidence, FileFacts
from acclimate_service.domain.examples import Example, Role, Split
from acclimate_service.domain.guard import GuardPolicy, judge, judge_first
from acclimate_service.domain.job import Job, JobDraft, JobKind, JobSpec, JobState, Lease, Phase
from acclimate_service.domain.model import Architecture, Artifacts, Preprocessing
from acclimate_service.domain.names import (
    BatchName,
    DomainName,
    JobName,
    ModelName,
    VersionName,
)
from acclimate_service.store import Store
from acclimate_service.tracing import Phases
from acclimate_service.training.auto import Outcome
from acclimate_service.training.candidate import Candidate as Trained
from acclimate_service.training.diagnosis import Epoch, Failure, Finding
from acclimate_service.training.interpolate import ALPHAS, Blend, Point
from acclimate_service.training.measure import Change
from acclimate_service.training.trial import Trial
from acclimate_service.worker.document import document
from acclimate_service.worker.evaluate import VerifySet
from acclimate_service.worker.judgement import Compared, Judgement
from acclimate_service.worker.overlap import NearCopy
from acclimate_service.worker.publish import Candidate
from acclimate_service.worker.result import Result
from acclimate_service.worker.story import Story
from acclimate_service.worker.suspects import Part, Screened, Suspect

Document = dict[str, Any]
Floats = npt.NDArray[np.float32]

LABELS = ("backpack", "bike", "calculator", "headphones", "keyboard", "laptop", "monitor", "mug")
BEGAN = dt.datetime(2026, 11, 3, 9, 30, tzinfo=dt.UTC)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a made-up job looked like: images a set, and shares right, lost and gained."""

    labels: tuple[str, ...] = LABELS
    source_images: int = 400
    target_images: int = 240
    source_right: float = 0.92
    target_right: float = 0.62
    source_lost: float = 0.004
    source_gained: float = 0.004
    target_lost: float = 0.02
    target_gained: float = 0.25
    earlier: tuple[str, ...] = ("dslr",)
    spec: JobSpec = field(default_factory=JobSpec)
    looks: int = 1
    seed: int = 0


def adapted(scene: Scene | None = None) -> Document:
    """The document of an adaptation from amazon to webcam; a copy of its own."""
    return copy.deepcopy(drawn(scene or Scene()))


@functools.cache
def drawn(at: Scene) -> Document:
    """The document of an adaptation, drawn once for each scene."""
    source = _compared(at, "domains/amazon", at.source_images, at.source_right, 1)
    target = _compared(at, "domains/webcam", at.target_images, at.target_right, 2)
    known = [_compared(at, f"domains/{name}", 150, 0.9, 3 + i) for i, name in enumerate(at.earlier)]
    files = (
        FileFacts(bytes=13_300_000, milliseconds=8.1),
        FileFacts(bytes=13_300_000, milliseconds=8.3),
    )
    verdict = judge(
        at.spec.guard,
        Evidence(
            source=source.paired(),
            target=target.paired(),
            earlier=tuple(one.paired() for one in known),
            looks=at.looks,
            label_suspects=0.02,
            labels=at.labels,
            incumbent_file=files[0],
            candidate_file=files[1],
        ),
    )
    judged = Judgement(target=target, known=(source, *known), files=files, verdict=verdict)
    names = ["domains/amazon", "domains/webcam", *(f"domains/{name}" for name in at.earlier)]
    result = Result(
        candidate=_candidate(at.labels),
        judged=judged,
        outcome=_outcome(),
        screened=_screened(at, target),
        near_copies=_near_copies(source, target),
        parent=VersionName("shop", "3"),
        digests={name: hashlib.sha256(name.encode()).hexdigest() for name in names},
    )
    return _document(_job(JobKind.ADAPT, at.spec, target="webcam", incumbent="3"), result)


def bootstrapped(*, images: int = 200, right: float = 0.9) -> Document:
    """The document of a first version, learned from amazon."""
    at = Scene(source_images=images, source_right=right, source_lost=0, source_gained=0)
    found = replace(_compared(at, "domains/amazon", images, right, 1), incumbent=None)
    verdict = judge_first(
        GuardPolicy(),
        labels=found.verify.labels,
        probabilities=found.candidate,
        majority=0.14,
        names=LABELS,
    )
    files = (FileFacts(bytes=13_300_000),)
    judged = Judgement(target=found, known=(), files=files, verdict=verdict)
    digests = {"domains/amazon": "a" * 64}
    result = Result(
        candidate=_candidate(LABELS), judged=judged, outcome=_outcome(), digests=digests
    )
    return _document(_job(JobKind.BOOTSTRAP, at.spec), result)


def registered(*, images: int = 0) -> Document:
    """The document of a registration, with or without images to measure it on."""
    files = (FileFacts(bytes=13_300_000),)
    target = None
    if images:
        target = replace(_compared(Scene(), "domains/amazon", images, 0.9, 1), incumbent=None)
    judged = Judgement(target=target, known=(), files=files, verdict=None)
    result = Result(candidate=_candidate(LABELS), judged=judged)
    return _document(_job(JobKind.REGISTER, JobSpec()), result)


# ── pictures ─────────────────────────────────────────────────────────────────


@functools.cache
def picture(blob: str) -> bytes:
    """A small PNG that is its blob's own: two colours from the digest."""
    seed = hashlib.sha256(blob.encode()).digest()
    pixels = np.empty((60, 80, 3), np.uint8)
    pixels[:], pixels[15:45, 20:60] = tuple(seed[:3]), tuple(seed[3:6])
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def gone(blob: str) -> bytes:
    """A store that has lost everything."""
    raise BlobNotFound(blob)


# ── parts ────────────────────────────────────────────────────────────────────


def _compared(at: Scene, domain: str, images: int, right: float, seed: int) -> Compared:
    target = domain == "domains/webcam"
    rng = np.random.default_rng((at.seed, seed))
    labels = np.arange(images, dtype=np.int64) % len(at.labels)
    before = rng.random(images) < right
    lost, gained = (
        (at.target_lost, at.target_gained) if target else (at.source_lost, at.source_gained)
    )
    after = before.copy()
    after[rng.choice(np.flatnonzero(before), round(lost * images), replace=False)] = False
    wrong = np.flatnonzero(~before)
    after[rng.choice(wrong, min(len(wrong), round(gained * images)), replace=False)] = True
    wrongly = (labels + rng.integers(1, max(2, len(at.labels) // 2), images)) % len(at.labels)
    return Compared(
        verify=VerifySet(name=domain, examples=_examples(domain, at, images), labels=labels),
        incumbent=_answers(labels, before, wrongly, len(at.labels), rng),
        candidate=_answers(labels, after, wrongly, len(at.labels), rng),
    )


def _answers(
    labels: npt.NDArray[np.int64],
    right: npt.NDArray[np.bool_],
    wrongly: npt.NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> Floats:
    """Probabilities whose largest is the label's where *right*, else that of *wrongly*."""
    sure = np.where(right, rng.uniform(0.75, 0.99, len(labels)), rng.uniform(0.4, 0.7, len(labels)))
    found = np.repeat(((1 - sure) / (count - 1))[:, None], count, axis=1)
    found[np.arange(len(labels)), np.where(right, labels, wrongly)] = sure
    return found.astype(np.float32)


def _examples(domain: str, at: Scene, images: int) -> tuple[Example, ...]:
    name = DomainName.parse(domain)
    digests = (hashlib.sha256(f"{domain}/{i}".encode()).hexdigest() for i in range(images))
    return tuple(
        Example(
            domain=name,
            batch=BatchName(name.domain, "1"),
            content=digest,
            blob=digest,
            label=at.labels[i % len(at.labels)],
            role=Role.HOLDOUT,
            split=Split.VERIFY,
            id=f"frame_{i:04d}.jpg",
            tags=(f"camera={i // 8 % 3}",),
        )
        for i, digest in enumerate(digests)
    )


def _candidate(labels: Sequence[str]) -> Candidate:
    return Candidate(
        architecture=Architecture(library="timm", name="tf_efficientnet_lite0"),
        preprocessing=Preprocessing(size=224),
        labels=tuple(labels),
        artifacts=Artifacts(
            onnx="1" * 64, weights="2" * 64, onnx_bytes=13_300_000, weights_bytes=13_600_000
        ),
        onnx=b"",
        parity={"images": 16, "max_abs_logit": 3.1e-6, "real": True, "patched": True},
    )


def _screened(at: Scene, target: Compared) -> Screened:
    """Five of 240 train labels suspect, and one to judge by."""
    some = [
        Suspect(
            example=replace(example, split=Split.TRAIN, id=f"shelf_{place:03d}.jpg"),
            suggested=at.labels[(place + 1) % len(at.labels)],
            confidence=0.98 - place / 50,
        )
        for place, example in enumerate(target.verify.examples[:5])
    ]
    verify = [
        Suspect(example=example, suggested=at.labels[0], confidence=0.9)
        for example in target.verify.examples[7:8]
    ]
    return Screened(
        train=Part(images=240, suspects=tuple(some)),
        select=Part(images=100),
        verify=Part(images=len(target.verify), suspects=tuple(verify)),
        agreement=0.942,
        left_out=True,
    )


def _near_copies(source: Compared, target: Compared) -> tuple[NearCopy, ...]:
    pairs = zip(target.verify.examples[10:18], source.verify.examples[10:18], strict=False)
    return tuple(
        NearCopy(example=replace(one, split=Split.TRAIN), of=other) for one, other in pairs
    )


def _outcome() -> Outcome:
    head = Trial(
        candidate=_trained("head", (), 8, fit=0.78, select=0.74),
        blend=_blend(0.8, 0.10, 0.005),
        findings=(
            Finding(
                failure=Failure.UNDERFITTING,
                evidence="train accuracy levelled off at 78.0%",
                response="a strategy that moves more stages may fit them",
                facts={"train_accuracy": 0.78, "select_accuracy": 0.74},
            ),
        ),
    )
    tail = Trial(
        candidate=_trained("tail", ("stage5", "stage6"), 12, fit=0.97, select=0.86),
        blend=_blend(0.6, 0.25, 0.03),
        findings=(
            Finding(
                failure=Failure.FORGETTING,
                evidence="6 of 160 source images lost and 1 won: a drop of 3.1%, +0.080 nats",
                response="blended back towards the incumbent",
                facts={"drop": 0.031, "lost": 6, "won": 1},
            ),
        ),
    )
    reason = "select accuracy 86.0% against head 74.0%"
    return Outcome(state={}, chosen=1, reason=reason, trials=(head, tail))


def _trained(
    name: str, stages: tuple[str, ...], epochs: int, *, fit: float, select: float
) -> Trained:
    def epoch(number: int) -> Epoch:
        way = 1 - 0.6**number
        late = 0.02 * max(0, number - 8)
        return Epoch(
            epoch=number,
            steps=12,
            seconds=1.1,
            train_loss=1.9 - 1.6 * way,
            train_accuracy=fit * way,
            gradient_norm=1.0,
            select_accuracy=0.5 + (select - 0.5) * way - late / 2,
            select_nll=1.4 - 0.9 * way + late,
        )

    history = tuple(epoch(number) for number in range(1, epochs + 1))
    return Trained(
        strategy=name,
        stages=stages,
        boundary=5,
        state={},
        history=history,
        findings=(),
        best_epoch=min(8, epochs),
        micro_batch=32,
        seconds=1.1 * epochs,
    )


def _blend(taken: float, gain: float, drop: float) -> Blend:
    def change(images: int, rise: float) -> Change:
        net = round(rise * images)
        return Change(
            images=images,
            lost=max(0, -net),
            won=max(0, net),
            nll_rise=-rise,
            nll_error=0.01,
            soft_drop=-rise,
            soft_error=0.01,
        )

    curve = tuple(
        Point(
            alpha=alpha,
            target=change(100, gain * alpha**0.6),
            target_accuracy=0.61 + gain * alpha**0.6,
            target_nll=1 - alpha / 2,
            source=change(160, -drop * alpha**3),
        )
        for alpha in ALPHAS
    )
    reason = "select accuracy 86.0% is the highest; 2 of 6 points cost too much of the source"
    return Blend(alpha=taken, reason=reason, curve=curve, state={})


def _job(
    kind: JobKind, spec: JobSpec, *, target: str | None = None, incumbent: str | None = None
) -> Job:
    return Job(
        name=JobName("0198a3f4"),
        draft=JobDraft(
            kind=kind,
            model=ModelName("shop"),
            source=DomainName("amazon"),
            target=None if target is None else DomainName(target),
            incumbent=None if incumbent is None else VersionName("shop", incumbent),
            spec=spec,
        ),
        request_id="",
        state=JobState.RUNNING,
        phase=Phase.JUDGING,
        attempt=1,
        cancel_requested=False,
        version=None,
        failure=None,
        created_at=BEGAN,
        started_at=BEGAN,
        ended_at=None,
    )


def _document(job: Job, result: Result) -> Document:
    lease = Lease(job=job.name, worker="w1", attempt=1)
    # A document asks its story for the attempt, and for nothing of the store.
    story = Story(
        store=cast("Store", None), lease=lease, sign_of_life=lambda: None, spans=Phases(None, {})
    )
    phases = ("PREPARING", "PROBING", "TUNING", "BLENDING", "EXPORTING", "JUDGING")
    seconds = dict(zip(phases, (21.4, 9.8, 74.2, 6.0, 12.5, 18.9), strict=True))
    return document(job, story, result, {"seconds": cast("Any", seconds), "peak_memory_mib": 1840})
