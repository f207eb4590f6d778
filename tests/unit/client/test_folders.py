from __future__ import annotations

from pathlib import Path

import pytest

from acclimate import examples_from_folder
from acclimate.folders import labels_of_folder, leftovers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("pen/b.PNG", "pen/deep/a.jpeg", "mug/c.webp", "mug/notes.txt", "mug/.d.jpg",
        "mug/.thumbs/e.jpg", "__MACOSX/mug/f.jpg",
    ):  # fmt: skip
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


@pytest.mark.parametrize("parts", [("train", "test"), ("Train", "val", "testing")])
def test_the_parts_of_a_data_set_are_no_labels(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        (tmp_path / part / "mug").mkdir(parents=True)
    with pytest.raises(NotADirectoryError, match=r"[Tt]rain with the role train"):
        labels_of_folder(tmp_path)


def test_trains_beside_buses_are_a_label(tmp_path: Path) -> None:
    for label in ("train", "bus"):
        (tmp_path / label).mkdir()
    assert labels_of_folder(tmp_path) == ("bus", "train")


def test_what_an_upload_passes_over_can_be_told(folder: Path) -> None:
    (folder / "pen" / "scan.TIF").write_bytes(b"")
    (folder / "cap").mkdir()
    found = leftovers(folder)
    assert [path.name for path in found.other_files] == ["notes.txt", "scan.TIF"]
    assert [path.name for path in found.outside] == ["readme.png"]
    assert found.empty_labels == ("cap",)
