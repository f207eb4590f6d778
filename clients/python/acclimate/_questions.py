"""The requests of a stream of predictions: read ahead a little, and asked again if need be."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from acclimate.v1 import inference_pb2

STREAM_IN_FLIGHT = 32  # requests


class Questions:
    """What a stream asks, at most ``STREAM_IN_FLIGHT`` of it unanswered.

    Each attempt's call reads the questions on a thread of its own, from the first that has no
    answer. A thread whose attempt is over may still wait for the caller's iterable: what it
    then gets is kept for the attempt that goes on.
    """

    def __init__(self, requests: Iterator[inference_pb2.PredictRequest]) -> None:
        self._requests = requests
        self._changed = threading.Condition()
        self._unanswered: deque[inference_pb2.PredictRequest] = deque()
        self._answered = 0
        self._reading = False  # one thread at a time is in the caller's iterable
        self._all_read = False
        self._attempt = 0
        self.error: Exception | None = None  # of the caller's iterable

    @property
    def waiting(self) -> bool:
        """Whether a question was asked that has no answer."""
        with self._changed:
            return bool(self._unanswered)

    @property
    def done(self) -> bool:
        """Whether every question has its answer."""
        with self._changed:
            return self._all_read and not self._unanswered

    def again(self) -> Iterator[inference_pb2.PredictRequest]:
        """The questions that have no answer and all that follow; earlier attempts end."""
        with self._changed:
            self._attempt += 1
            self._changed.notify_all()
            return self._asked(self._attempt, self._answered)

    def answered(self) -> None:
        """The oldest question was answered: there is room for another."""
        with self._changed:
            self._unanswered.popleft()
            self._answered += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Read no further."""
        with self._changed:
            self._attempt = -1
            self._changed.notify_all()

    def _asked(self, attempt: int, place: int) -> Iterator[inference_pb2.PredictRequest]:
        while (question := self._at(place, attempt)) is not None:
            yield question
            place += 1

    def _at(self, place: int, attempt: int) -> inference_pb2.PredictRequest | None:
        """The question at a *place*, once due; None after the last, and for an old *attempt*."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_due(place, attempt))
                if attempt != self._attempt:
                    return None
                if place - self._answered < len(self._unanswered):
                    return self._unanswered[place - self._answered]
                if self._all_read:
                    return None
                self._reading = True
            self._read()

    def _is_due(self, place: int, attempt: int) -> bool:
        room = len(self._unanswered) < STREAM_IN_FLIGHT and not self._reading
        there = place - self._answered < len(self._unanswered)
        return attempt != self._attempt or there or self._all_read or room

    def _read(self) -> None:
        """Take the next question from the caller's iterable, however long that takes."""
        found = None
        try:
            found = next(self._requests, None)
        # Whatever it raises is the caller's to see: gRPC, on whose thread this runs, would
        # swallow it.
        except Exception as error:  # noqa: BLE001
            self.error = error
        with self._changed:
            self._reading = False
            if found is None:
                self._all_read = True
            else:
                self._unanswered.append(found)
            self._changed.notify_all()
