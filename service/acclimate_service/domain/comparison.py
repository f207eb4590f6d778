"""What a check rests on: numbers, each held against the limit that it keeps to or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pydantic

Relation = Literal["≤", "<", "≥", ">"]
Measure = Literal["points", "share", "ratio", "rise", "p", "count"]

_WRITTEN: dict[Measure, Callable[[float, int], str]] = {
    "points": lambda value, digits: f"{100 * value:.{digits}f}",
    "share": lambda value, digits: f"{value:.{digits}%}",
    "ratio": lambda value, digits: f"{value:.{digits + 1}f}",
    "rise": lambda value, digits: f"{value:.{digits + 2}f}",
    "p": lambda value, digits: f"{value:.{digits + 1}g}",
    "count": lambda value, _: f"{value:.0f}",
}
_AFTER: dict[Measure, str] = {"points": " points", "ratio": " times"}
_DIGITS = 6  # at most: what is closer than that is written as equal


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One number of a check beside its limit, as it is: *relation* says what is true of them.

    ``value`` and ``limit`` are fractions, ratios, nats or counts; ``measure`` says which,
    and so how they are written.
    """

    what: str  # "drop", "drop at worst", "p of a loss", …
    value: float
    relation: Relation
    limit: float
    measure: Measure

    @property
    def text(self) -> str:
        """As it is told: "drop at worst 2.6 < 3.0 points".

        With as many digits as tell the two apart: "1.0 > 1.0" would be read as a mistake.
        """
        write = _WRITTEN[self.measure]
        digits = 1
        while (value := write(self.value, digits)) == (limit := write(self.limit, digits)):
            if digits == _DIGITS or self.value == self.limit:
                break
            digits += 1
        signed = f"{value} {self.relation} {limit}".replace("-", "\N{MINUS SIGN}")
        return f"{self.what} {signed}{_AFTER.get(self.measure, '')}"

    def to_json(self) -> dict[str, pydantic.JsonValue]:
        """As JSON values, its text among them."""
        return {
            "what": self.what,
            "value": self.value,
            "relation": self.relation,
            "limit": self.limit,
            "measure": self.measure,
            "text": self.text,
        }


def within(what: str, value: float, limit: float, measure: Measure) -> Comparison:
    """How *value* stands to a *limit* that it may reach."""
    relation: Relation = "≤" if value <= limit else ">"
    return Comparison(what=what, value=value, relation=relation, limit=limit, measure=measure)


def at_least(what: str, value: float, limit: float, measure: Measure) -> Comparison:
    """How *value* stands to a *limit* that it must reach."""
    relation: Relation = "≥" if value >= limit else "<"
    return Comparison(what=what, value=value, relation=relation, limit=limit, measure=measure)
