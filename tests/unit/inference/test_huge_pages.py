from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from acclimate_service.inference import huge_pages

BLOCK = 8 * huge_pages.SIZE


def collapses() -> bool:
    """Whether this system puts memory onto huge pages when it is told to: Linux from 6.1."""
    if not huge_pages.SETTING.exists() or not huge_pages._wanted():
        return False
    with mmap.mmap(-1, 2 * huge_pages.SIZE, flags=mmap.MAP_PRIVATE) as block:
        block.write(b"x" * len(block))
        first = -(-address(block) // huge_pages.SIZE) * huge_pages.SIZE
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        return bool(advise(first, huge_pages.SIZE, 25) == 0)


def address(block: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(block))


def on_huge_pages(block: mmap.mmap) -> int:
    """The bytes of the mapping around *block* that are on huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and ":" not in head:
            start, stop = (int(edge, 16) for edge in head.split("-"))
            inside = start <= address(block) < stop
        elif inside and head == "AnonHugePages:":
            return int(line.split()[1]) * 1024
    raise AssertionError("the block is nowhere")


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> mmap.mmap:
    if not collapses():
        pytest.skip("this system gives no huge pages")
    block = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE)
    # Of what this process has in use, the block alone: the rest is of torch and of other tests,
    # and takes many seconds to move.
    regions = huge_pages._regions

    def of_the_block() -> Iterator[tuple[int, int]]:
        start = -(-address(block) // huge_pages.SIZE) * huge_pages.SIZE
        stop = (address(block) + BLOCK) // huge_pages.SIZE * huge_pages.SIZE
        for first, last in regions():
            if first < stop and start < last:
                yield max(first, start), min(last, stop)

    monkeypatch.setattr(huge_pages, "PAUSE", 0)
    monkeypatch.setattr(huge_pages, "_regions", of_the_block)
    return block


def test_memory_in_use_goes_onto_huge_pages_and_keeps_its_content(block: mmap.mmap) -> None:
    content = bytes(range(256)) * (BLOCK // 256)
    block.write(content)
    before = on_huge_pages(block)
    assert huge_pages.gather() >= BLOCK - 2 * huge_pages.SIZE  # whole ones of it
    assert on_huge_pages(block) > before
    assert block[:] == content


def test_no_more_is_moved_once_it_is_told_to_stop(block: mmap.mmap) -> None:
    block.write(b"x" * BLOCK)
    told = iter([True, True])
    assert 0 < huge_pages.gather(lambda: next(told, False)) <= 2 * huge_pages.SIZE


def test_memory_of_which_little_is_in_use_is_not_filled_up(block: mmap.mmap) -> None:
    for start in range(0, BLOCK, 4 * mmap.PAGESIZE):
        block[start] = 1
    before = on_huge_pages(block)
    huge_pages.gather()
    assert on_huge_pages(block) == before


@pytest.mark.parametrize("setting", ["always madvise [never]\n", None])
def test_a_system_that_was_told_never_to_or_cannot_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    told = tmp_path / "enabled"
    if setting is not None:
        told.write_text(setting)
    monkeypatch.setattr(huge_pages, "SETTING", told)
    assert huge_pages.gather() == 0


def test_a_process_that_may_not_see_its_own_pages_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "PAGES", tmp_path / "pagemap")
    assert huge_pages.gather() == 0


@pytest.mark.parametrize(
    ("error", "tried"), [(errno.ENOMEM, 1), (errno.EBUSY, 1), (errno.EINVAL, 3), (errno.EAGAIN, 3)]
)
def test_where_no_huge_page_is_left_the_system_does_not_look_for_thousands(
    error: int, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def collapse(start: int) -> int:
        asked.append(start)
        return error

    monkeypatch.setattr(huge_pages, "_wanted", lambda: True)
    monkeypatch.setattr(huge_pages, "_filled", lambda: iter(range(3)))
    monkeypatch.setattr(huge_pages, "_collapse", collapse)
    assert huge_pages.gather() == 0
    assert len(asked) == tried
