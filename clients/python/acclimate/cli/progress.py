"""A job's story as a person likes to follow it: a live display, or plain lines."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from acclimate.cli import verdict
from acclimate.cli.output import console, percent, short
from acclimate.cli.spoken import spoken
from acclimate.cli.waiting import Waiting
from acclimate.resources import EventKind, JobEvent, JobKind, JobState, Phase

if TYPE_CHECKING:
    from acclimate.job import Job

FRAME = 8  # lines of the display beside notes and strategies, folded phases among them
NOTES = 8  # decisions and warnings shown at once; the report has them all
BARS = "▁▂▃▄▅▆▇█"
BARS_SHOWN = 24
# What a job without a version yet fails with if its model is not what was meant.
MISREGISTERED = {"UNSUPPORTED_ARCHITECTURE", "WEIGHTS_UNAVAILABLE", "WEIGHTS_MISMATCH"}
COLOURS = {
    JobState.SUCCEEDED: "green",
    JobState.REJECTED: "red",
    JobState.INCONCLUSIVE: "yellow",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
}


def state_text(state: JobState) -> str:
    """A state in its colour, as markup."""
    colour = COLOURS.get(state)
    return f"[{colour}]{state.value}[/{colour}]" if colour else state.value


def show(job: Job) -> None:
    """Follow *job* to its end, and say how it ended."""
    follow(job)
    show_end(job)


def follow(job: Job) -> None:
    """Show *job*'s story to its end: live on a terminal, in plain lines elsewhere."""
    if console.is_terminal:
        story = Story(job)
        with Live(get_renderable=story.render, console=console, refresh_per_second=8):
            for event in watched(job):
                story.take(event)
            story.end()
        return
    for event in watched(job):
        phase = event.phase.value if event.phase else ""
        console.print(
            f"{event.at.astimezone():%H:%M:%S} {event.kind.value:8} {phase:9} {event.message}",
            markup=False,
        )


def watched(job: Job) -> Iterator[JobEvent]:
    """*job*'s events to its end; a line on stderr where no worker takes it for a while."""
    with Waiting(job.name, job.state) as waiting:
        for event in job.watch():
            waiting.heard(event.state)
            yield event


def show_end(job: Job) -> None:
    """Where *job* stands and, if it has ended, how: verdict, version, the next step."""
    snapshot = job.snapshot
    console.print(
        f"[bold]{job.name}[/bold] {state_text(job.state)}"
        + (f" {job.phase.value}" if job.phase and not job.state.ended else "")
        + f"  {job.kind.value} {short(snapshot.model)} "
        + f"← {short(snapshot.target_domain or snapshot.source_domain)}"
        + (f"  attempt {snapshot.attempt}" if snapshot.attempt > 1 else "")
    )
    found = verdict.verdict_of(snapshot.summary)
    if found is not None:
        console.print(verdict.render(found))
    if snapshot.failure_reason:
        why = spoken(snapshot.failure_message)
        console.print(f"{snapshot.failure_reason}: {why}", markup=False)
    if snapshot.failure_reason in MISREGISTERED and job.kind is not JobKind.ADAPT:
        console.print(
            f"[dim]registered wrongly? acclimate delete {snapshot.model}, and register again[/dim]"
        )
    if job.version:
        console.print(f"version [bold]{short(job.version)}[/bold]")
    if job.state in (JobState.SUCCEEDED, JobState.REJECTED, JobState.INCONCLUSIVE):
        console.print(f"[dim]why, image by image: acclimate report {short(job.name)} --open[/dim]")


