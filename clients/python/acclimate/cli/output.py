"""What commands print: JSON for machines, tables for people."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from acclimate.cli.refusals import shown

GAP = 2  # blanks between columns

console = Console(soft_wrap=True, highlight=False)


def plain(value: Any) -> Any:
    """*value* as JSON knows it. A dataclass becomes an object with its fields' names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print *value* on stdout; on one line with ``indent=None``."""
    typer.echo(json.dumps(plain(value), indent=indent, ensure_ascii=False))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    empty: str,
    spare: Sequence[str] = (),
) -> None:
    """Print rows under their headings, or the line *empty* if there are none.

    Where a terminal is too narrow the columns named by *spare* are left out, the first one
    first. Nothing is cut: half a name can be neither told from others nor typed again.
    """
    cells = [[cell if isinstance(cell, Text) else words(cell) for cell in row] for row in rows]
    if not cells:
        console.print(f"[dim]{empty}[/dim]")
        return
    shown = list(range(len(columns)))
    widths = [
        max(cell_len(columns[i]), *(row[i].cell_len for row in cells)) for i in range(len(columns))
    ]
    for name in spare if console.is_terminal else ():  # a file or a pipe has no edge
        if sum(widths[i] for i in shown) + GAP * (len(shown) - 1) > console.width:
            shown = [i for i in shown if columns[i] != name]
    heads = [Text(column, style="bold") for column in columns]
    for row in (heads, *cells):
        console.print(_line([row[i] for i in shown], [widths[i] for i in shown]), soft_wrap=True)


def _line(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text()
    for cell, width in zip(cells, widths, strict=True):
        line.append_text(cell).append(" " * (width + GAP - cell.cell_len))
    line.rstrip()
    return line


def words(value: object) -> Text:
    """What somebody wrote, as they wrote it: never markup."""
    return Text("" if value is None else shown(str(value)))


def short(name: str) -> str:
    """``models/digits/versions/3`` → ``digits/3``; ``jobs/a1`` → ``a1``."""
    parts = name.split("/")
    return "/".join(parts[1::2]) if len(parts) > 2 else parts[-1]


def ago(moment: dt.datetime | None) -> str:
    """How long ago, roughly: ``3 min``."""
    if moment is None:
        return ""
    seconds = (dt.datetime.now(dt.UTC) - moment).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def percent(share: object, *, signed: bool = False) -> str:
    """0.8125 → ``81.2 %``; what is no number → a dash."""
    if isinstance(share, bool) or not isinstance(share, int | float):
        return "–"
    return f"{100 * share:+.1f} %" if signed else f"{100 * share:.1f} %"
