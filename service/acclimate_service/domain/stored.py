"""What a newer Acclimate wrote into the store, read as far as this one knows it.

While processes are upgraded one after another, older ones read what newer ones wrote.
What they do with a field that they do not know depends on what it is for: a manifest is
used without it (what must not be left out comes with another ``format``), a job that
asks for it is left to a newer worker, a guard with it is not applied at all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pydantic

T = TypeVar("T", bound=pydantic.BaseModel)


@dataclass(frozen=True, kw_only=True)
class Known(Generic[T]):
    """What is known of something stored, and the fields that are not, by their dotted paths."""

    value: T
    unknown: tuple[str, ...] = ()


def known(kind: type[T], stored: object) -> Known[T]:
    """Read *stored*, the JSON of a *kind* or of what a newer Acclimate made of it.

    Raises:
        pydantic.ValidationError: a field that is known holds what it cannot.
    """
    try:
        return Known(value=kind.model_validate(stored))
    except pydantic.ValidationError as error:
        places = [found for one in error.errors() if (found := _unknown(one["type"], one["loc"]))]
        if not places:
            raise
    left = copy.deepcopy(stored)
    for place in places:
        _leave_out(left, place)
    unknown = sorted({".".join(map(str, place)) for place in places})
    return Known(value=kind.model_validate(left), unknown=tuple(unknown))


def _unknown(what: str, place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Where the field lies that an error says is not known; empty if it says something else."""
    if what == "extra_forbidden":
        return place
    return place[:-1] if place and place[-1] == "[key]" else ()


def _leave_out(stored: Any, place: Sequence[int | str]) -> None:
    *above, last = place
    try:
        for step in above:
            stored = stored[step]
        del stored[last]
    except KeyError:  # what it lies in was left out before
        pass
