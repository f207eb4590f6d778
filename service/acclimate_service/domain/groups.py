"""Classes and slices: whether a candidate that is good on average hurts one part of the images.

Many small groups are asked at once, so by chance alone some will look bad. A
group is shown to be harmed when McNemar's exact p-value, adjusted by Holm over
the groups that could show anything, is within the level. Groups too small for
that are listed, and stop a candidate only when what is seen in them is drastic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pydantic

from acclimate_service.domain.evidence import Ints, Paired
from acclimate_service.domain.statistics import holm, mcnemar
from acclimate_service.domain.verdict import Decision

# What is drastic: half of the group lost on balance with at most one chance in eight (three
# lost, none gained), a quarter with one in sixteen (four lost, none gained), or a group
# that was mostly right and is now wrong throughout.
_DRASTIC = ((0.5, 1 / 8), (0.25, 1 / 16))


@dataclass(frozen=True, kw_only=True)
class Group:
    """The paired outcomes on one class or slice. ``judged``: a loss of it could be shown."""

    name: str
    n: int
    right_before: int
    right_after: int
    lost: int
    gained: int
    p: float
    p_adjusted: float
    judged: bool

    @property
    def drop(self) -> float:
        """The share of the group's images lost on balance."""
        return (self.lost - self.gained) / self.n

    @property
    def drastic(self) -> float | None:
        """The drop from which on a small group is no excuse for this loss, if it is that large."""
        gone = self.right_before >= max(2, self.n / 2) and self.right_after == 0
        for drop, p in _DRASTIC:
            if self.drop >= drop and (gone or self.p <= p):
                return drop
        return None

    def to_json(self) -> dict[str, pydantic.JsonValue]:
        """The group as a row of the report."""
        return {
            "name": self.name,
            "n": self.n,
            "right_before": self.right_before,
            "right_after": self.right_after,
            "lost": self.lost,
            "gained": self.gained,
            "p": self.p,
            "p_adjusted": self.p_adjusted,
            "judged": self.judged,
        }


def classes_of(pairs: Paired, names: tuple[str, ...]) -> dict[str, Ints]:
    """The places of each class's images, by its name, else by its index; none without any."""
    order = np.argsort(pairs.labels, kind="stable")
    found, starts = np.unique(pairs.labels[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(found) else []
    return {
        names[index] if index < len(names) else f"#{index}": places
        for index, places in zip(found.tolist(), parts, strict=True)
    }


def groups(pairs: Paired, parts: Mapping[str, Ints], level: float) -> tuple[Group, ...]:
    """The outcome on each group that has images, with p-values adjusted over the family.

    *parts* are places, not masks: with a tag for every tenth image, masks would be a
    square of the images.

    A group belongs to the family if losing all that the incumbent had right would
    be significant on its own, which the candidate has no say in (after Tarone,
    Biometrics 46 (1990), 515-522).
    """
    before, after = pairs.before, pairs.after
    rows = []
    for name, places in parts.items():
        if not len(places):
            continue
        was, now = before[places], after[places]
        right, lost, gained = int(was.sum()), int((was & ~now).sum()), int((~was & now).sum())
        judged = 0.5**right <= level
        rows.append((name, len(places), right, lost, gained, mcnemar(lost, gained), judged))
    adjusted = iter(holm([row[5] for row in rows if row[6]]))
    return tuple(
        Group(
            name=name,
            n=n,
            right_before=right,
            right_after=right - lost + gained,
            lost=lost,
            gained=gained,
            p=p,
            p_adjusted=next(adjusted) if judged else 1.0,
            judged=judged,
        )
        for name, n, right, lost, gained, p, judged in rows
    )


def weigh(group: Group, *, limit: float, level: float) -> Decision:
    """REJECT for a loss over *limit* that is shown, INCONCLUSIVE for a drastic one that is not."""
    if group.drop <= limit:
        return Decision.ACCEPT
    if group.p_adjusted <= level:
        return Decision.REJECT
    return Decision.ACCEPT if group.drastic is None else Decision.INCONCLUSIVE


def enlarged(group: Group, *, family: int, level: float) -> float:
    """How many times as many images would show this group's loss, at the rates observed."""
    factor = 1.0
    while mcnemar(round(group.lost * factor), round(group.gained * factor)) > level / family:
        factor *= 1.1
    return math.ceil(10 * factor) / 10
