"""What ./run audit makes of pip-audit's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from packaging.version import Version
from pip_audit._format import JsonFormat
from pip_audit._service.interface import (
    Dependency,
    ResolvedDependency,
    SkippedDependency,
    VulnerabilityID,
    VulnerabilityResult,
)
from tools import audit

GOOD = ResolvedDependency("numpy", Version("2.4.0"))
BAD = ResolvedDependency("urllib3", Version("1.26.5"))
SKIPPED = SkippedDependency("six", "Dependency not found on PyPI")
FOUND = VulnerabilityResult(
    id=VulnerabilityID("PYSEC-2023-192"),
    description="Cookie header",
    fix_versions=[Version("1.26.17")],
    aliases=set(),
)


def said(results: Mapping[Dependency, Sequence[VulnerabilityResult]]) -> audit.Answer:
    """What is read from what pip-audit writes for *results*."""
    return audit.read(JsonFormat(True, False).format(dict(results), []), "")


def test_what_is_known_fails_and_is_named_with_its_mending() -> None:
    answer = said({GOOD: [], BAD: [FOUND], SKIPPED: []})
    assert answer.code == audit.KNOWN
    assert answer.known == ("urllib3 1.26.5: PYSEC-2023-192 (mended in 1.26.17)",)
    assert answer.asked == 2


def test_nothing_known_of_everything_passes() -> None:
    assert said({GOOD: []}).code == audit.CLEAN


def test_a_package_that_could_not_be_asked_about_is_no_pass() -> None:
    answer = said({GOOD: [], SKIPPED: []})
    assert (answer.code, answer.unasked) == (
        audit.NOT_ASKED,
        {"six": "Dependency not found on PyPI"},
    )
    assert said({}).code == audit.NOT_ASKED


@pytest.mark.parametrize("output", ["", "No known vulnerabilities found", "{}"])
def test_a_run_that_broke_off_is_no_pass_and_says_why(output: str) -> None:
    answer = audit.read(output, "Traceback ...\nConnectionError: the index is out of reach\n")
    assert answer.code == audit.NOT_ASKED
    assert answer.unasked == {"every package": "ConnectionError: the index is out of reach"}


def test_a_lock_with_something_known_decides_over_one_that_was_not_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {"a": said({SKIPPED: []}), "b": said({BAD: [FOUND]}), "c": said({GOOD: []})}
    monkeypatch.setattr(audit, "ask", answers.__getitem__)
    assert audit.main(["a", "b", "c"]) == audit.KNOWN
    assert audit.main(["a", "c"]) == audit.NOT_ASKED
    assert audit.main(["c"]) == audit.CLEAN
    told = capsys.readouterr().out
    assert "KNOWN VULNERABILITY: urllib3 1.26.5" in told
    assert "NOT ASKED ABOUT six" in told
