"""The requests of a stream of predictions: read ahead a little, and asked again if need be."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from acclimate._questions import STREAM_IN_FLIGHT
from acclimate.v1 import inference_pb2


class Questions:
    """What a stream asks, at most ``STREAM_IN_FLIGHT`` of it unanswered.

    One task reads the caller's images, whatever becomes of a connection; each attempt's call
    asks from the first question that has no answer.
    """

    def __init__(self, requests: AsyncIterator[inference_pb2.PredictRequest]) -> None:
        self._requests = requests
        self._unanswered: deque[inference_pb2.PredictRequest] = deque()
        self._answered = 0
        self._all_read = False
        self._attempt = 0
        self._changed = asyncio.Event()
        self.error: Exception | None = None  # of the caller's iterable
        self._reader = asyncio.create_task(self._read())

    @property
    def waiting(self) -> bool:
        """Whether a question was asked that has no answer."""
        return bool(self._unanswered)

    @property
    def done(self) -> bool:
        """Whether every question has its answer."""
        return self._all_read and not self._unanswered

    def again(self) -> AsyncIterator[inference_pb2.PredictRequest]:
        """The questions that have no answer and all that follow; earlier attempts end."""
        self._attempt += 1
        self._tell()
        return self._asked(self._attempt, self._answered)

    def answered(self) -> None:
        """The oldest question was answered: there is room for another."""
        self._unanswered.popleft()
        self._answered += 1
        self._tell()

    async def stop(self) -> None:
        """Read no further."""
        self._attempt = -1
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _asked(self, attempt: int, place: int) -> AsyncIterator[inference_pb2.PredictRequest]:
        while attempt == self._attempt:
            if place - self._answered < len(self._unanswered):
                yield self._unanswered[place - self._answered]
                place += 1
            elif self._all_read:
                return
            else:
                await self._changed.wait()

    async def _read(self) -> None:
        try:
            async for request in self._requests:
                self._unanswered.append(request)
                self._tell()
                while len(self._unanswered) >= STREAM_IN_FLIGHT:
                    await self._changed.wait()
        # Whatever it raises is the caller's to see; nobody awaits this task.
        except Exception as error:  # noqa: BLE001
            self.error = error
        finally:
            self._all_read = True
            self._tell()

    def _tell(self) -> None:
        """Wake whoever waits; who waits after that waits for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()