class Story:
    """What has happened so far, drawn anew several times a second."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._state = job.state
        self._spent: dict[Phase, float] = {}  # seconds; a phase may be entered more than once
        self._phase: Phase | None = None
        self._far = ""  # how far the present phase is, where it says so
        self._first: float | None = None  # the times of events are the service's
        self._last = 0.0
        self._heard = time.monotonic()
        self._epochs: dict[str, list[Mapping[str, Any]]] = {}
        self._notes: list[Text] = []
        self._spinner = Spinner("dots")

    def take(self, event: JobEvent) -> None:
        """One more event."""
        moment = event.at.timestamp()
        self._first = moment if self._first is None else self._first
        if self._phase is not None:
            self._spent[self._phase] += moment - self._first - self._last
        self._last, self._heard = moment - self._first, time.monotonic()
        self._state = event.state
        self._phase = event.phase or self._phase  # not by the state: an old story is told anew
        if self._phase is not None:
            self._spent.setdefault(self._phase, 0.0)
        if event.kind is EventKind.PHASE:
            self._far = _share(event.facts.get("done"), event.facts.get("of"))
        elif event.kind is EventKind.EPOCH:
            self._epochs.setdefault(str(event.facts.get("strategy", "")), []).append(event.facts)
        elif event.kind is EventKind.DECISION:
            self._notes.append(_folded(f"→ {event.message}"))
        elif event.kind is EventKind.WARNING:
            self._notes.append(_folded(f"! {event.message}", style="yellow"))

    def end(self) -> None:
        """The story is told."""
        self._state = self._job.refresh().state
        self._phase = None

    def render(self) -> RenderableType:
        """The whole display."""
        parts: list[RenderableType] = [self._head(), self._phases()]
        if self._epochs:
            parts.append(self._learning())
        notes = self._newest()
        if hidden := len(self._notes) - len(notes):
            parts.append(Text(f"  … {hidden} earlier notes are in the report", style="dim"))
        parts += notes
        if self._state.ended:
            parts.append(Rule(style="dim"))
        return Group(*parts)

    def _newest(self) -> list[Text]:
        """The last notes: so many as a terminal has room for while it draws them anew."""
        room = console.height - len(self._epochs) - FRAME
        shown: list[Text] = []
        for note in reversed(self._notes[-NOTES:]):
            room -= math.ceil(note.cell_len / console.width)
            if shown and room < 0 and not self._state.ended:
                break
            shown.append(note)
        return shown[::-1]

    def _now(self) -> float:
        """Seconds since the first event."""
        still = 0.0 if self._state.ended else time.monotonic() - self._heard
        return self._last + still

    def _head(self) -> RenderableType:
        snapshot = self._job.snapshot
        text = Text.assemble(
            (short(snapshot.model), "bold"),
            " ← ",
            (short(snapshot.target_domain or snapshot.source_domain), "bold"),
            f"  {snapshot.kind.value.lower()}, {snapshot.name}  ",
            Text.from_markup(state_text(self._state)),
            (f"  {self._now():.0f} s", "dim"),
        )
        if self._state.ended:
            return text
        line = Table.grid(padding=(0, 1))
        line.add_row(self._spinner, text)
        return line

    def _phases(self) -> Text:
        """Every phase with its seconds: done, under way, to come."""
        line = _folded("")
        for phase in Phase:
            name = phase.value.lower()
            if phase not in self._spent:
                line.append(f"○ {name}   ", style="dim")
            elif phase is self._phase:
                spent = self._spent[phase] + self._now() - self._last
                line.append(f"● {name} {self._far}{spent:.0f} s   ", style="bold cyan")
            else:
                line.append(f"✓ {name} {self._spent[phase]:.0f} s   ", style="green")
        return line

    def _learning(self) -> Table:
        """One row for each strategy that was tried: its last epoch, and how select rose."""
        table = Table(box=None, header_style="dim", pad_edge=False)
        for column in ("STRATEGY", "EPOCH", "LOSS", "TRAIN", "SELECT", "", "S/EPOCH"):
            table.add_column(column, no_wrap=True)
        for strategy, epochs in list(self._epochs.items()):  # drawn on a thread of its own
            last = epochs[-1]
            table.add_row(
                strategy,
                f"{last.get('epoch', len(epochs))}/{last.get('epochs', '?')}",
                _number(last.get("train_loss")),
                percent(last.get("train_accuracy")),
                percent(last.get("select_accuracy")),
                Text(sparkline([epoch.get("select_accuracy") for epoch in epochs]), style="cyan"),
                _number(last.get("seconds")),
            )
        return table


def _folded(text: str, style: str = "") -> Text:
    """Text that a narrow terminal folds and does not cut."""
    return Text(text, style=style, no_wrap=False, overflow="fold")


def _share(done: object, whole: object) -> str:
    """How much of a phase is done, if it says so."""
    if isinstance(done, int | float) and isinstance(whole, int | float) and whole:
        return f"{done / whole:.0%} "
    return ""


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "–"


def sparkline(values: list[Any]) -> str:
    """Values as bars between their own least and greatest; what is no number is a gap."""
    shown = values[-BARS_SHOWN:]
    numbers = [value for value in shown if isinstance(value, int | float)]
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    top = len(BARS) - 1
    return "".join(
        " "
        if not isinstance(value, int | float)
        else BARS[round((value - low) / (high - low) * top) if high > low else top]
        for value in shown
    )
