from __future__ import annotations

import errno
import itertools
import os
import weakref

import numpy as np
import pytest
import torch
from tests.unit.training import tiny

from acclimate_service.domain.job import EventKind
from acclimate_service.domain.model import Architecture
from acclimate_service.imaging import prepare
from acclimate_service.training.cache import Cache, Shelf
from acclimate_service.training.candidate import Effort
from acclimate_service.training.dataset import Listed
from acclimate_service.training.finetune import tune
from acclimate_service.training.network import build
from acclimate_service.training.run import Cancelled
from acclimate_service.training.strategies import parse
from acclimate_service.training.trunk import CHUNK, Shown, Trunk, fingerprint


def images(count: int = 3) -> tuple[tiny.Pictures, Listed]:
    pictures = tiny.Pictures([count] * tiny.LABELS, seed=0)
    return pictures, Listed(pictures)


def read(trunk: Trunk, source: Listed, boundary: int) -> torch.Tensor:
    return torch.cat(
        list(trunk.read(boundary, [[part] for part in Shown.all(source, [0, 1]).chunks(8)]))
    )


def test_what_is_kept_is_read_without_the_pictures():
    pictures, source = images()
    trunk = tiny.trunk(tiny.network())
    assert trunk.fill(Shown.all(source, [0, 1]), [2])
    pictures.reads = 0
    assert read(trunk, source, 2).shape == (24, 16, 4, 4)
    assert pictures.reads == 0


@pytest.mark.parametrize("boundary", [0, 1, 2, 4])
def test_keeping_changes_nothing_of_what_is_read(boundary):
    _, source = images()
    net = tiny.network()
    kept, streamed = tiny.trunk(net), tiny.trunk(net, budget=0)
    assert kept.fill(Shown.all(source, [0, 1]), [boundary])
    assert not streamed.fill(Shown.all(source, [0, 1]), [boundary])
    assert torch.equal(read(kept, source, boundary), read(streamed, source, boundary))


def test_an_image_gives_the_same_however_many_pass_the_trunk_with_it():
    # For fewer than 16 images oneDNN adds up this network's products in another order.
    lite0 = Architecture(library="timm", name="tf_efficientnet_lite0")
    net, (_, source) = build(lite0, labels=tiny.LABELS, size=64), images(4)
    boundary = len(net.stages) - 1
    together, alone = tiny.trunk(net, budget=0), tiny.trunk(net, budget=0)
    everything, first = Shown.plain(source), np.arange(3)
    (expected,) = together.read(boundary, [[everything]])
    (few,) = alone.read(boundary, [[everything.only(first)]])
    assert torch.equal(few, expected[:3])


def test_several_boundaries_are_filled_from_one_reading():
    pictures, source = images()
    trunk = tiny.trunk(tiny.network())
    trunk.fill(Shown.plain(source), [0, 2, 4])
    assert pictures.reads == len(source)


def test_one_too_small_budget_is_said_and_streamed():
    diary = tiny.Diary()
    _, source = images()
    trunk = tiny.trunk(tiny.network(), budget=100, surroundings=tiny.run(on_event=diary))
    trunk.fill(Shown.plain(source), [1])
    assert "do not fit the trunk cache" in diary.messages(EventKind.DECISION)[0]


def test_training_is_identical_whether_the_trunk_is_kept_or_streamed():
    stock = tiny.target_stock()
    states = []
    for budget in (1 << 28, 0):
        net = tiny.network()
        candidate = tune(
            net, parse("tail"), start={}, stock=stock, trunk=tiny.trunk(net, budget=budget),
            effort=Effort(epochs=2, rate=10), run=tiny.run(),
        )  # fmt: skip
        states.append(candidate.state)
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_a_later_job_finds_what_an_earlier_one_kept_in_the_folder(tmp_path):
    pictures, source = images()
    net = tiny.network()
    shown = Shown.all(source, [0, 1])
    first = tiny.trunk(net, folder=tmp_path)
    first.fill(shown, [2])
    pictures.reads = 0
    second = tiny.trunk(net, folder=tmp_path)
    second.fill(shown, [2])
    assert pictures.reads == 0
    assert torch.equal(read(second, source, 2), read(first, source, 2))


def test_other_weights_below_the_boundary_are_another_trunk():
    one, two = tiny.network(seed=0), tiny.network(seed=1)
    assert fingerprint(one, 2) != fingerprint(two, 2)
    assert fingerprint(one, 0) == fingerprint(two, 0)  # pixels depend on no weight
    with torch.no_grad():
        before = fingerprint(one, 2)
        one.head.weight.add_(1)
    assert fingerprint(one, 2) == before


def test_a_shard_cut_short_is_computed_again(tmp_path):
    pictures, source = images()
    net = tiny.network()
    tiny.trunk(net, folder=tmp_path).fill(Shown.plain(source), [2])
    (rows,) = tmp_path.glob("*/*.rows")
    rows.write_bytes(rows.read_bytes()[:-1])
    pictures.reads = 0
    tiny.trunk(net, folder=tmp_path).fill(Shown.plain(source), [2])
    assert pictures.reads == len(source)


def test_old_shards_make_way_for_new_ones(tmp_path):
    _, source = images()
    row = 16 * 4 * 4 * 2
    for seed in range(3):
        trunk = tiny.trunk(tiny.network(seed=seed), budget=row * 30, folder=tmp_path)
        assert trunk.fill(Shown.all(source, [0, 1]), [2])
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.rows")) <= row * 30


def test_activations_too_large_for_float16_stay_finite():
    _, source = images()
    net = tiny.network()
    with torch.no_grad():
        net.model.get_parameter("block0.1.weight").fill_(1e7)
    trunk = tiny.trunk(net)
    trunk.fill(Shown.plain(source), [2])
    assert torch.isfinite(read(trunk, source, 2)).all()


