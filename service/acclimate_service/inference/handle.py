"""A version in use: what a request holds while it is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, Self, TypeVar

from acclimate_service.inference.answer import Answer
from acclimate_service.inference.batcher import ORDINARY, Batcher
from acclimate_service.inference.classifier import Classifier, Pixels
from acclimate_service.inference.encoded import Encoded
from acclimate_service.inference.residents import Resident

T = TypeVar("T")


class Handle(Generic[T]):
    """The right to use a version: it stays loaded until the handle is released.

    Use it in a ``with`` statement.
    """

    def __init__(
        self, resident: Resident[T], batcher: Batcher, give_back: Callable[[Resident[T]], None]
    ) -> None:
        self._resident: Resident[T] | None = resident
        self._batcher = batcher
        self._give_back = give_back
        self.version = resident.version

    @property
    def details(self) -> T:
        """What the loader gave beside the classifier."""
        return self._held().loaded[0].details

    @property
    def classifier(self) -> Classifier:
        """The version's session."""
        return self._held().loaded[0].classifier

    async def run(
        self,
        images: Pixels | Encoded,
        outputs: Sequence[str] = ("probabilities",),
        *,
        deadline: float | None = None,
        priority: int = ORDINARY,
        counted: bool = True,
    ) -> Answer:
        """Classify, and count it, unless the server asks itself; see ``Batcher.submit``."""
        if not counted:
            return await self._batcher.submit(
                self.classifier, images, outputs, deadline=deadline, priority=priority
            )
        tally = self._held().tally
        started = time.perf_counter_ns()
        tally.began()
        try:
            answer = await self._batcher.submit(
                self.classifier, images, outputs, deadline=deadline, priority=priority
            )
        except asyncio.CancelledError:
            tally.cancelled(ns=time.perf_counter_ns() - started)
            raise
        except Exception as error:
            tally.failed(error, ns=time.perf_counter_ns() - started)
            raise
        ns = time.perf_counter_ns() - started
        tally.succeeded(len(images), answer.timings, ns=ns, now=time.time())
        return answer

    def encoding(self) -> AbstractContextManager[None]:
        """Surround the writing of an answer, to have it counted."""
        return self._held().tally.encoding()

    def release(self) -> None:
        """Give the version back; a second time does nothing."""
        if self._resident is not None:
            resident, self._resident = self._resident, None
            self._give_back(resident)

    def _held(self) -> Resident[T]:
        if self._resident is None:
            raise RuntimeError(f"the handle of {self.version} was released")
        return self._resident

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
