"""Acclimate's client: adapt a served image classifier, and ask it.

What is named here is the public surface; the errors' tree is in
``acclimate.errors`` and the values that calls return in ``acclimate.resources``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acclimate._terms import TLS
    from acclimate.client import Client
    from acclimate.errors import AcclimateError
    from acclimate.folders import examples_from_folder
    from acclimate.job import Job
    from acclimate.resources import (
        Architecture,
        Example,
        JobState,
        Prediction,
        Preprocessing,
        Role,
        UploadResult,
        WeightsSource,
    )
    from acclimate.sheets import examples_from_sheet

_HOMES = {
    "TLS": "acclimate._terms",
    "AcclimateError": "acclimate.errors",
    "Architecture": "acclimate.resources",
    "Client": "acclimate.client",
    "Example": "acclimate.resources",
    "Job": "acclimate.job",
    "JobState": "acclimate.resources",
    "Prediction": "acclimate.resources",
    "Preprocessing": "acclimate.resources",
    "Role": "acclimate.resources",
    "UploadResult": "acclimate.resources",
    "WeightsSource": "acclimate.resources",
    "examples_from_folder": "acclimate.folders",
    "examples_from_sheet": "acclimate.sheets",
}

__all__ = [
    "TLS",
    "AcclimateError",
    "Architecture",
    "Client",
    "Example",
    "Job",
    "JobState",
    "Prediction",
    "Preprocessing",
    "Role",
    "UploadResult",
    "WeightsSource",
    "examples_from_folder",
    "examples_from_sheet",
]


def __getattr__(name: str) -> object:
    # Lazily (PEP 562): `acclimate --help` and the generated stubs need no gRPC channel.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
