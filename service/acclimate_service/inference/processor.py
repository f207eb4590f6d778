"""What the processor's integer products do, which decides how int8 files are run.

x86 multiplies unsigned by signed bytes and adds pairs. Without VNNI those sums are cut
at 16 bits, and a quantised layer answers otherwise than it was judged to. onnxruntime
then has a slower way that does not overflow; with VNNI it is not needed, and taken all
the same if asked for (measured: 2.5 times the time).
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

EXACT_PRODUCTS = "session.x64quantprecision"  # onnxruntime's name for the slower way
_VNNI = ("avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni")


def overflows(machine: str, cpuinfo: str) -> bool:
    """Whether fast int8 products may overflow on a *machine* (``platform.machine()``).

    *cpuinfo* is the text of ``/proc/cpuinfo``; without it, an x86 is taken to have no VNNI.
    """
    if machine.lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    flags = {
        word for line in cpuinfo.splitlines() if line.startswith("flags") for word in line.split()
    }
    return not flags.intersection(_VNNI)


@functools.cache
def this_one_overflows() -> bool:
    """Whether fast int8 products may overflow here."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    return overflows(platform.machine(), told)
