"""What a scenario found: one row of the table, and whether its promise held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


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
    measured: Mapping[str, object] = field(default_factory=dict)

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
