from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from acclimate.cli import app
from acclimate.demo import digits
from acclimate.demo.naive import fine_tune
from acclimate.errors import ServiceFault


@pytest.fixture(scope="module")
def uci() -> digits.Digits:
    return digits.uci(train=200, holdout=400)


def test_every_digit_is_drawn_equally_often(uci: digits.Digits) -> None:
    assert len(uci.train) == 200
    assert len(uci.holdout) == 400
    for part, each in ((uci.train, 20), (uci.holdout, 40)):
        labels = [example.label for example in part]
        assert {label: labels.count(label) for label in digits.LABELS} == dict.fromkeys(
            digits.LABELS, each
        )


def test_no_image_is_both_learned_from_and_held_out(uci: digits.Digits) -> None:
    train = {example.image for example in uci.train}
    assert len(train) == 200
    assert train & {example.image for example in uci.holdout} == set()


def test_the_draw_is_the_same_every_time(uci: digits.Digits) -> None:
    assert digits.uci(train=200, holdout=400) == uci


@pytest.mark.parametrize("name", sorted(digits.SETS))
def test_images_are_grey_pngs_of_one_size_with_their_true_label(name: str) -> None:
    found = digits.SETS[name](train=10, holdout=10)
    for example in (*found.train, *found.holdout):
        with Image.open(io.BytesIO(example.image)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))
            assert max(image.tobytes()) > 200  # bright ink
    zero = next(e for e in found.train if e.label == "0")
    one = next(e for e in found.train if e.label == "1")
    # A zero's middle is empty, a one's is not.
    middles = [Image.open(io.BytesIO(e.image)).tobytes()[16 * 32 + 16] for e in (zero, one)]
    assert middles[0] < 100 < middles[1]


def test_a_folder_that_is_no_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = CliRunner().invoke(app, ["demo", "--home", str(tmp_path)])
    assert result.exit_code == 2
    assert "no demo's" in result.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_naive_run_that_fails_or_hangs_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"

    def pretend(line: str) -> None:
        python.write_text(f"#!/bin/sh\n{line}\n")
        python.chmod(0o755)

    monkeypatch.setattr(sys, "executable", str(python))
    pretend("echo why >&2; exit 3")
    with pytest.raises(ServiceFault, match="why"):
        fine_tune(tmp_path, "jobs/j1", threads=1, limit_seconds=10)
    pretend("exec sleep 30")
    with pytest.raises(ServiceFault, match=r"more than 0\.2 s"):
        fine_tune(tmp_path, "jobs/j1", threads=1, limit_seconds=0.2)
    facts = {
        "target_before": 0.25,
        "target_after": 0.75,
        "source_before": 0.95,
        "source_after": 0.5,
        "seconds": 7.5,
    }
    pretend(f"echo '{json.dumps(facts)}'")
    found = fine_tune(tmp_path, "jobs/j1", threads=1, limit_seconds=10)
    assert found.source_after == 0.5
