"""Weights on huge pages, where Linux has them.

A network's weights and the memory it works in are many thousand pages of 4 KiB, and each
inference goes through all of them. To find them again costs a processor time, on a virtual
machine twice: on pages of 2 MiB an EfficientNet-Lite0 answers 4 to 6 % more images a second,
the same to the bit. malloc does not ask for them, and the kernel gives them by itself only
where it is set to ``always``.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGES = Path("/proc/self/pagemap")
SIZE = 2**21
# Of its small pages, that must be in use already: what lacks is added to what the process takes.
FILLED = 7 / 8
PAUSE = 0.05  # seconds
AT_ONCE = 0.0005  # seconds, within which none is moved that is not on one already
_COLLAPSE = 25  # MADV_COLLAPSE, of Linux 6.1
# Of its errors: memory is in too small pieces, or the control group may have no more.
_NONE_TO_BE_HAD = (errno.ENOMEM, errno.EBUSY)
_SMALL = mmap.PAGESIZE
_COUNT = SIZE // _SMALL
_ENTRY = 8  # bytes that /proc/self/pagemap has of a small page
# The highest bit of each entry of a huge page says that it is in memory.
_PRESENT = sum(1 << 8 * _ENTRY * place + 63 for place in range(_COUNT))
# Private memory that can be written and is of no file: malloc's, and large blocks of Python's.
_MEMORY = re.compile(r"(\w+)-(\w+) rw-p \w+ 00:00 0\s*(?:\[heap\]|\[anon:.*\])?")


def gather(going: Callable[[], bool] = lambda: True) -> int:
    """Move what is in memory onto huge pages while *going*; the bytes that are on them then.

    It takes seconds: not for the event loop. While a page is moved, who needs what lies on it
    waits; so one at a time, with a pause after each (all at once held answers up by 160 ms).

    Where the system does not do it, was told never to, or does not let this process see
    its own pages, everything stays as it is. Where it has no huge page left, the rest stays:
    it looks for one long, and would for each of the thousands.
    """
    try:
        places = list(_filled()) if _wanted() else []
    except OSError:
        return 0
    moved = 0
    for start in places:
        if not going():
            break
        began = time.monotonic()
        failed = _collapse(start)
        if failed in _NONE_TO_BE_HAD:
            break
        moved += 0 if failed else SIZE
        if time.monotonic() - began > AT_ONCE:
            time.sleep(PAUSE)
    return moved


def _collapse(start: int) -> int:
    """Move what lies at an address onto one huge page; the error's number, 0 if there is none."""
    return ctypes.get_errno() if _advise()(start, SIZE, _COLLAPSE) else 0


@functools.cache
def _advise() -> Callable[[int, int, int], int]:
    """The system's ``madvise``; not looked for where nothing is to be moved."""
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return cast(Callable[[int, int, int], int], advise)


def _wanted() -> bool:
    return SIZE > _SMALL and "[never]" not in SETTING.read_text()


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
