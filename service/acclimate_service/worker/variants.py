"""Variants of an accepted version: made of its file, judged beside it, kept if accepted.

A variant answers for its version, so it is weighed as a candidate is: by the job's own
guard, image by image beside the fp32 file, on every domain that the version knows. No
version descends from a variant, so each kind of them has the guard's level to itself,
at each target domain: its own looks count, and cost the versions nothing. One that is
refused, or cannot be made, costs the job nothing; the story and the report say why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pydantic
import torch

from acclimate_service.domain.errors import (
    Overloaded,
    ProviderUnavailable,
    VariantUnsuitable,
    VersionUnloadable,
)
from acclimate_service.domain.evidence import Evidence, FileFacts
from acclimate_service.domain.guard import judge
from acclimate_service.domain.job import EventKind, Job, Phase
from acclimate_service.domain.model import Precision, Reduced, Variant
from acclimate_service.domain.verdict import Decision, Verdict
from acclimate_service.imaging import decode_prepared, prepare
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution
from acclimate_service.training.dataset import Stock
from acclimate_service.training.fp16 import fp16
from acclimate_service.training.int8 import calibrate
from acclimate_service.worker.evaluate import predict
from acclimate_service.worker.judgement import Compared, Judgement
from acclimate_service.worker.publish import Candidate
from acclimate_service.worker.story import Story
from acclimate_service.worker.timing import ALONE, milliseconds

CALIBRATION_IMAGES = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class TriedVariant:
    """A variant that was asked for, and what became of it.

    Without a ``verdict`` it could not be made or run here, and ``problem`` says why.
    ``kept`` is what the version's manifest holds of it: None unless it was accepted.
    """

    precision: Reduced
    problem: str = ""
    verdict: Verdict | None = None
    agreement: float | None = None  # share of `images` with fp32's top label
    images: int = 0
    fp32: FileFacts | None = None
    file: FileFacts | None = None
    kept: Variant | None = None

    @property
    def told(self) -> str:
        """What became of it, in a sentence."""
        if self.verdict is None or self.file is None or self.fp32 is None:
            return f"no {self.precision} variant: {self.problem}"
        if self.kept is None:
            return f"{self.precision} variant refused, fp32 serves: {self.verdict.summary}"
        told = f"{self.precision} variant accepted: the same label as fp32 on {self.agreement:.1%} "
        told += f"of {self.images} verify images, {self.file.bytes / 1e6:.1f} MB instead of "
        told += f"{self.fp32.bytes / 1e6:.1f}"
        if self.file.milliseconds and self.fp32.milliseconds:
            told += f", {self.file.milliseconds:.1f} ms instead of {self.fp32.milliseconds:.1f}"
        return told

    def to_json(self) -> dict[str, pydantic.JsonValue]:
        """For the report's document."""
        return {
            **self.summary(),
            "problem": self.problem,
            "images": self.images,
            "sha256": None if self.kept is None else self.kept.onnx,
            "cost": [
                {"bytes": f.bytes, "milliseconds": f.milliseconds}
                for f in (self.fp32, self.file)
                if f is not None
            ],
            "verdict": None if self.verdict is None else self.verdict.to_json(),
        }

    def summary(self) -> dict[str, pydantic.JsonValue]:
        """For a job's summary; a ``decision`` of None means that the guard was not asked."""
        return {
            "variant": self.precision,
            "decision": None if self.verdict is None else self.verdict.decision.value,
            "agreement": self.agreement,
            "told": self.told,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What a variant is made of and judged by: an accepted candidate and its answers."""

    story: Story
    job: Job
    candidate: Candidate
    stock: Stock
    judged: Judgement
    device: torch.device
    threads: int

    def make(self, precision: Reduced) -> tuple[bytes, Execution]:
        """The variant's file, and how it is run here: as where it would be served.

        Raises:
            VariantUnsuitable: it cannot be made of this graph, or not be judged here.
        """
        onnx = self.candidate.onnx
        if precision == "int8":
            calibrated = calibrate(onnx, self._calibration_images(), step=self.story.step)
            return calibrated.int8(), Execution.for_latency(self.threads)
        if self.device.type != "cuda":
            raise VariantUnsuitable(
                "fp16 is judged on the kind of device that serves it, and this worker has no GPU"
            )
        return fp16(onnx), Execution.for_gpu(device=self.device.index or 0)

    def open(
        self, content: bytes, execution: Execution, precision: Precision = "fp32"
    ) -> Classifier:
        """A warm session of a file that answers for the candidate.

        Raises:
            ProviderUnavailable: onnxruntime does not have the device.
            VersionUnloadable: it is no model, or its answers are none.
        """
        classifier = Classifier.open(
            content,
            digest=hashlib.sha256(content).hexdigest(),
            labels=len(self.candidate.labels),
            size=self.candidate.preprocessing.size,
            execution=execution,
            precision=precision,
        )
        classifier.warm()
        return classifier

    def weigh(self, precision: Reduced, content: bytes, classifier: Classifier) -> TriedVariant:
        """Ask the guard about a variant beside fp32, and keep it if that accepts."""
        compared = self._compare(classifier)
        fp32, file = self._costs(content, classifier, compared)
        verdict = self._verdict(precision, compared, fp32, file)
        agreement = _agreement(compared)
        kept = None
        if verdict.decision is Decision.ACCEPT:
            blobs = self.story.store.blobs
            kept = Variant(
                onnx=self.story.patiently(lambda: blobs.put(content)),
                onnx_bytes=len(content),
                agreement=agreement,
                milliseconds=file.milliseconds,
                fp32_milliseconds=fp32.milliseconds,
                verdict=verdict.summary,
            )
        return TriedVariant(
            precision=precision,
            verdict=verdict,
            agreement=agreement,
            images=sum(len(one.verify) for one in compared),
            fp32=fp32,
            file=file,
            kept=kept,
        )

    def _calibration_images(self) -> npt.NDArray[np.uint8]:
        """Training images as the network takes them, of the target and of what is replayed."""
        preprocessing = self.candidate.preprocessing
        sources = [one for one in (self.stock.train, self.stock.replay) if one is not None]
        taken = []
        for source in sources:
            share = min(len(source), -(-CALIBRATION_IMAGES // len(sources)))
            places = np.linspace(0, len(source) - 1, share).astype(int)
            taken += [prepare(source.read(int(place)), preprocessing) for place in places]
        return np.stack(taken)

    def _compare(self, classifier: Classifier) -> list[Compared]:
        """The variant's answers beside those that the fp32 file was judged by."""
        assert self.judged.target is not None
        compared = []
        for fp32 in (self.judged.target, *self.judged.known):
            (answers,) = predict(
                [classifier],
                fp32.verify,
                read=self.story.store.blobs.get,
                preprocessing=self.candidate.preprocessing,
                step=self.story.step,
            )
            compared.append(replace(fp32, incumbent=fp32.candidate, candidate=answers))
        return compared

    def _costs(
        self, content: bytes, classifier: Classifier, compared: Sequence[Compared]
    ) -> tuple[FileFacts, FileFacts]:
        """Bytes and milliseconds of the fp32 file and of the variant, timed in turn."""
        example = next(example for one in compared for example in one.verify.examples)
        encoded = self.story.store.blobs.get(example.blob)
        on_cpu = classifier.execution.provider == "cpu"
        timed = ALONE if on_cpu else classifier.execution
        before, after = milliseconds(
            [
                self.open(self.candidate.onnx, timed),
                self.open(content, timed, classifier.precision) if on_cpu else classifier,
            ],
            decode_prepared(encoded, self.candidate.preprocessing),
            ratio=self.job.draft.spec.guard.latency_ratio_limit,
            step=self.story.step,
        )
        return (
            FileFacts(bytes=self.candidate.artifacts.onnx_bytes, milliseconds=before),
            FileFacts(bytes=len(content), milliseconds=after),
        )

    def _verdict(
        self, precision: Reduced, compared: Sequence[Compared], fp32: FileFacts, file: FileFacts
    ) -> Verdict:
        draft, jobs = self.job.draft, self.story.store.jobs
        source = next((one for one in compared if one.verify.name == str(draft.source)), None)
        return judge(
            draft.spec.guard,
            Evidence(
                source=None if source is None else source.paired(),
                target=None,
                earlier=tuple(one.paired() for one in compared if one is not source),
                looks=jobs.variant_looks(
                    draft.model, draft.target, precision, before=self.judged.look
                ),
                labels=self.candidate.labels,
                incumbent_file=fp32,
                candidate_file=file,
            ),
        )


def try_variants(bench: Bench, asked: Sequence[Reduced]) -> tuple[TriedVariant, ...]:
    """Make and judge each variant that is *asked* for, if the version itself was accepted."""
    verdict = bench.judged.verdict
    if verdict is None or verdict.decision is not Decision.ACCEPT:
        return ()
    tried = []
    for precision in asked:
        bench.story.enter(Phase.JUDGING, f"making the {precision} variant")
        try:
            content, execution = bench.make(precision)
            classifier = bench.open(content, execution, precision)
        except (Overloaded, ProviderUnavailable, VariantUnsuitable, VersionUnloadable) as error:
            found = TriedVariant(precision=precision, problem=str(error))
        else:
            found = bench.weigh(precision, content, classifier)
        kind = EventKind.WARNING if found.kept is None else EventKind.DECISION
        bench.story.tell(kind, found.told, found.summary())
        tried.append(found)
    return tuple(tried)


def with_variants(candidate: Candidate, tried: Sequence[TriedVariant]) -> Candidate:
    """The candidate, naming the variants that were accepted, and no others."""
    kept = {one.precision: one.kept for one in tried if one.kept is not None}
    artifacts = candidate.artifacts.model_copy(update={"variants": kept})
    return replace(candidate, artifacts=artifacts)


def _agreement(compared: Sequence[Compared]) -> float:
    """The share of verify images to which both files give the same top label."""
    same = [
        one.candidate.argmax(axis=1) == one.incumbent.argmax(axis=1)
        for one in compared
        if one.incumbent is not None
    ]
    return float(np.concatenate(same).mean())
