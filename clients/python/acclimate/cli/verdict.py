"""The guard's verdict, as a table that a person can weigh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from acclimate.cli.output import percent, words

MARKS = {"ACCEPT": ("✓", "green"), "REJECT": ("✗", "red"), "INCONCLUSIVE": ("?", "yellow")}

SAID = ("Accepted", "Rejected", "Inconclusive")


def verdict_of(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The verdict in a job's summary or in the facts of its event; None if there is none."""
    found = facts.get("verdict", facts)
    return found if isinstance(found, Mapping) and "decision" in found else None


def render(verdict: Mapping[str, Any]) -> RenderableType:
    """The decision first, then why, check by check."""
    mark, colour = MARKS.get(str(verdict["decision"]), ("", ""))
    head = Text(f"{mark} {verdict['decision']}", style=f"bold {colour}")
    # The summary begins with the decision, in a word of its own.
    summary = str(verdict.get("summary", ""))
    said = summary.partition(": ")
    head.append(f"  {said[2] if said[0] in SAID else summary}", style="not bold")
    checks = verdict.get("checks") or []
    if not checks:
        return head
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("", "CHECK", "DECIDED BY", "IMAGES", "LOST", "GAINED"):
        table.add_column(column, no_wrap=column != "DECIDED BY")
    for check in checks:
        mark, colour = MARKS.get(str(check.get("decision")), ("", ""))
        table.add_row(
            Text(mark, style=colour),
            words(check.get("name", "")),
            words(_decided_by(check)),
            *(str(check.get(key) or "–") for key in ("n", "lost", "gained")),
        )
    shown = {word for check in checks for word in str(check.get("name", "")).split()}
    kept = sum(domain not in shown for domain in verdict.get("earlier") or ())
    if not kept:
        return Group(head, table)
    told = f"and {kept} domains accepted earlier, which it keeps; the report has them all"
    return Group(head, table, Text(told, style="dim"))


def _decided_by(check: Mapping[str, Any]) -> str:
    """The numbers that gave the answer, each beside its limit.

    A job of an older worker tells of one limit only, and its interval was weighed against
    another: then it is said what was observed, and no more.
    """
    told = [str(one.get("text", "")) for one in check.get("decided_by") or ()]
    return ", ".join(told) or _measured(check.get("observed"), check)


def _measured(value: object, check: Mapping[str, Any]) -> str:
    """A number of a check: accuracies and shares as percentages, a drop as the change it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    unit = str(check.get("unit", ""))
    if "drop" in unit:
        return percent(0.0 - value, signed=True)
    if "accuracy" in unit or unit.startswith("share"):
        return percent(value)
    return f"{value:.3g}"
