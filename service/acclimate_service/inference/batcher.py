"""Runs classifiers beside the event loop: a bounded queue before a few threads.

The queue is in order of priority, and among equals in order of arrival. On a CPU every
request runs on its own as soon as a thread is free, and a request of many images is
spread over the threads. On a GPU (``batching``) requests that wait are run together,
also those for several versions on one trunk: the trunk once, then each one's tail.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from acclimate_service.domain.errors import DeadlineTooShort, InputMismatch, Overloaded
from acclimate_service.inference.answer import Answer, Timings, joined
from acclimate_service.inference.classifier import Answers, Classifier, Pixels, check_outputs
from acclimate_service.inference.encoded import Encoded
from acclimate_service.inference.execution import GPU_SIZES
from acclimate_service.inference.sessions import OUTPUTS
from acclimate_service.inference.trunks import Tailed, Trunk
from acclimate_service.inference.work import Work, deliver

URGENT, ORDINARY, PATIENT = PRIORITIES = (1, 2, 3)  # as Triton counts: 1 goes first
SMOOTHING = 0.1  # weight of the newest run in the running mean of seconds an image


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How requests are run together, where that pays.

    Up to ``images`` in a run. While another run is under way a request waits at most
    ``delay`` seconds for company: a device that has nothing to do is never waited for. A
    run is padded to the next of ``buckets``, so that only these shapes, which were
    warmed, are ever seen.
    """

    images: int = GPU_SIZES[-1]
    delay: float = 0.002
    buckets: tuple[int, ...] = GPU_SIZES
    decoders: int = 8  # threads that decode files before they are batched

    def __post_init__(self) -> None:
        if self.buckets[-1] != self.images or list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"buckets {self.buckets} do not rise to {self.images}")

    def bucket(self, images: int) -> int:
        """The size of the run that *images* are padded to."""
        return next(size for size in self.buckets if size >= images)


