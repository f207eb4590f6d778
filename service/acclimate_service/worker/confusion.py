"""Which labels are taken for which: a grid where it can be read, else the pairs that matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from acclimate_service.worker.told import Cell

GRID_MOST = 16  # labels; a wider grid is not read but searched
PAIRS_MOST = 24


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Images by label (rows) and answer (columns), over the same ``labels`` both ways."""

    labels: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]

    def shade(self, row: int, column: int) -> float:
        """How dark a cell is drawn, in [0, 1]: its share of the row's images."""
        total = sum(self.rows[row])
        return self.rows[row][column] / total if total else 0.0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """So many images of ``label`` were answered with ``answer``."""

    label: int
    answer: int
    before: int
    after: int


def labels_in(*cells: Iterable[Cell]) -> tuple[int, ...]:
    """Every label that occurs, as a label or as an answer, in order."""
    return tuple(sorted({index for some in cells for cell in some for index in cell[:2]}))


def grid(cells: Iterable[Cell], labels: Sequence[int]) -> Grid:
    """The confusion matrix over *labels*."""
    counts = _counts(cells)
    return Grid(
        labels=tuple(labels),
        rows=tuple(tuple(counts[row, column] for column in labels) for row in labels),
    )


def pairs(before: Iterable[Cell], after: Iterable[Cell]) -> tuple[Pair, ...]:
    """The confusions, those that changed most first, then the most frequent ones."""
    old, new = _counts(before), _counts(after)
    wrong = sorted({place for place in (*old, *new) if place[0] != place[1]})
    found = [Pair(label=a, answer=b, before=old[a, b], after=new[a, b]) for a, b in wrong]
    found.sort(key=lambda pair: (-abs(pair.after - pair.before), -pair.after, -pair.before))
    return tuple(found)


def _counts(cells: Iterable[Cell]) -> Counter[tuple[int, int]]:
    return Counter({(label, answer): images for label, answer, images in cells})
