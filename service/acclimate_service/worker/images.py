"""The store's examples, as training and judging take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.examples import Example, Role
from acclimate_service.imaging import Picture, opened
from acclimate_service.worker.evaluate import VerifySet


@dataclass(frozen=True, kw_only=True)
class StoredImages:
    """Examples whose files are read from the blob store one at a time.

    ``labels`` are indices into the label space that the job trains.
    """

    examples: tuple[Example, ...]
    labels: Sequence[int]
    open_blob: Callable[[str], bytes]

    @property
    def contents(self) -> Sequence[str]:
        """The content digest of each image."""
        return [example.content for example in self.examples]

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, index: int) -> Picture:
        """One image, whose pixels are decoded when a view of it is made."""
        return opened(self.open_blob(self.examples[index].blob))


def stored_images(
    examples: Iterable[Example], space: Sequence[str], open_blob: Callable[[str], bytes]
) -> StoredImages:
    """The examples as images, labelled by their place in the label *space*.

    The same content in two domains is one image: the first one counts.

    Raises:
        InvalidSpec: a label is not in the space.
    """
    unique = tuple({e.content: e for e in reversed(list(examples))}.values())[::-1]
    return StoredImages(examples=unique, labels=_indices(unique, space), open_blob=open_blob)


def verify_set(name: str, examples: Sequence[Example], space: Sequence[str]) -> VerifySet:
    """One domain's verify images, labelled by their place in the label *space*."""
    return VerifySet(
        name=name,
        examples=tuple(examples),
        labels=np.asarray(_indices(examples, space), dtype=np.int64),
    )


def reserve(examples: Iterable[Example], per_class: int) -> list[Example]:
    """At most *per_class* images of each label to show again, against forgetting.

    Images that were given for replay come before those that the model was trained
    on; among equals the content digest decides, so every job takes the same ones.
    """
    ranked = sorted(examples, key=lambda e: (e.role is not Role.REPLAY, e.content))
    taken: dict[str, int] = {}
    chosen = []
    for example in ranked:
        if taken.get(example.label, 0) < per_class:
            taken[example.label] = taken.get(example.label, 0) + 1
            chosen.append(example)
    return chosen


def _indices(examples: Sequence[Example], space: Sequence[str]) -> list[int]:
    places = {label: place for place, label in enumerate(space)}
    unknown = sorted({e.label for e in examples} - places.keys())
    if unknown:
        raise InvalidSpec(
            f"labels {', '.join(unknown[:10])} are not in the model's label space; "
            "ask for extend_labels to grow it"
        )
    return [places[example.label] for example in examples]
