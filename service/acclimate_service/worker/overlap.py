"""Images to learn from that show what is held out: left out, and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pydantic

from acclimate_service.domain.examples import Example
from acclimate_service.imaging import decode
from acclimate_service.imaging.likeness import Views, candidates, likeness, same, views

_COMPARED = 16  # held-out images at most, of the nearest hashes, for each image
_REMEMBERED = 1024  # images whose views are kept: 80 KiB each


@dataclass(frozen=True, kw_only=True)
class NearCopy:
    """An image that would have been learned from or chosen by, and what it is a copy of."""

    example: Example
    of: Example

    def to_json(self) -> dict[str, pydantic.JsonValue]:
        """A row of the report."""
        return {
            "id": self.example.id,
            "blob": self.example.blob,
            "domain": str(self.example.domain),
            "split": self.example.split.value,
            "of_id": self.of.id,
            "of_blob": self.of.blob,
            "of_domain": str(self.of.domain),
            "of_split": self.of.split.value,
        }


def near_copies(
    examples: Sequence[Example],
    held: Sequence[Example],
    *,
    read: Callable[[str], bytes],
    step: Callable[[], object],
) -> list[NearCopy]:
    """Those of *examples* that are near-copies of a *held* one, each with the likest.

    *read* opens a blob by digest; *step* is called between images.
    """

    @lru_cache(maxsize=_REMEMBERED)
    def seen(blob: str) -> Views:
        return views(decode(read(blob)))

    # A hash is missing only where an image came in another way than by upload.
    examples, held = ([e for e in some if e.phash] for some in (examples, held))
    found = []
    for place, near, distances in candidates(_hashes(examples), _hashes(held), most=_COMPARED):
        step()
        own = seen(examples[place].blob)
        best, copy = 0.0, None
        for other, distance in zip(near.tolist(), distances.tolist(), strict=True):
            like = likeness(own, seen(held[other].blob))
            if same(distance, like) and like > best:
                best, copy = like, held[other]
        if copy is not None:
            found.append(NearCopy(example=examples[place], of=copy))
    return found


def _hashes(examples: Sequence[Example]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array([int(example.phash, 16) for example in examples], dtype=np.uint64)