def test_filling_stops_when_asked_to():
    source = Listed(tiny.Pictures([CHUNK] * tiny.LABELS, seed=0))
    trunk = tiny.trunk(tiny.network(), surroundings=tiny.run(cancelled=lambda: True))
    with pytest.raises(Cancelled):
        trunk.fill(Shown.plain(source), [2])


def test_filling_that_takes_long_says_now_and_then_how_far_it_is():
    source, diary = Listed(tiny.Pictures([CHUNK] * tiny.LABELS, seed=0)), tiny.Diary()
    seconds = itertools.count(step=6)
    run = tiny.run(clock=lambda: float(next(seconds)), on_event=diary)
    assert tiny.trunk(tiny.network(), surroundings=run).fill(Shown.plain(source), [2])
    whole = tiny.LABELS * CHUNK
    assert diary.messages(EventKind.PHASE) == [
        f"trunk: {CHUNK} of {whole} views are computed",
        f"trunk: {3 * CHUNK} of {whole} views are computed",
    ]
    assert diary.events[-1][2] == {"done": 3 * CHUNK, "of": whole}


def test_filling_that_is_quick_says_nothing():
    source, diary = Listed(tiny.Pictures([CHUNK] * tiny.LABELS, seed=0)), tiny.Diary()
    run = tiny.run(clock=lambda: 0.0, on_event=diary)
    assert tiny.trunk(tiny.network(), surroundings=run).fill(Shown.plain(source), [2])
    assert not diary.events


def test_the_plain_view_is_what_serving_prepares():
    pictures, source = images(1)
    trunk = tiny.trunk(tiny.network())
    trunk.fill(Shown.plain(source), [0])
    kept = trunk.shelf(0).read([f"{pictures.contents[0]}:plain"])
    expected = prepare(pictures.read(0), trunk.network.preprocessing)
    assert np.array_equal(kept[0], expected)


def test_rows_written_to_a_folder_do_not_stay_in_memory(tmp_path):
    shelf = Cache(budget=1 << 20, folder=tmp_path).shelf("key", (8,), np.float16)
    rows = np.ones((4, 8), np.float16)
    gone = weakref.ref(rows)
    shelf.write(["a", "b", "c", "d"], rows)
    del rows
    assert gone() is None
    shelf.seal()
    assert shelf.read(["c"]).sum() == 8


def shards(folder):
    return sum(path.stat().st_size for path in folder.glob("*/*.rows"))


def test_the_budget_bounds_the_folder_over_jobs_on_one_trunk_with_ever_new_pictures(tmp_path):
    net = tiny.network()
    row = 16 * 4 * 4 * 2
    for seed in range(4):
        source = Listed(tiny.Pictures([3] * tiny.LABELS, seed=seed))
        trunk = tiny.trunk(net, budget=row * 20, folder=tmp_path)
        assert trunk.fill(Shown.plain(source), [2])
        assert shards(tmp_path) <= row * 20


def test_what_a_job_found_in_the_folder_is_not_removed_for_what_it_adds(tmp_path):
    pictures, source = images()
    net = tiny.network()
    row = 16 * 4 * 4 * 2
    tiny.trunk(net, budget=row * 20, folder=tmp_path).fill(Shown.plain(source), [2])
    trunk = tiny.trunk(net, budget=row * 20, folder=tmp_path)
    trunk.fill(Shown.plain(source), [2])
    other = Listed(tiny.Pictures([3] * tiny.LABELS, seed=1))
    assert not trunk.fill(Shown.plain(other), [2])  # 12 and 12 do not fit: streamed
    pictures.reads = 0
    tiny.trunk(net, budget=row * 20, folder=tmp_path).fill(Shown.plain(source), [2])
    assert pictures.reads == 0


def test_what_a_killed_trainer_left_half_written_is_swept_once_it_is_old(tmp_path):
    (tmp_path / "shelf").mkdir()
    old, young = tmp_path / "shelf/1-1.part", tmp_path / "shelf/2-2.part"
    for path in (old, young):
        path.write_bytes(b"rows")
    os.utime(old, (0, 0))
    Cache(budget=100, folder=tmp_path)
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize("where", ["write", "seal"])
def test_a_full_disk_is_said_and_the_views_are_streamed(tmp_path, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    _, source = images()
    net, diary = tiny.network(), tiny.Diary()
    expected = read(tiny.trunk(net, budget=0), source, 2)
    monkeypatch.setattr(Shelf, where, full)
    trunk = tiny.trunk(net, folder=tmp_path, surroundings=tiny.run(on_event=diary))
    assert not trunk.fill(Shown.all(source, [0, 1]), [2])
    assert "No space left on device" in diary.messages(EventKind.WARNING)[0]
    assert torch.equal(read(trunk, source, 2), expected)


def test_out_of_memory_in_the_trunk_halves_what_passes_it_and_changes_nothing():
    def starve(_module, inputs):
        if len(inputs[0]) > 4:
            raise torch.OutOfMemoryError("no memory left")

    _, source = images()
    net, diary = tiny.network(), tiny.Diary()
    expected = read(tiny.trunk(net), source, 2)
    handle = net.model.get_submodule("stem").register_forward_pre_hook(starve)
    trunk = tiny.trunk(net, surroundings=tiny.run(on_event=diary))
    trunk.fill(Shown.all(source, [0, 1]), [2])
    handle.remove()
    assert torch.allclose(read(trunk, source, 2), expected, atol=1e-3)
    assert diary.messages(EventKind.WARNING)[-1].endswith("in parts of 4")  # 32 -> 16 -> 8 -> 4
