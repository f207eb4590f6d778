"""How much memory there is, how much of it loaded versions may take, and what one takes."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

from acclimate_service.domain.errors import ProviderUnavailable
from acclimate_service.inference import control_groups
from acclimate_service.inference.execution import Execution

# Of what this process may have: the rest is for requests, the page cache and a worker.
SHARE = 0.5
# Of a GPU's: a worker on it takes up to 0.8 (`ACCLIMATE_GPU_MEMORY_SHARE`).
GPU_SHARE = 0.2
# What a session on a CPU takes, in times its file: with working memory of its own, or with
# a pool that others share. Measured on six architectures at 224 pixels (6 to 106 MiB, two
# threads), none took more, and ResNet-18 half of it.
ALONE, WORKSPACE = 2.5, 2**23
SHARING = 1.2
# What a session on a GPU takes beside its file. Not measured: a batch of 32 at 224 pixels.
GPU_WORKSPACE = 2**27

_UNLIMITED = 2**60  # control groups of version 1 say nearly 2^63


def session_bytes(file_bytes: int, execution: Execution, *, shares: bool = False) -> int:
    """About how much memory the sessions of a file take, its working memory included."""
    if execution.provider == "cpu":
        return int(file_bytes * SHARING if shares else file_bytes * ALONE + WORKSPACE)
    return (file_bytes + GPU_WORKSPACE) * len(execution.sizes)


def usual_budget(execution: Execution) -> int:
    """How many bytes loaded versions may take where no setting says it.

    Raises:
        ProviderUnavailable: the GPU does not tell how much memory it has.
    """
    if execution.provider == "cpu":
        return int(SHARE * limit())
    return int(GPU_SHARE * _gpu_bytes(execution))


def limit() -> int:
    """The bytes that this process may have at most: the machine's, or its control group's."""
    limits = (_number(group, *_LIMITS) for group in control_groups.of("memory"))
    return min([_meminfo("MemTotal"), *(size for size in limits if size is not None)])


def available() -> int:
    """The bytes that it may still take."""
    free = [_meminfo("MemAvailable")]
    for group in control_groups.of("memory"):
        size, used = _number(group, *_LIMITS), _number(group, *_USED)
        if size is not None and used is not None:
            # Cached files count as used, and go when memory is wanted.
            free.append(size - max(used - _reclaimable(group), 0))
    return max(min(free), 0)


def trim() -> None:
    """Give what was freed back to the system, where malloc keeps it (glibc)."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of version 2, and of 1
_USED = ("memory.current", "memory.usage_in_bytes")


def _number(group: Path, *names: str) -> int | None:
    for name in names:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number, and no limit
            found = int((group / name).read_text())
            return found if found < _UNLIMITED else None
    return None


def _reclaimable(group: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(told.get("total_inactive_file", told.get("inactive_file", "0")))
    return 0


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/meminfo has no {name}")


def _gpu_bytes(execution: Execution) -> int:
    """The memory of the GPU, by its driver: the runtime does not tell it."""
    size, device = ctypes.c_size_t(), ctypes.c_int()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        failed = (
            cuda.cuInit(0)
            or cuda.cuDeviceGet(ctypes.byref(device), execution.device)
            or cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        )
        why = f"error {failed}" if failed else ""
    except (OSError, AttributeError) as error:
        why = str(error)
    if why:
        raise ProviderUnavailable(
            f"the driver does not tell how much memory the GPU has ({why}); set "
            "ACCLIMATE_RESIDENT_MIB",
            provider=execution.provider,
        )
    return size.value
