"""What one entrant reached on one split, image by image, and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SHORT = 12  # hex digits that tell images apart here


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Which verify images were answered right, by content: ``right[i]`` is of ``images[i]``."""

    images: tuple[str, ...]
    right: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return sum(self.right) / len(self.right)


@dataclass(frozen=True, kw_only=True)
class Milestone:
    """A candidate on the way: when it stood, and its accuracies on verify images.

    Scored after the method had ended: that is in no count of seconds.
    """

    name: str
    seconds: float
    cpu_seconds: float
    target: float
    source: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """One method on one split; *before* is the source model, whose digest is ``model``.

    ``revision`` is of the code that ran, ``versions`` of the libraries. ``milestones`` are
    AUTO's candidates in order; records from before they were kept have none.
    """

    pair: str
    per_class: int | None
    seed: int
    method: str
    model: str
    revision: str
    target: Answers
    source: Answers
    target_before: Answers
    source_before: Answers
    seconds: float
    cpu_seconds: float
    peak_mib: int
    detail: str
    versions: Mapping[str, str]
    milestones: tuple[Milestone, ...] = ()

    @property
    def key(self) -> tuple[str, int | None, int, str, str]:
        """What a later record of the same replaces."""
        return self.pair, self.per_class, self.seed, self.method, self.model

    @property
    def drop(self) -> float:
        """How far the source's accuracy fell, in [-1, 1]."""
        return self.source_before.accuracy - self.source.accuracy

    def append(self, file: Path) -> None:
        """Add it to a file of JSON lines, at once: a run that is killed loses nothing."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lines:
            lines.write(json.dumps(asdict(self), default=str) + "\n")

    def __str__(self) -> str:
        return (
            f"{self.pair} {self.per_class or 'all'} seed {self.seed} {self.method}: target "
            f"{self.target_before.accuracy:.1%} -> {self.target.accuracy:.1%}, source "
            f"{self.source_before.accuracy:.1%} -> {self.source.accuracy:.1%}, "
            f"{self.seconds:.0f} s, {self.cpu_seconds:.0f} CPU s, {self.peak_mib} MiB "
            f"({self.detail})"
        )


def read_records(file: Path) -> dict[tuple[str, int | None, int, str, str], Record]:
    """The last record of each key; none if the file is not there."""
    records: dict[tuple[str, int | None, int, str, str], Record] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        found = json.loads(line)
        for name in ("target", "source", "target_before", "source_before"):
            found[name] = Answers(**{key: tuple(some) for key, some in found[name].items()})
        found["milestones"] = tuple(Milestone(**one) for one in found.get("milestones", ()))
        record = Record(**found)
        records[record.key] = record
    return records


def groups(records: Sequence[Record]) -> dict[tuple[str, int | None], dict[str, list[Record]]]:
    """By pair and size, then by method; seeds in order."""
    found: dict[tuple[str, int | None], dict[str, list[Record]]] = {}
    for r in sorted(records, key=lambda r: r.seed):
        found.setdefault((r.pair, r.per_class), {}).setdefault(r.method, []).append(r)
    return found
