"""The live display, drawn to a string."""

from __future__ import annotations

import datetime as dt
import io

import pytest
from rich.console import Console
from rich.live import Live
from tests.unit.client.fake_service import Service

from acclimate import Client, JobState
from acclimate.cli import progress
from acclimate.cli.progress import Story, sparkline
from acclimate.resources import EventKind, JobEvent, Json, Phase
from acclimate.v1.adaptation_pb2 import AdaptationJob

BEGAN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def event(
    second: float,
    kind: EventKind,
    phase: Phase | None,
    message: str = "",
    *,
    facts: dict[str, Json] | None = None,
    state: JobState = JobState.RUNNING,
) -> JobEvent:
    return JobEvent(
        sequence=1,
        at=BEGAN + dt.timedelta(seconds=second),
        kind=kind,
        phase=phase,
        message=message,
        facts=facts or {},
        state=state,
    )


def drawn(story: Story) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(story.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def story(client: Client) -> Story:
    return Story(client.job("j1"))


def test_a_story_without_events_can_be_drawn(story: Story) -> None:
    text = drawn(story)
    assert "digits ← pens  adapt, jobs/j1  RUNNING" in text
    assert text.count("○") == len(Phase)


def test_phases_add_up_however_often_they_are_entered(service: Service, story: Story) -> None:
    for second, phase in (
        (0, None),
        (1, Phase.PREPARING),
        (3, Phase.PROBING),
        (7, Phase.BLENDING),
        (8, Phase.TUNING),
        (20, Phase.BLENDING),
        (25, Phase.EXPORTING),
    ):
        story.take(event(second, EventKind.PHASE, phase))
    assert "● exporting" in drawn(story)
    story.take(event(30, EventKind.STATE, None))
    service.end(AdaptationJob.STATE_SUCCEEDED)
    story.end()
    text = drawn(story)
    assert "✓ preparing 2 s   ✓ probing 4 s   ✓ tuning 12 s   ✓ blending 6 s" in text
    assert "✓ exporting 5 s   ○ judging" in text
    assert "SUCCEEDED  30 s" in text


def test_an_ended_jobs_story_is_told_like_a_running_ones(story: Story) -> None:
    for second, phase in ((0, Phase.PREPARING), (5, Phase.TUNING)):
        story.take(event(second, EventKind.PHASE, phase, state=JobState.SUCCEEDED))
    assert "✓ preparing 5 s" in drawn(story)


def test_a_phase_that_says_how_far_it_is_shows_that_until_the_next(story: Story) -> None:
    story.take(event(0, EventKind.PHASE, Phase.PREPARING, facts={"detail": "trunk"}))
    assert "%" not in drawn(story)
    story.take(event(10, EventKind.PHASE, Phase.PREPARING, facts={"done": 300, "of": 1200}))
    story.take(event(10, EventKind.DECISION, Phase.PREPARING, "left out two images"))
    assert "● preparing 25% 1" in drawn(story)
    story.take(event(12, EventKind.PHASE, Phase.PROBING, facts={"detail": "head"}))
    assert "%" not in drawn(story)


def test_each_strategy_shows_its_last_epoch_and_how_select_rose(story: Story) -> None:
    for number, accuracy in enumerate((0.5, 0.75, None, 1.0), 1):
        facts: dict[str, Json] = {
            "strategy": "tail",
            "epoch": number,
            "epochs": 9,
            "train_loss": 0.1234,
            "train_accuracy": 0.9,
            "select_accuracy": accuracy,
        }
        story.take(event(number, EventKind.EPOCH, Phase.TUNING, facts=facts))
    row = next(line for line in drawn(story).splitlines() if line.startswith("tail"))
    assert "tail      4/9    0.123  90.0 %  100.0 %" in row
    assert "▁▅ █" in row


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A terminal of 60 columns and 20 lines."""
    terminal = Console(
        file=io.StringIO(), width=60, height=20, soft_wrap=True, force_terminal=True,
        color_system=None,
    )  # fmt: skip
    monkeypatch.setattr(progress, "console", terminal)
    return terminal


def live(story: Story, terminal: Console) -> str:
    """The display as it is drawn anew while the job runs, in words between blanks."""
    assert isinstance(terminal.file, io.StringIO)
    with Live(story.render(), console=terminal, auto_refresh=False):
        return " ".join(terminal.file.getvalue().split())


def test_a_small_terminal_cuts_no_note_and_no_phase(story: Story, small: Console) -> None:
    story.take(event(0, EventKind.PHASE, Phase.PREPARING))
    story.take(event(1, EventKind.WARNING, Phase.PREPARING, "few images " * 20 + "hold out more"))
    text = live(story, small)
    assert "hold out more" in text
    assert "judging" in text


def test_a_small_terminal_shows_the_newest_notes(story: Story, small: Console) -> None:
    for number in range(8):
        story.take(event(1, EventKind.DECISION, Phase.TUNING, f"note {number} " + "word " * 50))
    text = live(story, small)
    assert "note 7" in text
    assert "note 2" not in text
    assert "earlier notes are in the report" in text


def test_only_the_last_notes_are_shown(story: Story) -> None:
    for number in range(20):
        kind = EventKind.WARNING if number % 2 else EventKind.DECISION
        story.take(event(number, kind, Phase.TUNING, f"note {number}"))
    text = drawn(story)
    assert "… 12 earlier notes are in the report" in text
    assert "note 11" not in text
    assert "→ note 18" in text
    assert "! note 19" in text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([None], ""),
        ([0.5], "█"),
        ([0.5, 0.5], "██"),
        ([0, 1], "▁█"),
        ([0, None, 1], "▁ █"),
    ],
)
def test_a_sparkline_spans_its_own_range(values: list[float | None], expected: str) -> None:
    assert sparkline(values) == expected


def test_a_long_sparkline_keeps_its_end() -> None:
    assert sparkline([0.0] * 100 + [1.0]).endswith("█")
    assert len(sparkline([0.0] * 100)) == 24
