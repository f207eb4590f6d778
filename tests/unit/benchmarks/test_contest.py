"""What the benchmark of adaptation deals out, counts and says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from benchmarks.contest import pairs, table
from benchmarks.contest.ours import Milestones
from benchmarks.contest.record import Answers, Milestone, Record, read_records
from benchmarks.contest.shifts import SHIFTS, shifted
from benchmarks.contest.task import Picture, Task, read_task
from PIL import Image

from acclimate_service.domain.statistics import tango_interval


def answers(right: Sequence[int], names: str = "abcdefghij") -> Answers:
    return Answers(images=tuple(names[: len(right)]), right=tuple(bool(r) for r in right))


def record(
    method: str,
    target: Sequence[int],
    *,
    seed: int = 0,
    source: Sequence[int] = (1, 1, 1, 1),
    names: str = "abcdefghij",
    detail: str = "",
    milestones: Sequence[Milestone] = (),
    cpu_seconds: float = 1.0,
) -> Record:
    return Record(
        pair="a → b",
        per_class=10,
        seed=seed,
        method=method,
        model="m",
        revision="r",
        target=answers(target, names),
        source=answers(source),
        target_before=answers([0] * len(target), names),
        source_before=answers([1, 1, 1, 1]),
        seconds=2.0,
        cpu_seconds=cpu_seconds,
        peak_mib=100,
        detail=detail,
        versions={},
        milestones=tuple(milestones),
    )


def milestone(name: str, cpu_seconds: float, *, target: float, source: float = 1.0) -> Milestone:
    return Milestone(
        name=name, seconds=2 * cpu_seconds, cpu_seconds=cpu_seconds, target=target, source=source
    )


def folder(root: Path, labels: dict[str, Sequence[int]], kind: str = "png") -> Path:
    """Image files of one grey level each: those given, under each label."""
    for label, levels in labels.items():
        (root / label).mkdir(parents=True)
        for level in levels:
            picture = Image.fromarray(np.full((20, 24, 3), level, np.uint8))
            picture.save(root / label / f"{level}.{kind}")
    return root


def test_a_label_that_the_source_lacks_is_left_out_and_a_missing_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "source", {"cat": range(10), "dog": range(10, 20)})
    target = folder(tmp_path / "target", {"dog": range(30, 40), "eel": range(40, 50)}, "webp")
    pair = pairs.of_folders(source, target)
    assert pair.labels == ("cat", "dog")
    assert {picture.label for picture in pair.target} == {1}
    assert "eel" in capsys.readouterr().err


def test_no_picture_is_in_two_parts_whatever_its_file_is_called(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", {"cat": range(10), "dog": range(10, 20)})
    target = folder(tmp_path / "target", {"cat": range(5, 15), "dog": range(50, 60)})
    for path in target.rglob("*.png"):
        path.rename(path.with_name(f"other-{path.name}"))
    (target / "dog" / "notes.txt").write_text("no image")
    pair = pairs.of_folders(source, target)
    parts = [pair.source_parts(), pair.target_parts(3, seed=1)]
    dealt = [p.content for part in parts for some in vars(part).values() for p in some]
    assert len(dealt) == len(set(dealt)) == 20 + 10


def test_half_of_a_small_label_is_kept_to_be_scored(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", {"cat": range(10), "dog": range(10, 20)})
    target = folder(tmp_path / "target", {"cat": [100, 110, 120], "dog": [200]})
    parts = pairs.of_folders(source, target).target_parts(10, seed=0)
    assert [p.label for p in parts.train] == [0]
    assert len(parts.select) + len(parts.verify) == 3


def test_two_folders_without_a_common_image_label_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", {"cat": [1], "dog": [2]})
    target = folder(tmp_path / "target", {"eel": [3]})
    with pytest.raises(SystemExit, match="in common"):
        pairs.of_folders(source, target)


def test_a_task_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    picture = Picture(path="cat/1.png", label=0, content="abc")
    task = Task(
        architecture="x", labels=("cat", "dog"), size=32, crop=1.0, mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5), flip=False, seed=3, epochs=2, batch=8, threads=1, device="cpu",
        train=(picture,), select=(), replay=(), source_select=(),
    )  # fmt: skip
    task.write(tmp_path)
    assert read_task(tmp_path) == task


@pytest.mark.parametrize("name", SHIFTS)
def test_a_camera_shift_is_the_same_each_time_and_changes_the_picture(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    once, again = shifted(name, image, "content"), shifted(name, image, "content")
    np.testing.assert_array_equal(once, again)
    assert once.shape == image.shape
    assert np.abs(once.astype(int) - image).mean() > 10


def test_an_image_that_several_seeds_share_counts_once_in_the_interval() -> None:
    auto = [record("auto", [1, 1, 1, 1, 0], seed=seed) for seed in range(3)]
    other = [record("head", [1, 0, 0, 1, 0], seed=seed) for seed in range(3)]
    found = table.difference(auto, other)
    assert found is not None
    low, high = tango_interval(0, 2, 5, table.LEVEL)
    assert found.images == 5
    assert [found.mean, found.low, found.high] == pytest.approx([0.4, -high, -low])


def test_answers_on_other_images_are_never_paired() -> None:
    with pytest.raises(AssertionError, match="other images"):
        table.difference([record("auto", [1, 1])], [record("head", [1, 1], names="xyz")])


def test_the_best_other_is_the_best_of_those_that_keep_the_source() -> None:
    methods = {
        "auto": [record("auto", [1, 1, 1, 1])],
        "forgetful": [record("forgetful", [1, 1, 1, 1], source=(0, 1, 1, 1))],
        "careful": [record("careful", [1, 1, 0, 0])],
        "idle": [record("idle", [1, 0, 0, 0])],
    }
    assert table.best_other(methods) == "careful"
    assert table.best_other({"auto": methods["auto"]}) is None


def test_every_promise_that_auto_breaks_is_named_with_its_seed() -> None:
    broken = [
        record("auto", [1, 0, 0, 0], seed=1, source=(1, 1, 1, 0), detail="tail@1"),
        record("head", [1, 1, 0, 0], seed=1),
    ]
    told = "\n".join(table.failures(broken))
    assert "the source falls by 25.0 points on the mean" in told
    assert "head is 25.0 points better" in told
    assert "seed 1: 25.0 points below head-only on the target (tail@1)" in told
    assert "seed 1: the source falls by 25.0 points (tail@1)" in told
    assert table.failures([record("auto", [1, 1]), record("head", [1, 0])]) == []


def test_a_record_survives_its_file_and_a_later_one_replaces_it(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    first, second = record("auto", [0, 1]), record("auto", [1, 1])
    for one in (first, record("head", [1, 0]), second):
        one.append(file)
    known = read_records(file)
    assert known[first.key] == second
    assert len(known) == 2
    assert read_records(tmp_path / "nothing.jsonl") == {}


def test_milestones_survive_the_file_and_a_record_from_before_them_is_read(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    new = record("auto", [1, 1], milestones=[milestone("head@1", 3.0, target=0.5)])
    new.append(file)
    old = json.loads(file.read_text()) | {"method": "head"}
    del old["milestones"]
    file.write_text(file.read_text() + json.dumps(old) + "\n")
    known = list(read_records(file).values())
    assert known[0] == new
    assert known[1].milestones == ()


def row_of_contests(records: Sequence[Record]) -> list[str]:
    return [cell.strip() for cell in table.contests(records).splitlines()[-1].split("|")]


def test_the_seconds_that_count_are_those_of_the_first_candidate_as_accurate_as_fastai() -> None:
    fastai = [record("fastai", [1, 1, 0, 0], cpu_seconds=20.0)]
    way = [
        milestone("head@1", 2.0, target=0.25),
        milestone("tail@1", 5.0, target=0.5),
        milestone("tail+held@1", 9.0, target=0.75),
    ]
    row = row_of_contests([record("auto", [1, 1, 1, 0], milestones=way), *fastai])
    assert row[8:10] == ["10 s (5 CPU s), tail@1", "0.2 (4.0)"]
    costly = [milestone("head@1", 2.0, target=0.5, source=0.97)]
    row = row_of_contests([record("auto", [1, 1, 1, 0], milestones=costly), *fastai])
    assert row[8] == "4 s (2 CPU s), head@1, source -3.0"


def test_accuracy_that_no_candidate_reached_is_said_and_no_time_is_made_of_it() -> None:
    fastai = [record("fastai", [1, 1, 1, 1])]
    way = [milestone("head@1", 2.0, target=0.5)]
    row = row_of_contests([record("auto", [1, 1, 0, 0], milestones=way), *fastai])
    assert row[8:10] == ["not reached in seed 0", ""]
    assert row_of_contests([record("auto", [1, 1, 0, 0]), *fastai])[8:10] == ["", ""]


def test_the_candidates_on_the_way_are_the_blends_that_the_engine_kept() -> None:
    milestones = Milestones()
    milestones.save("0-head-candidate", {}, {})
    milestones.save("0-head-blend", {"alpha": 1.0}, {})
    milestones.save("2-tail+held-blend", {"alpha": 0.9}, {})
    assert [one.name for one in milestones.passed] == ["head@1", "tail+held@0.9"]
    assert milestones.passed[0].at.cpu <= milestones.passed[1].at.cpu


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_on_two_small_folders_is_scored_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import adaptation

    source = folder(tmp_path / "source", {"cat": range(0, 60, 3), "dog": range(150, 210, 3)})
    target = folder(tmp_path / "target", {"cat": range(1, 60, 3), "eel": [70]}, "webp")
    words = ["--source", str(source), "--target", str(target), "--size", "32", "--epochs", "1",
             "--seeds", "1", "--per-class", "3", "--models", str(tmp_path / "models")]  # fmt: skip
    methods = ["--method", "auto", "--method", "naive", "--method", "lpft"]
    adaptation.main([*words, *methods[:2]])
    first = read_records(tmp_path / "models" / adaptation.RECORDS)
    adaptation.main([*words, *methods, "--resume"])
    then = read_records(tmp_path / "models" / adaptation.RECORDS)
    assert [key[3] for key in then] == ["auto", "naive", "lpft"]
    assert [then[key] for key in first] == list(first.values())
    (auto, naive) = first.values()
    assert auto.milestones[0].name.startswith("head@")
    assert 0 < auto.milestones[0].cpu_seconds <= auto.cpu_seconds
    assert naive.milestones == ()
    assert "| source → target | 3 |" in capsys.readouterr().out
