"""Two domains with the same labels, and how their images are dealt out for each seed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest.shifts import SHIFTS, shifted
from benchmarks.contest.task import Picture, Pictures
from PIL import Image

from acclimate.demo import digits
from acclimate_service import imaging
from acclimate_service.domain.errors import BadImage
from acclimate_service.training.run import numpy_rng

PHOTOS = Path(__file__).resolve().parents[2].parent / "shared/data/office-caltech"
REPLAY_PER_CLASS = 20
DIGITS_PER_CLASS = 170  # the rarest digit of the smaller set has a few more
SHIFTED_SHARE = 0.4  # of a domain's images, that its own shifted target is made of

REAL = ("amazon-webcam", "webcam-amazon")
DIGITS = ("mnist-uci", "uci-mnist")
NAMES = (*REAL, *DIGITS, *SHIFTS)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One domain's images: to learn from, to choose by, and to be scored on."""

    train: list[Picture]
    select: list[Picture]
    verify: list[Picture]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The domain of a source model and the one it is adapted to; no image is in both."""

    name: str
    labels: tuple[str, ...]
    source: Pictures
    target: Pictures
    size: int = 160
    crop: float = 0.875
    flip: bool = True

    def source_parts(self) -> Parts:
        """The same for all seeds, as there is one source model: 60 %, 16 %, 24 % a label."""
        rng = numpy_rng(0, "source")
        parts = Parts(train=[], select=[], verify=[])
        for some in self._by_label(self.source):
            own = [some[i] for i in rng.permutation(len(some))]
            first = round(len(own) * 0.6)
            second = first + round((len(own) - first) * 0.4)
            parts.train.extend(own[:first])
            parts.select.extend(own[first:second])
            parts.verify.extend(own[second:])
        if not parts.train or not parts.verify:
            raise SystemExit(f"{self.name}: {len(self.source)} source images are too few to split")
        return parts

    def target_parts(self, per_class: int | None, seed: int) -> Parts:
        """So many training images a label, never more than half; of the rest 40 % to choose by."""
        rng = numpy_rng(seed, "target", self.name)
        train: list[Picture] = []
        rest: list[Picture] = []
        for some in self._by_label(self.target):
            own = [some[i] for i in rng.permutation(len(some))]
            most = len(own) // 2
            taken = most if per_class is None else min(per_class, most)
            train += own[:taken]
            rest += own[taken:]
        rest = [rest[i] for i in rng.permutation(len(rest))]
        held = int(len(rest) * 0.4)
        if not train or held == len(rest):
            raise SystemExit(f"{self.name}: {len(self.target)} target images are too few to split")
        return Parts(train=train, select=rest[:held], verify=rest[held:])

    def replay(self, seed: int) -> Pictures:
        """The source images that every method may show again."""
        rng = numpy_rng(seed, "replay")
        own = self._by_label(self.source_parts().train)
        return [some[i] for some in own for i in rng.permutation(len(some))[:REPLAY_PER_CLASS]]

    def _by_label(self, pictures: Pictures) -> list[list[Picture]]:
        return [[p for p in pictures if p.label == label] for label in range(len(self.labels))]


def named(name: str, scratch: Path, photos: Path) -> Pair:
    """A pair of ``NAMES``. Made images are written under *scratch*, once."""
    if name in REAL:
        source, target = name.split("-")
        return of_folders(photos / source, photos / target, name=name)
    if name in DIGITS:
        folders = [_digits(one, scratch / one) for one in name.split("-")]
        return of_folders(*folders, name=name, size=64, crop=1.0, flip=False)
    return _shifted_pair(name, photos / "amazon", scratch / name)


def of_folders(
    source: Path, target: Path, *, name: str = "", size: int = 160, crop: float = 0.875,
    flip: bool = True,
) -> Pair:  # fmt: skip
    """Two folders of images, one subfolder a label.

    The label space is the source's. A target label that the source lacks is left out,
    for the model has no answer for it, and so is an image that is in both or comes twice.
    """
    labels = _labels(source)
    strangers = [label for label in _labels(target) if label not in labels]
    if strangers:
        print(f"left out of {target.name}, as {source.name} lacks them: {strangers}",
              file=sys.stderr)  # fmt: skip
    seen: set[str] = set()
    pictures = [_pictures(folder, labels, seen) for folder in (source, target)]
    if len(labels) < 2 or not all(pictures):
        raise SystemExit(f"{source} and {target} have no two labels with images in common")
    return Pair(
        name=name or f"{source.name} → {target.name}",
        labels=labels,
        source=pictures[0],
        target=pictures[1],
        size=size,
        crop=crop,
        flip=flip,
    )


def _labels(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and any(p.iterdir())))


def _pictures(folder: Path, labels: Sequence[str], seen: set[str]) -> Pictures:
    """The readable images of these labels whose content has not been *seen*, which grows."""
    found, refused, repeated = [], 0, 0
    for label, name in enumerate(labels):
        files = sorted(f for f in (folder / name).glob("*") if f.is_file())
        for file in files:
            try:
                content = imaging.content_digest(imaging.decode(file.read_bytes()))
            except BadImage:
                refused += 1
                continue
            if content in seen:
                repeated += 1
                continue
            seen.add(content)
            found.append(Picture(path=str(file), label=label, content=content))
    if refused or repeated:
        print(f"{folder}: {refused} files are no images, {repeated} images were there already",
              file=sys.stderr)  # fmt: skip
    return found


def _digits(name: str, folder: Path) -> Path:
    """One of the demo's digit sets as a folder."""
    if not folder.exists():
        images = digits.SETS[name](train=DIGITS_PER_CLASS * 10, holdout=0).train
        for example in images:
            file = folder.with_suffix(".part") / example.label / str(example.id)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes(example.image))
        folder.with_suffix(".part").replace(folder)
    return folder


def _shifted_pair(name: str, photos: Path, folder: Path) -> Pair:
    """One domain against the part of it that another camera took.

    No picture is on both sides: its plain copy among replayed images would teach what
    its shifted one is scored on.
    """
    labels = _labels(photos)
    own = [
        p
        for p in _pictures(photos, labels, set())
        if (int(hashlib.sha256(p.content.encode()).hexdigest(), 16) % 100 < 100 * SHIFTED_SHARE)
    ]
    for picture in own:
        file = folder / labels[picture.label] / f"{picture.content[:16]}.png"
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = shifted(name, imaging.decode(Path(picture.path).read_bytes()), picture.content)
        Image.fromarray(pixels).save(file.with_suffix(".part"), "PNG", compress_level=1)
        file.with_suffix(".part").replace(file)
    taken = {picture.content for picture in own}
    return Pair(
        name=name,
        labels=labels,
        source=[p for p in _pictures(photos, labels, set()) if p.content not in taken],
        target=_pictures(folder, labels, set()),
    )
