from __future__ import annotations

from pathlib import Path

import pytest

from acclimate import examples_from_folder
from acclimate.folders import labels_of_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("pen/b.PNG", "pen/deep/a.jpeg", "mug/c.webp", "mug/notes.txt", "mug/.d.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.png").write_bytes(b"")
    return tmp_path


def test_subfolders_are_labels(folder: Path) -> None:
    assert labels_of_folder(folder) == ("mug", "pen")


def test_images_come_sorted_with_label_and_path(folder: Path) -> None:
    found = [(e.label, e.id, e.image) for e in examples_from_folder(folder)]
    assert found == [
        ("mug", "mug/c.webp", b"mug/c.webp"),
        ("pen", "pen/b.PNG", b"pen/b.PNG"),
        ("pen", "pen/deep/a.jpeg", b"pen/deep/a.jpeg"),
    ]


def test_files_are_read_when_they_are_due(folder: Path) -> None:
    examples = examples_from_folder(folder)
    next(examples)
    (folder / "pen" / "b.PNG").write_bytes(b"changed")
    assert next(examples).image == b"changed"


def test_a_limit_holds_for_each_label(folder: Path) -> None:
    assert [e.id for e in examples_from_folder(folder, limit_per_class=1)] == [
        "mug/c.webp",
        "pen/b.PNG",
    ]


def test_tags_go_to_every_example(folder: Path) -> None:
    assert {e.tags for e in examples_from_folder(folder, tags=("camera=3",))} == {("camera=3",)}


def test_a_folder_without_subfolders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="no subfolders"):
        list(examples_from_folder(tmp_path))
