"""What an entrant is handed, and what it hands back, as files: nothing but the standard library.

An entrant runs in a process of its own, perhaps in another environment, where neither
Acclimate nor its dependencies exist. It sees the images to learn from and to choose by,
and never one that it is scored on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

SOURCE_WEIGHTS = "source.safetensors"
ADAPTED_WEIGHTS = "adapted.safetensors"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One labelled image file: its label as an index, its content as a hex sha256 of pixels."""

    path: str
    label: int
    content: str


Pictures = Sequence[Picture]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One adaptation to be done.

    The network is timm's ``architecture`` with ``len(labels)`` outputs; its input is the
    centre ``size`` x ``size`` pixels of the image resized to ``size / crop`` on its shorter
    side, in [0, 1], less ``mean``, by ``std``. ``flip`` says whether a mirrored image is
    still of its label. ``epochs`` and ``batch`` are the same for all entrants, and so is
    ``device``, torch's name of where they train.
    """

    architecture: str
    labels: tuple[str, ...]
    size: int
    crop: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    seed: int
    epochs: int
    batch: int
    threads: int
    device: str
    train: Pictures
    select: Pictures
    replay: Pictures
    source_select: Pictures

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side before the centre is cut out."""
        return round(self.size / self.crop)

    def write(self, folder: Path) -> None:
        """Leave it in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "task.json").write_text(json.dumps(asdict(self)))


def read_task(folder: Path) -> Task:
    """The task that was left in a folder."""
    found = json.loads((folder / "task.json").read_text())
    for field in fields(Task):
        if field.name in ("train", "select", "replay", "source_select"):
            found[field.name] = tuple(Picture(**picture) for picture in found[field.name])
        elif isinstance(found[field.name], list):
            found[field.name] = tuple(found[field.name])
    return Task(**found)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A candidate that an entrant had on its way, and could have been left with.

    The seconds count from where its effort's do; ``weights`` is a file beside the task.
    """

    name: str
    seconds: float
    cpu_seconds: float
    weights: str


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What an entrant spent: wall and processor seconds after its imports, peak memory of all.

    ``detail`` is what it ended with, in its own words; ``versions`` are its libraries'.
    ``finished`` are the candidates on the way there, in order, where it tells of any.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: int
    detail: str
    versions: dict[str, str]
    finished: tuple[Finished, ...] = ()

    def write(self, folder: Path) -> None:
        """Leave it beside the task."""
        (folder / "effort.json").write_text(json.dumps(asdict(self)))


def read_effort(folder: Path) -> Effort:
    """What an entrant left beside its task."""
    found = json.loads((folder / "effort.json").read_text())
    found["finished"] = tuple(Finished(**one) for one in found["finished"])
    return Effort(**found)
