"""Labelled images from a folder whose subfolders are the labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from acclimate.resources import Example

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def labels_of_folder(folder: str | Path) -> tuple[str, ...]:
    """The names of *folder*'s subfolders, sorted: the labels of the images in them.

    Raises:
        NotADirectoryError: *folder* is no folder, or has no subfolders.
    """
    root = Path(folder)
    labels = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and _is_shown(p)))
    if not labels:
        raise NotADirectoryError(f"{root} has no subfolders; expected one for each label")
    return labels


def examples_from_folder(
    folder: str | Path, *, limit_per_class: int | None = None, tags: tuple[str, ...] = ()
) -> Iterator[Example]:
    """The images in *folder*'s subfolders, sorted by path; each is read when it is due.

    An example's label is its subfolder's name, its id the path inside *folder*.
    Hidden files and files with other suffixes than ``SUFFIXES`` are passed over.

    Raises:
        NotADirectoryError: *folder* is no folder, or has no subfolders.
    """
    root = Path(folder)
    for label in labels_of_folder(root):
        paths = sorted(
            path
            for path in (root / label).rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file() and _is_shown(path)
        )
        for path in paths[:limit_per_class]:
            yield Example(
                image=path.read_bytes(),
                label=label,
                id=path.relative_to(root).as_posix(),
                tags=tags,
            )


def _is_shown(path: Path) -> bool:
    return not path.name.startswith(".")