class Batcher:
    """Executes what is submitted to it. Belongs to one event loop.

    At most ``room`` images are inside at once, waiting or running. ``clock`` counts
    seconds, and deadlines are moments of it.
    """

    def __init__(
        self,
        *,
        threads: int,
        room: int = 256,
        batching: Batching | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._room = room
        self._batching = batching
        self._clock = clock
        # Images by priority; touched on the event loop only.
        self._inside = dict.fromkeys(PRIORITIES, 0)
        self._seconds = 0.0  # running mean of a thread's seconds an image
        self._queue: list[tuple[int, int, Work]] = []  # a heap: priority, number
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._running = 0  # runs under way
        self._decoders = (
            ThreadPoolExecutor(batching.decoders, thread_name_prefix="decode") if batching else None
        )
        # Daemons, so that a process that dies of something else is not kept by them.
        self._threads = [
            threading.Thread(target=self._work, name=f"infer-{index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def inside(self) -> int:
        """Images that wait or run."""
        return sum(self._inside.values())

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of run that a version must be warmed for."""
        return (1,) if self._batching is None else self._batching.buckets

    async def submit(
        self,
        classifier: Classifier,
        images: Pixels | Encoded,
        outputs: Sequence[str] = ("probabilities",),
        *,
        deadline: float | None = None,
        priority: int = ORDINARY,
    ) -> Answer:
        """Run *images* through *classifier* on one of the threads.

        What is more urgent (a smaller *priority*) goes first; what runs already is not
        interrupted. Cancelled, it takes what has not begun out of the queue.

        Raises:
            InputMismatch: the images are not what the classifier takes.
            BadImage: a file cannot be decoded; its place is ``index`` in the metadata.
            Overloaded: no room.
            DeadlineTooShort: the wait would outlast, or has outlasted, *deadline*.
        """
        outputs = tuple(outputs)
        _check(classifier, images, outputs)
        count = len(images)
        self._admit(count, deadline, priority)
        self._inside[priority] += count
        try:
            return await self._run(classifier, images, outputs, deadline, priority)
        finally:
            self._inside[priority] -= count

    async def close(self) -> None:
        """Finish what is inside, take nothing new, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        if self._decoders is not None:
            self._decoders.shutdown()

    # ── on the event loop ────────────────────────────────────────────────────

    def _admit(self, count: int, deadline: float | None, priority: int) -> None:
        inside = self.inside
        # What is less urgent delays no more than it has running.
        ahead = sum(n for level, n in self._inside.items() if level <= priority)
        wait = min(inside, ahead + len(self._threads)) * self._seconds / len(self._threads)
        # A request larger than the room is taken when it would be alone.
        full = inside > 0 and inside + count > self._room
        if full or self._closed:
            raise Overloaded("the queue of images to classify", retry_after=_within(wait))
        if deadline is None:
            return
        left = deadline - self._clock()
        # While a thread is free nothing is predicted: after one slow run, say the first
        # on a GPU, predictions from it would refuse all the runs that could correct them.
        busy = inside >= len(self._threads)
        if left <= 0 or (busy and wait + self._seconds > left):
            raise DeadlineTooShort(
                f"the deadline is in {left:.3f} s and the queue lasts about {wait:.3f} s; allow "
                "more time, or send fewer requests at once",
                seconds_left=f"{left:.3f}",
            )

    async def _run(
        self,
        classifier: Classifier,
        images: Pixels | Encoded,
        outputs: tuple[str, ...],
        deadline: float | None,
        priority: int,
    ) -> Answer:
        loop = asyncio.get_running_loop()
        submitted = time.perf_counter_ns()
        decoded = 0
        if self._decoders is not None and isinstance(images, Encoded):
            images, decoded = await loop.run_in_executor(self._decoders, _decode, images)
        parts = [
            Work(
                classifier=classifier,
                images=part,
                outputs=outputs,
                deadline=deadline,
                priority=priority,
                submitted=submitted + decoded,
                answered=loop.create_future(),
            )
            for part in self._parts(images)
        ]
        with self._changed:
            for part in parts:
                heapq.heappush(self._queue, (part.priority, next(self._numbers), part))
            self._changed.notify(len(parts))
        try:
            answers = [await part.answered for part in parts]
        finally:
            for part in parts:  # those that ended stay so, and an error nobody awaits is not logged
                part.answered.cancel()
        return joined(answers, decoded)

    def _parts(self, images: Pixels | Encoded) -> list[Pixels | Encoded]:
        """A request cut evenly over the threads, or by what a batch can hold."""
        count = len(images)
        if self._batching is None:
            pieces = min(count, len(self._threads))
        else:
            pieces = -(-count // self._batching.images)
        if pieces == 1:
            return [images]
        edges = [count * piece // pieces for piece in range(pieces + 1)]
        return [images[start:stop] for start, stop in pairwise(edges)]

    # ── on the threads ───────────────────────────────────────────────────────

    def _work(self) -> None:
        while batch := self._next():
            started = time.perf_counter_ns()
            try:
                answers = self._answer(batch, started)
            # Whatever it is, it belongs to those who wait for the answer, and not to
            # the thread, which must live on.
            except BaseException as error:  # noqa: BLE001
                deliver(batch, [error] * len(batch))
            else:
                deliver(batch, answers)
            if self._batching is not None:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()
            # Else this frame would keep an unloaded version alive until the next request.
            del batch
            answers = []

    def _next(self) -> list[Work]:
        """What to run now, together; nothing when closed. Blocks until there is something."""
        with self._changed:
            while True:
                while self._queue:
                    if self._begins(first := heapq.heappop(self._queue)[-1]):
                        batch = [first] if self._batching is None else self._gather(first)
                        self._running += 1
                        return batch
                if self._closed:
                    return []
                self._changed.wait()

    def _begins(self, work: Work) -> bool:
        """Whether somebody still waits for *work* and it is still in time."""
        if work.answered.cancelled():
            return False
        if work.deadline is not None and self._clock() >= work.deadline:
            deliver([work], [DeadlineTooShort("the deadline passed in the queue")])
            return False
        return True

    def _gather(self, first: Work) -> list[Work]:
        """*first*, and what may run with it: on the same trunk, up to a batch, in order."""
        assert self._batching is not None
        batch, total = [first], len(first.images)
        until = self._clock() + self._batching.delay
        while True:
            passed: list[tuple[int, int, Work]] = []
            while self._queue and total < self._batching.images:
                entry = heapq.heappop(self._queue)
                work = entry[-1]
                fits = total + len(work.images) <= self._batching.images
                if work.classifier.first is not first.classifier.first or not fits:
                    passed.append(entry)
                elif self._begins(work):
                    batch.append(work)
                    total += len(work.images)
            for entry in passed:  # each to its old place
                heapq.heappush(self._queue, entry)
            left = until - self._clock()
            enough = total >= self._batching.images or not self._running
            if enough or left <= 0 or self._closed:
                if self._queue:
                    self._changed.notify()
                return _by_version(batch)
            self._changed.wait(left)

    def _answer(self, batch: list[Work], started: int) -> list[Answer]:
        classifier = batch[0].classifier
        pixels, decoded = [], 0
        for work in batch:
            images = work.images
            if isinstance(images, Encoded):
                images, nanoseconds = _decode(images)
                decoded += nanoseconds
            pixels.append(images)
        names = [name for name in OUTPUTS if any(name in work.outputs for work in batch)]
        count = sum(map(len, pixels))
        began = time.perf_counter_ns()
        padded = self._padded(pixels, count)
        if batch[-1].classifier is classifier:
            runs = [(batch, classifier.run(padded, names))]
        else:
            runs = self._through_one_trunk(batch, padded, names)
        inferred = time.perf_counter_ns() - began
        answers = []
        for works, outputs in runs:
            start = 0
            for work in works:
                stop = start + len(work.images)
                timings = Timings(
                    queue=started - work.submitted,
                    decode=decoded,
                    infer=inferred,
                    runs=(sum(len(one.images) for one in works),) if start == 0 else (),
                )
                rows = {name: outputs[name][start:stop] for name in work.outputs}
                answers.append(Answer(outputs=rows, timings=timings))
                start = stop
        spent = (time.perf_counter_ns() - started) / 1e9 / count
        with self._changed:
            self._seconds += SMOOTHING * (spent - self._seconds) if self._seconds else spent
        return answers

    def _through_one_trunk(
        self, batch: list[Work], padded: Pixels, names: list[str]
    ) -> list[tuple[list[Work], Answers]]:
        """What several versions make of a batch: the trunk once, then each one's tail.

        A tail runs on a size that was warmed, if need be with rows of others beside its own.
        """
        trunk = batch[0].classifier.first
        assert isinstance(trunk, Trunk)
        activations = trunk.run(padded)
        found, start = [], 0
        for classifier, group in itertools.groupby(batch, key=lambda work: work.classifier):
            assert isinstance(classifier, Tailed)
            works = list(group)
            count = sum(len(work.images) for work in works)
            size = self._batching.bucket(count) if self._batching else count
            begin = min(start, len(padded) - size)
            answers = classifier.above(activations, slice(begin, begin + size), names)
            own = slice(start - begin, start - begin + count)
            found.append((works, {name: rows[own] for name, rows in answers.items()}))
            start += count
        return found

    def _padded(self, pixels: list[Pixels], count: int) -> Pixels:
        if self._batching is not None and (more := self._batching.bucket(count) - count):
            pixels = [*pixels, np.zeros((more, *pixels[0].shape[1:]), np.uint8)]
        return pixels[0] if len(pixels) == 1 else np.concatenate(pixels)


def _check(classifier: Classifier, images: Pixels | Encoded, outputs: tuple[str, ...]) -> None:
    if not isinstance(images, Encoded):
        classifier.check(images, outputs)
        return
    check_outputs(outputs)
    if not len(images):
        raise InputMismatch("there is no image in the batch", images=0)
    if images.preprocessing.size != classifier.size:
        raise InputMismatch(
            f"images would be prepared at {images.preprocessing.size} pixels; this version takes "
            f"{classifier.size}",
        )


def _by_version(batch: list[Work]) -> list[Work]:
    """The same, with what is of one version together."""
    order = {work.classifier: place for place, work in reversed(list(enumerate(batch)))}
    return sorted(batch, key=lambda work: order[work.classifier])


def _decode(images: Encoded) -> tuple[Pixels, int]:
    """The pixels, uint8 [N, S, S, 3], and the nanoseconds that they took."""
    started = time.perf_counter_ns()
    return images.pixels(), time.perf_counter_ns() - started


def _within(wait: float) -> float:
    """A wait, in seconds, as it is worth telling a client."""
    return round(min(max(wait, 0.05), 5.0), 2)
