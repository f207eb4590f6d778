"""Labelled images from a CSV file: a row an image, with its path and its label."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from acclimate.resources import Example

COLUMNS = ("image", "label")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a sheet."""

    line: int
    image: Path
    label: str
    id: str
    tags: tuple[str, ...]


def rows_of_sheet(sheet: str | Path) -> tuple[Row, ...]:
    """The rows of a CSV file with the columns ``image``, ``label`` and, if need be, ``tags``.

    Paths are relative to the file's folder; tags stand between blanks.

    Raises:
        ValueError: a column is not there, a row has no label or image, or names an image
            that is no file. The message names the line.
    """
    path = Path(sheet)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        absent = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if absent:
            given = ", ".join(repr(name) for name in reader.fieldnames or ()) or "none"
            raise ValueError(
                f"{path} has no column {' and none '.join(absent)}, but {given}; its first line is "
                "to be image,label or image,label,tags, with commas between"
            )
        found = tuple(
            Row(
                line=reader.line_num,
                image=path.parent / (row["image"] or ""),
                label=(row["label"] or "").strip(),
                id=row["image"] or "",
                tags=tuple((row.get("tags") or "").split()),
            )
            for row in reader
        )
    for row in found:
        if not row.label or not row.id:
            raise ValueError(f"{path}, line {row.line}: an image and its label are needed")
        if not row.image.is_file():
            raise ValueError(f"{path}, line {row.line}: there is no file {row.image}")
    return found


def labels_of_sheet(sheet: str | Path) -> tuple[str, ...]:
    """The labels in a CSV file, sorted.

    Raises:
        ValueError: as `rows_of_sheet`.
    """
    return tuple(sorted({row.label for row in rows_of_sheet(sheet)}))


def examples_from_sheet(
    sheet: str | Path, *, limit_per_class: int | None = None, tags: tuple[str, ...] = ()
) -> Iterator[Example]:
    """The images that a CSV file names, in its order; each is read when it is due.

    Raises:
        ValueError: as `rows_of_sheet`.
    """
    taken: Counter[str] = Counter()
    for row in rows_of_sheet(sheet):
        taken[row.label] += 1
        if limit_per_class is None or taken[row.label] <= limit_per_class:
            yield Example(
                image=row.image.read_bytes(),
                label=row.label,
                id=row.id,
                tags=tuple(dict.fromkeys((*tags, *row.tags))),
            )
