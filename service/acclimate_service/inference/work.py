"""What waits to be run, and how its outcome gets back to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from acclimate_service.inference.answer import Answer
from acclimate_service.inference.classifier import Classifier, Pixels
from acclimate_service.inference.encoded import Encoded


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """A part of a request that runs as one.

    ``answered`` belongs to its event loop; other threads only look whether it is cancelled.
    """

    classifier: Classifier
    images: Pixels | Encoded
    outputs: tuple[str, ...]
    deadline: float | None
    priority: int
    submitted: int  # perf_counter_ns
    answered: asyncio.Future[Answer]


def deliver(batch: Sequence[Work], outcomes: Sequence[Answer | BaseException]) -> None:
    """Hand the outcomes of a run to the event loop, all in one step. From any thread."""
    with contextlib.suppress(RuntimeError):  # the loop has ended, and whoever waited with it
        batch[0].answered.get_loop().call_soon_threadsafe(_settle, batch, outcomes)


def _settle(batch: Sequence[Work], outcomes: Sequence[Answer | BaseException]) -> None:
    for work, outcome in zip(batch, outcomes, strict=True):
        if work.answered.done():
            continue  # nobody waits any more
        if isinstance(outcome, Answer):
            work.answered.set_result(outcome)
        else:
            work.answered.set_exception(outcome)
