"""What a scenario found: one row of the table, and whether its promise held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was done, how often, and what it cost.

    ``broken`` counts by name what must not happen; every number in it must be 0.
    ``measured`` are figures without a limit.
    """

    scenario: str
    did: str
    times: int
    broken: Mapping[str, int] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Row) -> Row:
        """The row of both: counts are added; of other figures (seconds, MiB) the larger counts."""
        return replace(
            self,
            times=self.times + other.times,
            broken={
                name: self.broken.get(name, 0) + other.broken.get(name, 0)
                for name in {**self.broken, **other.broken}
            },
            measured={
                name: _together(self.measured.get(name), other.measured.get(name))
                for name in {**self.measured, **other.measured}
            },
        )

    @property
    def held(self) -> bool:
        """Whether nothing happened that must not."""
        return not any(self.broken.values())


class Tally(Counter[str]):
    """Counts by name what must not happen; a name is in it from the start, at 0."""

    def __init__(self, *names: str) -> None:
        super().__init__(dict.fromkeys(names, 0))

    def note(self, what: str, *, wrong: bool) -> None:
        """Count one *what*, if it went wrong."""
        self[what] += int(wrong)


def _together(one: float | None, other: float | None) -> float:
    if one is None or other is None:
        return one or other or 0
    return one + other if isinstance(one, int) and isinstance(other, int) else max(one, other)


def added(rows: Iterable[Row]) -> list[Row]:
    """One row a scenario."""
    found: dict[str, Row] = {}
    for row in rows:
        found[row.scenario] = found[row.scenario] + row if row.scenario in found else row
    return list(found.values())


HEADINGS = ("scenario", "what was done", "times", "what must be 0", "measured", "")


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for row in rows:
        cells = (
            row.scenario,
            row.did,
            f"{row.times:,}",
            _listed(row.broken),
            _listed(row.measured),
            "held" if row.held else "**BROKEN**",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _listed(named: Mapping[str, object]) -> str:
    return ", ".join(f"{_figure(value)} {name}" for name, value in named.items())


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
