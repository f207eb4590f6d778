"""Labelled images from a folder whose subfolders are the labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from acclimate.resources import Example

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"})
# What data sets call their parts: subfolders of these names hold labels, and are none.
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_ARCHIVER = "__MACOSX"  # what an archiver of another system left beside the images


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    """What an upload of a folder would not take, though it may have been meant to."""

    other_files: tuple[Path, ...]  # in a label's folder, by their suffix no JPEG, PNG or WebP
    outside: tuple[Path, ...]  # images beside the labels' folders
    empty_labels: tuple[str, ...]  # without one image


def labels_of_folder(folder: str | Path) -> tuple[str, ...]:
    """The names of *folder*'s subfolders, sorted: the labels of the images in them.

    Raises:
        NotADirectoryError: *folder* is no folder, has no subfolders, or they are the
            parts of a data set (``train``, ``test``), each with labels of its own.
    """
    root = Path(folder)
    labels = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and _is_shown(p, root)))
    if not labels:
        raise NotADirectoryError(f"{root} has no subfolders; expected one for each label")
    if len(labels) > 1 and SPLITS.issuperset(label.lower() for label in labels):
        learned = next((p for p in labels if p.lower().startswith("train")), labels[0])
        raise NotADirectoryError(
            f"{root} holds {', '.join(labels)}, which are parts of a data set, not labels; upload "
            f"each by itself: {root / learned} with the role train, what judges with holdout"
        )
    return labels


def examples_from_folder(
    folder: str | Path, *, limit_per_class: int | None = None, tags: tuple[str, ...] = ()
) -> Iterator[Example]:
    """The images in *folder*'s subfolders, sorted by path; each is read when it is due.

    An example's label is its subfolder's name, its id the path inside *folder*.
    Hidden files and files with other suffixes than ``SUFFIXES`` are passed over;
    `leftovers` tells them.

    Raises:
        NotADirectoryError: as `labels_of_folder`.
    """
    root = Path(folder)
    for label in labels_of_folder(root):
        for path in images_below(root / label)[:limit_per_class]:
            yield Example(
                image=path.read_bytes(),
                label=label,
                id=path.relative_to(root).as_posix(),
                tags=tags,
            )


def leftovers(folder: str | Path) -> Leftovers:
    """What `examples_from_folder` passes over, hidden files aside.

    Raises:
        NotADirectoryError: as `labels_of_folder`.
    """
    root = Path(folder)
    labels = labels_of_folder(root)
    return Leftovers(
        other_files=tuple(
            path
            for label in labels
            for path in sorted((root / label).rglob("*"))
            if path.is_file() and _is_shown(path, root) and not _is_image(path)
        ),
        outside=tuple(
            path
            for path in sorted(root.iterdir())
            if path.is_file() and _is_shown(path, root) and _is_image(path)
        ),
        empty_labels=tuple(label for label in labels if not images_below(root / label)),
    )


def images_below(folder: Path) -> list[Path]:
    """The images in *folder* and its subfolders, sorted by path; hidden ones are passed over."""
    return sorted(
        path
        for path in folder.rglob("*")
        if _is_image(path) and path.is_file() and _is_shown(path, folder)
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _is_shown(path: Path, root: Path) -> bool:
    return not any(p.startswith(".") or p == _ARCHIVER for p in path.relative_to(root).parts)
