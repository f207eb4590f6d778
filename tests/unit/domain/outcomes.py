"""Paired outcomes made to order: so many right before, lost and gained, of so many."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from acclimate_service.domain.evidence import Bools, Floats, Ints, Paired


def answers(right: Bools, labels: Ints, classes: int, confidence: float = 0.9) -> Floats:
    """[N, classes] probabilities: *confidence* on the label, or on the class after it."""
    n = len(labels)
    rows = np.full((n, classes), (1 - confidence) / (classes - 1), dtype=np.float32)
    rows[np.arange(n), np.where(right, labels, (labels + 1) % classes)] = confidence
    return rows


def paired(
    n: int,
    lost: int,
    gained: int,
    *,
    before: float = 0.95,
    classes: int = 10,
    name: str = "domains/amazon",
    confidence: float = 0.9,
    slices: Mapping[str, Ints] | None = None,
) -> Paired:
    """*n* images, spread over classes; which are lost or gained is shuffled by a fixed seed."""
    labels = np.arange(n) % classes
    order = np.random.default_rng(n).permutation(n)
    right = round(before * n)
    was = np.zeros(n, dtype=np.bool_)
    was[order[:right]] = True
    now = was.copy()
    now[order[:lost]] = False
    now[order[right : right + gained]] = True
    return Paired(
        name=name,
        labels=labels,
        incumbent=answers(was, labels, classes),
        candidate=answers(now, labels, classes, confidence),
        slices=slices or {},
    )


def by_class(outcomes: list[tuple[int, int, int, int]], *, name: str = "domains/amazon") -> Paired:
    """One class for each (n, right before, lost, gained)."""
    labels = np.concatenate([np.full(row[0], index) for index, row in enumerate(outcomes)])
    was, now = [], []
    for n, right, lost, gained in outcomes:
        index = np.arange(n)
        was.append(index < right)
        now.append((index >= lost) & (index < right + gained))
    classes = len(outcomes)
    return Paired(
        name=name,
        labels=labels,
        incumbent=answers(np.concatenate(was), labels, classes),
        candidate=answers(np.concatenate(now), labels, classes),
    )
