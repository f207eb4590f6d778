"""What the guard is shown: paired outcomes of incumbent and candidate on verify images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from acclimate_service.domain.errors import InvalidSpec

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """What both files answered on one set of verify images, image by image.

    ``labels`` [N] are true classes, ``incumbent`` [N, C0] and ``candidate``
    [N, C1] probabilities; C1 >= C0, for label spaces may be extended at the end.
    An incumbent is simply wrong on an image of a class it does not know.
    ``slices`` maps a tag to the places of the images that carry it, each once.

    Raises:
        InvalidSpec: the arrays do not fit each other.
    """

    name: str
    labels: Ints
    incumbent: Floats
    candidate: Floats
    slices: Mapping[str, Ints] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.labels.ndim != 1 or not np.issubdtype(self.labels.dtype, np.integer):
            raise InvalidSpec(f"{self.name}: labels must be a vector of class indices")
        if self.incumbent.ndim != 2 or self.candidate.ndim != 2:
            raise InvalidSpec(f"{self.name}: probabilities must be matrices [N, classes]")
        if len(self.incumbent) != n or len(self.candidate) != n:
            raise InvalidSpec(
                f"{self.name}: {n} labels, {len(self.incumbent)} answers of the incumbent, "
                f"{len(self.candidate)} of the candidate; they must be paired"
            )
        if self.candidate.shape[1] < max(1, self.incumbent.shape[1]):
            raise InvalidSpec(f"{self.name}: the candidate must know every class of the incumbent")
        if n and not 0 <= self.labels.min() <= self.labels.max() < self.candidate.shape[1]:
            raise InvalidSpec(f"{self.name}: a label is outside the candidate's classes")
        for tag, places in self.slices.items():
            if places.ndim != 1 or not np.issubdtype(places.dtype, np.integer):
                raise InvalidSpec(f"{self.name}: slice {tag!r} must be a vector of places")
            if len(places) and not 0 <= places.min() <= places.max() < n:
                raise InvalidSpec(f"{self.name}: slice {tag!r} has an image that is not there")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def before(self) -> Bools:
        """[N] whether the incumbent's top answer is right."""
        return _top_is(self.incumbent, self.labels)

    @cached_property
    def after(self) -> Bools:
        """[N] whether the candidate's top answer is right."""
        return _top_is(self.candidate, self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Since:
    """A set beside an earlier version: what was lost of it since, over all in between.

    In ``pairs`` that earlier version has the incumbent's place; ``version`` is its name.
    """

    version: str
    pairs: Paired


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What an exported file costs.

    ``milliseconds`` is the time for one image while the machine was calm, both files
    timed in turn; None if nobody measured.
    """

    bytes: int
    milliseconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything an adaptation is judged by.

    Without a ``target`` nothing new was learnt, as in a variant of a version: all that
    counts is what might be lost.

    ``looks`` counts the candidates for the same target that were judged before, each on
    all of the sets. ``label_suspects`` and ``held_out_suspects`` are the shares
    of the target's train labels, and of its verify labels, that were screened as
    suspect; ``earlier`` holds every domain accepted before; ``since`` those sets, the
    source's too, whose standard is an older version than the incumbent; ``labels`` are
    the candidate's class names, for messages.
    """

    source: Paired | None
    target: Paired | None
    earlier: tuple[Paired, ...] = ()
    since: tuple[Since, ...] = ()
    looks: int = 0
    label_suspects: float = 0.0
    held_out_suspects: float = 0.0
    labels: tuple[str, ...] = ()
    incumbent_file: FileFacts | None = None
    candidate_file: FileFacts | None = None

    def __post_init__(self) -> None:
        if self.looks < 0:
            raise InvalidSpec("looks must not be negative")
        if not all(0 <= s <= 1 for s in (self.label_suspects, self.held_out_suspects)):
            raise InvalidSpec("label_suspects and held_out_suspects are shares in [0, 1]")
        if len({pairs.name for pairs in self.earlier}) < len(self.earlier):
            raise InvalidSpec("a domain accepted earlier is given twice")


def _top_is(probabilities: Floats, labels: Ints) -> Bools:
    """[N] whether the largest probability is the label's; of equal ones the first counts."""
    if not len(labels) or not probabilities.shape[1]:
        return np.zeros(len(labels), dtype=np.bool_)
    return np.asarray(probabilities.argmax(axis=1) == labels, dtype=np.bool_)
