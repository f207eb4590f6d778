"""The report in a real browser: drawn, not blank, and asking the network for nothing."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.unit.worker.reports import Scene, adapted, picture

from acclimate_service.worker.report import render

WIDTH, HEIGHT = 1200, 2400
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
)


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium to look at the report with")
    return found


@pytest.fixture(scope="module")
def html(request: pytest.FixtureRequest) -> str:
    """A rejected job's report, with real photographs where there are some."""
    return render(adapted(Scene(source_lost=0.06)), read=_photographs(request))


def _photographs(request: pytest.FixtureRequest) -> Callable[[str], bytes]:
    try:
        folder: Path = request.getfixturevalue("photos")
    except pytest.skip.Exception:
        return picture
    files: Iterator[Path] = itertools.cycle(sorted(folder.glob("*/*/*.jpg"))[::37][:40])
    return lambda blob: next(files).read_bytes()


def look(chromium: str, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page; stdout is what was asked for, stderr what the browser says about it."""
    profile = f"--user-data-dir={page.parent / 'profile'}"
    return subprocess.run(
        [chromium, *QUIET, profile, *options, page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )


def complaints(outcome: subprocess.CompletedProcess[str]) -> str:
    """What the page's console has: loads that its policy refused, errors, warnings."""
    return "\n".join(line for line in outcome.stderr.splitlines() if "CONSOLE" in line)


def test_a_report_is_drawn_and_asks_for_nothing(chromium: str, html: str, tmp_path: Path) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(html)
    size = f"--window-size={WIDTH},{HEIGHT}"
    assert complaints(look(chromium, page, size, f"--screenshot={shot}")) == ""
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    ink = (pixels.sum(axis=2) < 300).mean(axis=1)
    written = [float(part.max()) for part in np.array_split(ink, 8)]
    assert min(written) > 0.01  # every eighth of the page has something written on it
    assert ink.mean() < 0.2
    red = (pixels[:700, :400] == (0x8F, 0x1D, 0x22)).all(axis=2)
    assert red.sum() > 500  # the icon of REJECT


def test_a_page_that_asked_would_be_noticed(chromium: str, html: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(html.replace("</main>", '<img src="https://example.invalid/a.png"></main>'))
    assert "Content Security Policy" in complaints(look(chromium, page, "--dump-dom"))


def test_a_report_fits_a_narrow_window(chromium: str, html: str, tmp_path: Path) -> None:
    # The page's own rule forbids scripts, so the one that measures comes without the rule.
    probe = "<script>document.title = document.documentElement.scrollWidth</script>"
    page = tmp_path / "report.html"
    page.write_text(
        html.replace("Content-Security-Policy", "x").replace("</body>", f"{probe}</body>")
    )
    outcome = look(chromium, page, "--window-size=600,900", "--dump-dom")
    title = outcome.stdout.partition("<title>")[2].partition("</title>")[0]
    assert int(title) <= 600


def test_a_report_prints(chromium: str, html: str, tmp_path: Path) -> None:
    page, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_text(html)
    outcome = look(chromium, page, "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    assert complaints(outcome) == ""
    printed = paper.read_bytes()
    assert printed.startswith(b"%PDF")
    assert 3 <= printed.count(b"/Type /Page\n") <= 20
