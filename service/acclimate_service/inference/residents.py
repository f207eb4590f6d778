"""What is in memory of versions, and what is to go when one more must fit."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from acclimate_service.domain.errors import Overloaded
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.statistics import Tally

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a version shares: the digest of its trunk, and how many bytes are its own tail's."""

    trunk: str
    tail_bytes: int


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[T]):
    """What a loader returns: a classifier, and what its owner wants kept beside it."""

    classifier: Classifier
    details: T


@dataclass(frozen=True, kw_only=True)
class ResidentVersion:
    """A version in the pool. It answers requests unless it is ``loading`` or ``leaving``."""

    version: str
    loading: bool
    leaving: bool
    aliases: tuple[str, ...]
    references: int


class Resident(Generic[T]):
    """A version in memory. Belongs to the pool's event loop."""

    def __init__(self, version: str, loaded: Loaded[T], tally: Tally, share: Share | None) -> None:
        self.version = version
        self.share = share
        self.loaded = [loaded]  # in a box that can be emptied on another thread
        self.tally = tally
        self.references = 0
        self.leaving = False
        self.unused = asyncio.Event()
        self.unused.set()

    @property
    def idle(self) -> bool:
        """Whether no request holds it and nobody waits for its end."""
        return not self.references and not self.leaving


def make_room(
    version: str,
    share: Share | None,
    *,
    residents: Iterable[Resident[T]],
    loading: Mapping[str, Share | None],
    kept: Collection[str],
    capacity: int,
    tail_bytes: int,
) -> list[Resident[T]]:
    """What to unload so that *version* fits, the longest unused first.

    There is room for *capacity* networks: whole versions, and trunks with any number of
    tails; and for *tail_bytes* of tails. *residents* are in the order of their last use.
    The versions in *kept* stay, and do not count as tails.

    Raises:
        Overloaded: all that could go is in use.
    """
    order = list(residents)
    gone: list[Resident[T]] = []
    mine = _place(version, share)
    # By place, in the order of the last use; one that is being loaded cannot go.
    places: dict[str, list[Resident[T]]] = {}
    for resident in order:
        key = _place(resident.version, resident.share)
        places[key] = [*places.pop(key, []), resident]
    busy = {_place(name, share) for name, share in loading.items()}
    while mine not in (taken := busy | places.keys()) and len(taken) >= capacity:
        free = [k for k, of in places.items() if k not in busy and _all_free(of, kept)]
        if not free:
            raise Overloaded("the pool of loaded versions", retry_after=1)
        gone += places.pop(free[0])
    if share is None:
        return gone
    others = [one.tail_bytes for one in loading.values() if one]
    tails = [r for r in order if r.share and r.version not in kept and r not in gone]
    used = share.tail_bytes + sum(others) + sum(_tail_bytes(tail) for tail in tails)
    for tail in tails:
        if used > tail_bytes and tail.idle:
            gone.append(tail)
            used -= _tail_bytes(tail)
    # One that is larger than all the room may be alone in it.
    if tail_bytes < used > share.tail_bytes:
        raise Overloaded("the memory for tails", retry_after=1)
    return gone


def _place(version: str, share: Share | None) -> str:
    return version if share is None else share.trunk


def _all_free(residents: Iterable[Resident[T]], kept: Collection[str]) -> bool:
    return all(resident.idle and resident.version not in kept for resident in residents)


def _tail_bytes(resident: Resident[T]) -> int:
    return resident.share.tail_bytes if resident.share else 0
