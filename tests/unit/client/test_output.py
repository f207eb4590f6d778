"""What somebody wrote is shown as it was written: as no markup, and to no terminal a command."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from acclimate.cli import output, verdict
from acclimate.cli.output import console, print_table, words
from acclimate.cli.refusals import complain

HOSTILE = ("[/x]", "[red]all is well", "[link=file:///etc]here", "\x1b[2Jgone", "a\rb", "\u202eexe")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_label_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("LABEL", "TRAIN"), [(text, 3), (None, 4)], empty="none")
    told = capsys.readouterr().out
    assert words(text).plain in told
    assert not {"\x1b", "\r", "\u202e"} & set(told)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_check_named_after_a_label_is_shown_as_it_is(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check = {"name": f"class {text}", "decision": "PASS", "observed": 0.5}
    console.print(verdict.render({"decision": "ACCEPTED", "summary": text, "checks": [check]}))
    assert words(f"class {text}").plain in capsys.readouterr().out


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is printed on a terminal of 34 columns."""
    screen = io.StringIO()
    terminal = Console(file=screen, width=34, force_terminal=True, color_system=None)
    monkeypatch.setattr(output, "console", terminal)
    return screen


def test_a_narrow_terminal_gets_fewer_columns_and_whole_names(narrow: io.StringIO) -> None:
    row = ("20261126-044933-6e552d", "BOOTSTRAP", "FAILED", "9 min")
    print_table(("JOB", "KIND", "STATE", "AGE"), [row], empty="none", spare=("KIND", "AGE", "JOB"))
    head, line = narrow.getvalue().splitlines()
    assert head.split() == ["JOB", "STATE"]
    assert line.split() == ["20261126-044933-6e552d", "FAILED"]


def test_what_cannot_be_spared_is_not_cut(narrow: io.StringIO) -> None:
    print_table(("JOB", "SHA256"), [("a" * 22, "b" * 64)], empty="none", spare=("JOB",))
    assert narrow.getvalue().split() == ["SHA256", "b" * 64]


def test_a_complaint_is_one_line_without_a_terminals_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    complain("REASON", "a\nb\x1b]0;owned\x07")
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "\x1b" not in told
    assert "\x07" not in told
