"""Weights on huge pages, where Linux has them.

A network's weights and the memory it works in are many thousand pages of 4 KiB, and each
inference goes through all of them. To find them again costs a processor time, on a virtual
machine twice: on pages of 2 MiB an EfficientNet-Lite0 answers 4 to 6 % more images a second,
the same to the bit. malloc does not ask for them, and the kernel gives them by itself only
where it is set to ``always``.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGES = Path("/proc/self/pagemap")
SIZE = 2**21
# Of its small pages, that must be in use already: what lacks is added to what the process takes.
FILLED = 7 / 8
_COLLAPSE = 25  # MADV_COLLAPSE, of Linux 6.1
_SMALL = mmap.PAGESIZE
_COUNT = SIZE // _SMALL
_ENTRY = 8  # bytes that /proc/self/pagemap has of a small page
# The highest bit of each entry of a huge page says that it is in memory.
_PRESENT = sum(1 << 8 * _ENTRY * place + 63 for place in range(_COUNT))
# Private memory that can be written and is of no file: malloc's, and large blocks of Python's.
_MEMORY = re.compile(r"(\w+)-(\w+) rw-p \w+ 00:00 0\s*(?:\[heap\]|\[anon:.*\])?")


def gather() -> int:
    """Move what is in memory onto huge pages; the bytes that are on them then.

    It takes a while: not for the event loop. Where the system does not do it, was told never
    to, or does not let this process see its own pages, everything stays as it is.
    """
    try:
        ranges = _ranges() if _wanted() else []
    except OSError:
        return 0
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return sum(
        stop - start for start, stop in ranges if advise(start, stop - start, _COLLAPSE) == 0
    )


def _wanted() -> bool:
    return SIZE > _SMALL and "[never]" not in SETTING.read_text()


def _ranges() -> list[tuple[int, int]]:
    """Those places from and to which address, as one where they lie together."""
    found: list[tuple[int, int]] = []
    for start in _filled():
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], start + SIZE
        else:
            found.append((start, start + SIZE))
    return found


def _filled() -> Iterator[int]:
    """Where a whole huge page is filled well enough, rising within each region."""
    with PAGES.open("rb") as pages:
        for first, last in _regions():
            pages.seek(first // _SMALL * _ENTRY)
            for start in range(first, last, SIZE):
                entries = int.from_bytes(pages.read(_COUNT * _ENTRY), "little")
                if (entries & _PRESENT).bit_count() >= FILLED * _COUNT:
                    yield start


def _regions() -> Iterator[tuple[int, int]]:
    """Memory that may lie on huge pages, as far as these are whole."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        match = _MEMORY.fullmatch(line.strip())
        if match is not None:
            first = -(-int(match[1], 16) // SIZE) * SIZE
            last = int(match[2], 16) // SIZE * SIZE
            if first < last:
                yield first, last
