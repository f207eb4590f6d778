from __future__ import annotations

from pathlib import Path

import pytest

from acclimate import examples_from_sheet
from acclimate.sheets import labels_of_sheet


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    for name in ("a.jpg", "deep/b.jpg", "c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    path = tmp_path / "labels.csv"
    path.write_text(
        "image,tags,label\nc.jpg,,pen\ndeep/b.jpg,camera=3 night, mug \na.jpg,,mug\n",
        encoding="utf-8-sig",  # as spreadsheets write it
    )
    return path


def test_a_row_is_an_image_in_the_order_of_the_file(sheet: Path) -> None:
    found = [(e.id, e.label, e.image, e.tags) for e in examples_from_sheet(sheet, tags=("x",))]
    assert found == [
        ("c.jpg", "pen", b"c.jpg", ("x",)),
        ("deep/b.jpg", "mug", b"deep/b.jpg", ("x", "camera=3", "night")),
        ("a.jpg", "mug", b"a.jpg", ("x",)),
    ]
    assert labels_of_sheet(sheet) == ("mug", "pen")


def test_a_limit_holds_for_each_label_of_a_sheet(sheet: Path) -> None:
    ids = [e.id for e in examples_from_sheet(sheet, limit_per_class=1)]
    assert ids == ["c.jpg", "deep/b.jpg"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,class\na.jpg,mug\n", "no column image and none label, but 'file', 'class';"),
        ("image;label\na.jpg;mug\n", "but 'image;label'; .* with commas between"),
        ("image,label\na.jpg,\n", "line 2: an image and its label"),
        ("image,label\na.jpg,mug\nnowhere.jpg,mug\n", "line 3: there is no file"),
        ("", "no column image and none label, but none;"),
    ],
)
def test_a_sheet_that_is_wrong_is_refused_with_its_line(sheet: Path, text: str, told: str) -> None:
    sheet.write_text(text)
    with pytest.raises(ValueError, match=told):
        labels_of_sheet(sheet)
