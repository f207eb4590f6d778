"""Labels that nobody believes, found before training: told, listed, and left out if asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pydantic
import torch

from acclimate_service.domain.examples import Example
from acclimate_service.domain.job import EventKind
from acclimate_service.domain.screening import Sample, Screening, Suspicion, screen
from acclimate_service.training.dataset import Indices, Listed, Stock
from acclimate_service.training.trunk import Shown, Trunk
from acclimate_service.worker.images import stored_images
from acclimate_service.worker.stock import JobImages
from acclimate_service.worker.story import Story

SHOWN = 200  # suspects in the report's document, of each split
TOLD = 20  # in the event
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """One image whose label both witnesses contradict."""

    example: Example
    suggested: str
    confidence: float

    def to_json(self) -> dict[str, pydantic.JsonValue]:
        """A row of the report."""
        return {
            "id": self.example.id,
            "blob": self.example.blob,
            "split": self.example.split.value,
            "label": self.example.label,
            "suggested": self.suggested,
            "confidence": round(self.confidence, 4),
        }


@dataclass(frozen=True, kw_only=True)
class Part:
    """One use of images: how many were asked about, and who was accused, the surest first."""

    images: int = 0
    suspects: tuple[Suspect, ...] = ()

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return len(self.suspects) / self.images if self.images else 0.0


@dataclass(frozen=True, kw_only=True)
class Screened:
    """What screening found among the images to learn from, to choose by, and to judge by.

    ``agreement`` as in :class:`~acclimate_service.domain.screening.Screening`.
    """

    train: Part = Part()
    select: Part = Part()
    verify: Part = Part()
    agreement: float | None = None
    left_out: bool = False

    @property
    def suspects(self) -> tuple[Suspect, ...]:
        """All of them."""
        return (*self.train.suspects, *self.select.suspects, *self.verify.suspects)

    def to_json(self) -> dict[str, pydantic.JsonValue]:
        """How many of how many, for reports and summaries."""
        parts = {"train": self.train, "select": self.select, "verify": self.verify}
        return {
            "agreement": self.agreement,
            "left_out": self.left_out,
            **{
                name: {"images": part.images, "suspects": len(part.suspects)}
                for name, part in parts.items()
            },
        }


@dataclass(kw_only=True)
class LabelScreen:
    """Called by the engine once features are at hand; keeps what it found.

    ``known`` is how many of the labels in *space* the network's head has learned: none
    of a first version's.
    """

    story: Story
    images: JobImages
    space: Sequence[str]
    known: int
    leave_out: bool
    found: Screened = field(default_factory=Screened)

    def __call__(self, stock: Stock, trunk: Trunk) -> Stock:
        """The stock to learn from."""
        verify = self.images.target
        held = stored_images(verify.examples, self.space, self.story.store.blobs.get)
        sources = [stock.train, stock.select, Listed(held) if len(held) else None]
        samples = [None if s is None else self._sample(s, trunk) for s in sources]
        train = samples[0]
        assert train is not None
        others = tuple(sample for sample in samples[1:] if sample is not None)
        result = screen(train, others, classes=len(self.space), step=self.story.step)
        self.found = self._told(sources, result)
        self._announce()
        if not self.leave_out:
            return stock
        kept = replace(stock, train=_without(stock.train, result.train))
        if stock.select is not None:
            kept = replace(kept, select=_without(stock.select, result.held_out[0]))
        return kept

    def _sample(self, source: Listed, trunk: Trunk) -> Sample:
        """The images as the network sees them at the end of its trunk."""
        network, end = trunk.network, len(trunk.network.stages)
        shown = Shown.plain(source).chunks(_BATCH)
        features, logits = [], []
        with torch.no_grad():
            for x in trunk.read(end, ([part] for part in shown)):
                features.append(x.half().cpu().numpy())
                logits.append(network.head(x)[:, : self.known].float().cpu().numpy())
                self.story.step()
        return Sample(
            features=np.concatenate(features),
            labels=source.targets,
            logits=np.concatenate(logits) if self.known else None,
        )

    def _told(self, sources: Sequence[Listed | None], result: Screening) -> Screened:
        found = iter([result.train, *result.held_out])
        parts = [
            Part() if source is None else self._part(source, next(found)) for source in sources
        ]
        return Screened(
            train=parts[0],
            select=parts[1],
            verify=parts[2],
            agreement=result.agreement,
            left_out=self.leave_out,
        )

    def _part(self, source: Listed, found: Sequence[Suspicion]) -> Part:
        suspects = tuple(
            Suspect(
                example=self.images.learnt[source.contents[one.index]],
                suggested=self.space[one.suggested],
                confidence=one.confidence,
            )
            for one in sorted(found, key=lambda one: -one.confidence)
        )
        return Part(images=len(source), suspects=suspects)

    def _announce(self) -> None:
        found = self.found
        if found.agreement is None:
            self.story.tell(
                EventKind.DECISION, "too few images to screen their labels", found.to_json()
            )
            return
        parts = {"train": found.train, "select": found.select, "verify": found.verify}
        counts = ", ".join(
            f"{len(part.suspects)} of {part.images} {name}"
            for name, part in parts.items()
            if part.images
        )
        message = f"label suspects: {counts} images"
        if found.suspects:
            used = "left out of training" if found.left_out else "trained on all the same"
            message += f"; {used}, and listed in the report"
        facts = found.to_json()
        facts["suspects"] = [one.to_json() for one in found.suspects[:TOLD]]
        kind = EventKind.WARNING if found.suspects else EventKind.DECISION
        self.story.tell(kind, message, facts)


def _without(source: Listed, found: Sequence[Suspicion]) -> Listed:
    """The source less the accused; all of it if that would leave nothing."""
    accused: Indices = np.array([one.index for one in found], np.int64)
    kept = np.setdiff1d(np.arange(len(source)), accused)
    return source.part(kept) if len(accused) and len(kept) else source
