"""The device that trains."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch

from acclimate_service.domain.errors import ProviderUnavailable

# glibc's names for what it maps apart, and for what it keeps of what was freed (mallopt(3)).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAPPED_APART = 32 << 20  # bytes: the most that glibc lets it be
_KEPT = 512 << 20  # bytes: more than a step of training frees


def choose_device(asked: str, *, threads: int, memory_share: float = 1.0) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` takes a CUDA device if there is one. On the CPU, *threads* threads, and memory
    that one step frees is kept for the next. On a CUDA device no more than *memory_share*
    of its memory, and PyTorch's deterministic algorithms. All for the whole process.

    Raises:
        ProviderUnavailable: a CUDA device was asked for by name and is not there.
    """
    torch.set_num_threads(threads)
    _keep_freed_memory()
    available = torch.cuda.is_available()
    if asked == "auto":
        asked = "cuda:0" if available else "cpu"
    if asked.startswith("cuda") and not available:
        raise ProviderUnavailable(f"device {asked!r} was asked for, but torch finds no CUDA device")
    if not asked.startswith("cuda"):
        return torch.device(asked)
    device = torch.device(asked if ":" in asked else "cuda:0")
    if device.index >= torch.cuda.device_count():
        raise ProviderUnavailable(
            f"device {asked!r} was asked for; there are {torch.cuda.device_count()} CUDA devices"
        )
    torch.cuda.set_per_process_memory_fraction(memory_share, device)
    _hold_to_one_order_of_sums()
    return device


def _keep_freed_memory() -> None:
    """Have the allocator keep what a step frees, as the next one asks for as much again.

    Given back, it returns page by page, each zeroed by the kernel: a seventh of the time of a
    step over small images (12,000 pages of them).
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if tune is not None:
        tune(_M_MMAP_THRESHOLD, _MAPPED_APART)
        tune(_M_TRIM_THRESHOLD, _KEPT)


def _hold_to_one_order_of_sums() -> None:
    """Have CUDA's libraries repeat themselves to the bit, so that a seed tells the weights.

    An operation that cannot warns, and is used: a job is worth more than its repetition.
    """
    # Read when cuBLAS is first used: its workspaces are then the same in every run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # only finds bugs, and costs
