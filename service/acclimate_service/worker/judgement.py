"""The exported files beside each other on verify images, and what the guard says of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pydantic

from acclimate_service.domain.evidence import Evidence, FileFacts, Paired, Since
from acclimate_service.domain.guard import judge, judge_first
from acclimate_service.domain.job import EventKind, Job, Phase
from acclimate_service.domain.model import Manifest, ModelVersion
from acclimate_service.domain.names import DomainName, VersionName
from acclimate_service.domain.verdict import Verdict
from acclimate_service.imaging import decode_prepared
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution
from acclimate_service.store import Look
from acclimate_service.worker.evaluate import (
    Floats,
    VerifySet,
    predict,
)
from acclimate_service.worker.publish import Candidate
from acclimate_service.worker.stock import JobImages
from acclimate_service.worker.story import Story
from acclimate_service.worker.suspects import Screened
from acclimate_service.worker.timing import ALONE, equalled, milliseconds, same_work


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """What incumbent and candidate answered on one domain's verify images.

    Probabilities, float32 [N, C]; a first version has no incumbent.
    """

    verify: VerifySet
    incumbent: Floats | None
    candidate: Floats

    @property
    def before(self) -> float | None:
        """The incumbent's top-1 accuracy in [0, 1]; None without images or incumbent."""
        return None if self.incumbent is None else _accuracy(self.incumbent, self.verify)

    @property
    def after(self) -> float | None:
        """The candidate's top-1 accuracy in [0, 1]; None without images."""
        return _accuracy(self.candidate, self.verify)

    def paired(self) -> Paired:
        """For the guard."""
        assert self.incumbent is not None
        return Paired(
            name=self.verify.name,
            labels=self.verify.labels,
            incumbent=self.incumbent,
            candidate=self.candidate,
            slices=self.verify.slices(),
        )

    def summary(self) -> dict[str, pydantic.JsonValue]:
        """For a job's summary."""
        return {
            "domain": self.verify.name,
            "images": len(self.verify),
            "before": self.before,
            "after": self.after,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """Everything that was measured on the exported files. No verdict: nobody asked for one.

    ``look`` counts the candidates for the same target that were judged before.
    """

    target: Compared | None
    known: tuple[Compared, ...]
    files: tuple[FileFacts, ...]  # the incumbent's if there is one, then the candidate's
    verdict: Verdict | None
    look: int = 0


def judge_adapted(
    story: Story,
    job: Job,
    incumbent: ModelVersion,
    candidate: Candidate,
    images: JobImages,
    *,
    standards: Mapping[DomainName, VersionName],
    screened: Screened,
    threads: int,
) -> Judgement:
    """Run both files on the same verify images and ask the guard.

    ``standards`` are the versions by which it shows what was lost of each known domain
    since: their files are run on that domain's images too.
    """
    story.enter(Phase.JUDGING)
    old = incumbent.manifest
    onnx = story.store.blobs.get(old.artifacts.onnx)

    def both(execution: Execution) -> list[Classifier]:
        return [_open(onnx, old, execution), _open(candidate.onnx, candidate, execution)]

    others = {str(domain): v for domain, v in standards.items() if v != incumbent.name}
    beside = [old.artifacts.onnx, candidate.artifacts.onnx, *map(str, others.values())]
    look = _look(story, job, beside, (images.target, *images.known))
    classifiers = both(Execution.for_latency(threads))
    target, *known = _compare(story, classifiers, candidate, images)
    times = _milliseconds(
        story, both(ALONE), candidate, images, ratio=job.draft.spec.guard.latency_ratio_limit
    )
    if same_work(onnx, candidate.onnx):
        times = equalled(times)
    before, after = (
        FileFacts(bytes=a.onnx_bytes, milliseconds=ms)
        for a, ms in zip((old.artifacts, candidate.artifacts), times, strict=True)
    )
    draft = job.draft
    source = next((c for c in known if c.verify.name == str(draft.source)), None)
    if draft.source == draft.target:
        source = target
    assert draft.target is not None
    evidence = Evidence(
        source=None if source is None else source.paired(),
        target=target.paired(),
        earlier=tuple(c.paired() for c in known if c is not source),
        since=_since(
            story,
            [c for c in (source, *known) if c is not None],
            others,
            execution=Execution.for_latency(threads),
        ),
        looks=look.before,
        label_suspects=screened.train.share,
        held_out_suspects=screened.verify.share,
        labels=candidate.labels,
        incumbent_file=before,
        candidate_file=after,
    )
    verdict = _told(story, judge(draft.spec.guard, evidence), look)
    return Judgement(
        target=target,
        known=tuple(known),
        files=(before, after),
        verdict=verdict,
        look=look.before,
    )


def judge_bootstrapped(
    story: Story,
    job: Job,
    candidate: Candidate,
    images: JobImages,
    *,
    screened: Screened,
    threads: int,
) -> Judgement:
    """Run a first version's file on the source's verify images and ask the guard."""
    story.enter(Phase.JUDGING)
    look = _look(story, job, [candidate.artifacts.onnx], [images.target])
    measured = measure(story, candidate, images.target, threads=threads)
    assert measured.target is not None
    train = images.stock.train.labels
    verdict = judge_first(
        job.draft.spec.guard,
        labels=images.target.labels,
        probabilities=measured.target.candidate,
        majority=max(np.bincount(train)) / len(train),
        names=candidate.labels,
        label_suspects=screened.train.share,
        held_out_suspects=screened.verify.share,
    )
    return replace(measured, verdict=_told(story, verdict, look), look=look.before)


def measure(
    story: Story, candidate: Candidate, verify: VerifySet | None, *, threads: int
) -> Judgement:
    """Run one file on verify images, if there are any, without asking the guard."""
    story.enter(Phase.JUDGING)
    classifier = _open(candidate.onnx, candidate, Execution.for_latency(threads))
    target = None
    if verify is not None:
        read = story.store.blobs.get
        (answers,) = predict(
            [classifier],
            verify,
            read=read,
            preprocessing=candidate.preprocessing,
            step=story.step,
        )
        target = Compared(verify=verify, incumbent=None, candidate=answers)
    files = (FileFacts(bytes=candidate.artifacts.onnx_bytes),)
    return Judgement(target=target, known=(), files=files, verdict=None)


def _look(story: Story, job: Job, beside: Sequence[str], sets: Sequence[VerifySet]) -> Look:
    """The job's look at the verify images of *sets*, by what files *beside* names.

    Who asks what was asked before (the same files, images and limits) gets that answer
    again: it tells nothing new, so it costs nothing.
    """
    policy = job.draft.spec.guard
    shown = [
        [v.name, [(e.content, e.label, e.tags) for e in v.examples], v.labels.tolist()]
        for v in sets
    ]
    limits = policy.model_dump(mode="json", exclude={"base", "reason"})
    asked = json.dumps([list(beside), shown, limits], sort_keys=True)
    digest = hashlib.sha256(asked.encode()).hexdigest()
    look = story.look([DomainName.parse(v.name) for v in sets], digest)
    if look.same_as is not None:
        story.tell(
            EventKind.DECISION,
            f"{look.same_as} made the same file and looked at the same images by the same limits: "
            "they say the same of both, and no look at them is spent",
            {"same_as": str(look.same_as)},
        )
    return look


def _told(story: Story, verdict: Verdict, look: Look) -> Verdict:
    """The verdict as it is kept and told, with the job that it repeats."""
    if look.same_as is not None:
        known = {**verdict.measurements, "same_as": str(look.same_as)}
        verdict = replace(verdict, measurements=known)
    story.tell(EventKind.VERDICT, verdict.summary, verdict.brief())
    return verdict


def _compare(
    story: Story, classifiers: Sequence[Classifier], candidate: Candidate, images: JobImages
) -> list[Compared]:
    """The target first, then every known domain."""
    compared = []
    for verify in (images.target, *images.known):
        before, after = predict(
            classifiers,
            verify,
            read=story.store.blobs.get,
            preprocessing=candidate.preprocessing,
            step=story.step,
        )
        compared.append(Compared(verify=verify, incumbent=before, candidate=after))
    return compared


def _since(
    story: Story,
    sets: Sequence[Compared],
    standards: Mapping[str, VersionName],
    *,
    execution: Execution,
) -> tuple[Since, ...]:
    """The candidate beside the older versions that are the standard of some *sets*."""
    found, read = [], story.store.blobs.get
    named = {compared.verify.name: compared for compared in sets}
    for version in dict.fromkeys(v for name, v in standards.items() if name in named):
        old = story.store.registry.get_version(version).manifest
        classifier = _open(read(old.artifacts.onnx), old, execution)
        for name, compared in named.items():
            if standards.get(name) != version:
                continue
            (answers,) = predict(
                [classifier],
                compared.verify,
                read=read,
                preprocessing=old.preprocessing,
                step=story.step,
            )
            pairs = replace(compared, incumbent=answers).paired()
            found.append(Since(version=str(version), pairs=pairs))
    return tuple(found)


def _milliseconds(
    story: Story,
    classifiers: Sequence[Classifier],
    candidate: Candidate,
    images: JobImages,
    *,
    ratio: float,
) -> Sequence[float | None]:
    """The time for one image through each file; None where there is no image to time."""
    examples = [e for v in (images.target, *images.known) for e in v.examples]
    if not examples:
        return [None for _ in classifiers]
    image = decode_prepared(story.store.blobs.get(examples[0].blob), candidate.preprocessing)
    return milliseconds(classifiers, image, ratio=ratio, step=story.step)


def _open(onnx: bytes, of: Manifest | Candidate, execution: Execution) -> Classifier:
    return Classifier.open(
        onnx,
        digest=of.artifacts.onnx,
        labels=len(of.labels),
        size=of.preprocessing.size,
        execution=execution,
    )


def _accuracy(probabilities: Floats, verify: VerifySet) -> float | None:
    if not len(verify):
        return None
    return float((probabilities.argmax(axis=1) == verify.labels).mean())
