"""What is in memory of versions, and what is to go when one more must fit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.statistics import Tally

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The bytes that a version takes in memory: its own, and a trunk's that others may be on.

    ``trunk`` is the sha256 (hex) of the trunk's file, empty if the version is opened whole.
    """

    own: int
    trunk: str = ""
    trunk_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[T]):
    """What a loader returns: a classifier, and what its owner wants kept beside it."""

    classifier: Classifier
    details: T


@dataclass(frozen=True, kw_only=True)
class ResidentVersion:
    """A version in the pool. It answers requests unless it is ``loading`` or ``leaving``.

    One that is ``loading`` may still wait for room.
    """

    version: str
    loading: bool
    leaving: bool
    aliases: tuple[str, ...]
    references: int


class Resident(Generic[T]):
    """A version in memory. Belongs to the pool's event loop."""

    def __init__(self, version: str, loaded: Loaded[T], tally: Tally, footprint: Footprint) -> None:
        self.version = version
        self.footprint = footprint
        self.loaded = [loaded]  # in a box that can be emptied on another thread
        self.tally = tally
        self.references = 0
        self.leaving = False
        self.asked = time.monotonic()  # when a request, or whoever loaded it, wanted it last
        self.unused = asyncio.Event()
        self.unused.set()

    @property
    def idle(self) -> bool:
        """Whether no request holds it and nobody waits for its end."""
        return not self.references and not self.leaving


def taken(footprints: Iterable[Footprint]) -> int:
    """The bytes that versions take together, each trunk once."""
    every = list(footprints)
    trunks = {one.trunk: one.trunk_bytes for one in every}
    return sum(one.own for one in every) + sum(trunks.values())


def make_room(
    footprint: Footprint,
    *,
    residents: Iterable[Resident[T]],
    loading: Iterable[Footprint],
    kept: Collection[str],
    pointed: Collection[str],
    tried: Collection[str] = (),
    budget: int,
) -> list[Resident[T]] | None:
    """What to unload so that one more version fits into *budget* bytes; None if nothing helps.

    Of *residents*, which are in the order of their last use, the longest unused go first;
    those that are on trial, *tried*, after others, and those that an alias points at, *pointed*,
    after all. What a request holds stays, and so does what is in *kept*. A version larger than
    the budget may be alone in it.
    """
    staying = list(residents)
    free = [one for one in staying if one.idle and one.version not in kept]
    # Stable: by last use within each kind.
    order = sorted(free, key=lambda one: (one.version in pointed, one.version in tried))
    coming = [*loading, footprint]
    gone: list[Resident[T]] = []
    while staying or len(coming) > 1:
        if taken([*(one.footprint for one in staying), *coming]) <= budget:
            break
        if len(gone) == len(order):
            return None
        gone.append(order[len(gone)])
        staying.remove(gone[-1])
    return gone
