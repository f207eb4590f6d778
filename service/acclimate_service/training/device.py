"""The device that trains."""

from __future__ import annotations

import torch

from acclimate_service.domain.errors import ProviderUnavailable


def choose_device(asked: str, *, threads: int) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` takes a CUDA device if there is one. On the CPU, *threads* threads.

    Raises:
        ProviderUnavailable: a CUDA device was asked for by name and is not there.
    """
    torch.set_num_threads(threads)
    available = torch.cuda.is_available()
    if asked == "auto":
        return torch.device("cuda:0" if available else "cpu")
    if asked.startswith("cuda") and not available:
        raise ProviderUnavailable(f"device {asked!r} was asked for, but torch finds no CUDA device")
    if not asked.startswith("cuda"):
        return torch.device(asked)
    device = torch.device(asked if ":" in asked else "cuda:0")
    if device.index >= torch.cuda.device_count():
        raise ProviderUnavailable(
            f"device {asked!r} was asked for; there are {torch.cuda.device_count()} CUDA devices"
        )
    return device
