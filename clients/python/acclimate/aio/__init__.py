"""The client for services that are asyncio themselves: what they do at run time, awaited.

Predict, stream, upload, adapt, follow, report and promote. Names, waits, repetitions and errors
are those of `acclimate.Client`, which has the rest: what scripts do.
"""

from __future__ import annotations

from acclimate.aio.client import Client
from acclimate.aio.job import Job

__all__ = ["Client", "Job"]
