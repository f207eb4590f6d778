"""Work runs beside the event loop, within bounds, and not at all once nobody waits."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acclimate_service.domain.errors import (
    BadImage,
    DeadlineTooShort,
    InputMismatch,
    Overloaded,
)
from acclimate_service.domain.model import Preprocessing
from acclimate_service.imaging import decode_prepared
from acclimate_service.inference.batcher import Batcher, Batching
from acclimate_service.inference.classifier import Answers, Classifier, Pixels
from acclimate_service.inference.encoded import Encoded
from acclimate_service.inference.execution import Execution

Opened = Callable[..., Classifier]
SECONDS = 20  # after which a test hangs


class Gate(Classifier):
    """A classifier whose runs wait until they are let through. Answers with pixel [0, 0, 0]."""

    def __init__(self) -> None:
        self.labels, self.size, self.execution = 1, 8, Execution()
        self.digest, self.precision = "", "fp32"
        self.through = threading.Event()
        self.runs: list[list[int]] = []

    def run(self, images: Pixels, outputs: Any = ("probabilities",)) -> Answers:
        first = images[:, 0, 0, 0]
        self.runs.append(first.tolist())
        assert self.through.wait(SECONDS)
        return {name: first[:, None].astype(np.float32) for name in outputs}


def image(value: int, count: int = 1) -> Pixels:
    return np.full((count, 8, 8, 3), value, np.uint8)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), SECONDS))


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  # what it waits for happens on another thread
        await asyncio.sleep(0.001)


async def outcome(awaitable: Awaitable[Any]) -> Any:
    return (await asyncio.gather(awaitable, return_exceptions=True))[0]


def test_each_request_gets_its_own_answer(classifier: Opened, images: Pixels) -> None:
    version = classifier()
    expected = version.run(images, ("logits",))["logits"]

    async def test() -> None:
        batcher = Batcher(threads=3)
        answers = await asyncio.gather(
            *(batcher.submit(version, images[n % 5 : n % 5 + 1], ("logits",)) for n in range(100))
        )
        for n, answer in enumerate(answers):
            assert np.array_equal(answer.outputs["logits"][0], expected[n % 5])
            assert answer.timings.infer > 0
            assert answer.timings.queue >= 0
        assert batcher.inside == 0
        await batcher.close()

    run(test)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_a_request_of_many_images_is_spread_over_the_threads_in_order(
    threads: int, classifier: Opened, images: Pixels
) -> None:
    version = classifier()

    async def test() -> None:
        batcher = Batcher(threads=threads)
        answer = await batcher.submit(version, images, ("probabilities", "embeddings"))
        for name, rows in version.run(images, ("probabilities", "embeddings")).items():
            assert np.array_equal(answer.outputs[name], rows)
        assert len(answer.timings.runs) == min(threads, 5)
        assert sum(answer.timings.runs) == 5
        await batcher.close()

    run(test)


def test_the_event_loop_turns_while_a_session_runs() -> None:
    async def test() -> None:
        gate, batcher = Gate(), Batcher(threads=1)
        task = asyncio.create_task(batcher.submit(gate, image(1)))
        await until(lambda: gate.runs)
        longest, last = 0.0, time.perf_counter()
        for _ in range(50):
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
        assert not task.done()
        gate.through.set()
        assert (await task).outputs["probabilities"].tolist() == [[1]]
        assert longest < 1
        await batcher.close()

    run(test)


def test_over_its_room_the_queue_refuses_and_says_when_to_come_again() -> None:
    async def test() -> None:
        gate, batcher = Gate(), Batcher(threads=1, room=4)
        taken = [asyncio.create_task(batcher.submit(gate, image(n))) for n in range(4)]
        await until(lambda: gate.runs)
        with pytest.raises(Overloaded) as refused:
            await batcher.submit(gate, image(9))
        assert refused.value.retry_after > 0
        assert batcher.inside == 4
        gate.through.set()
        await asyncio.gather(*taken)
        assert batcher.inside == 0
        await batcher.submit(gate, image(9))
        await batcher.close()

    run(test)


def test_a_request_larger_than_the_room_is_taken_when_it_is_alone() -> None:
    async def test() -> None:
        gate, batcher = Gate(), Batcher(threads=1, room=4)
        gate.through.set()
        answer = await batcher.submit(gate, image(3, count=20))
        assert len(answer.outputs["probabilities"]) == 20
        await batcher.close()

    run(test)


@pytest.mark.parametrize("batching", [None, Batching(images=2, delay=0, buckets=(1, 2))])
def test_what_is_more_urgent_goes_first_and_equals_in_their_order(
    batching: Batching | None,
) -> None:
    async def test() -> None:
        gate, batcher = Gate(), Batcher(threads=1, batching=batching)
        tasks = [asyncio.create_task(batcher.submit(gate, image(100)))]
        await until(lambda: gate.runs)
        for value, priority in ((30, 3), (20, 2), (10, 1), (21, 2), (11, 1), (31, 3)):
            work = batcher.submit(gate, image(value), priority=priority)
            tasks.append(asyncio.create_task(work))
        await until(lambda: batcher.inside == 7)
        gate.through.set()
        await asyncio.gather(*tasks)
        ran = [value for run in gate.runs[1:] for value in run]
        assert ran == [10, 11, 20, 21, 30, 31]
        await batcher.close()

    run(test)


def test_cancelled_work_is_not_run_and_frees_its_room() -> None:
    async def test() -> None:
        gate, batcher = Gate(), Batcher(threads=1, room=3)
        first = asyncio.create_task(batcher.submit(gate, image(1)))
        await until(lambda: gate.runs)
        second = asyncio.create_task(batcher.submit(gate, image(2)))
        third = asyncio.create_task(batcher.submit(gate, image(3)))
        await asyncio.sleep(0.01)
        second.cancel()
        await until(second.done)
        assert batcher.inside == 2
        gate.through.set()
        await asyncio.gather(first, third)
        assert gate.runs == [[1], [3]]
        await batcher.close()

    run(test)


def test_abandoning_running_work_harms_nobody_else() -> None:
    async def test() -> None:
        gate, batcher = Gate(), Batcher(threads=1)
        first = asyncio.create_task(batcher.submit(gate, image(1)))
        await until(lambda: gate.runs)
        first.cancel()
        await until(first.done)
        gate.through.set()
        answer = await batcher.submit(gate, image(2))
        assert answer.outputs["probabilities"].tolist() == [[2]]
        await batcher.close()

    run(test)


def test_a_deadline_that_has_passed_is_refused_at_once() -> None:
    async def test() -> None:
        gate, batcher = Gate(), Batcher(threads=1)
        with pytest.raises(DeadlineTooShort):
            await batcher.submit(gate, image(1), deadline=time.monotonic() - 0.001)
        assert not gate.runs
        await batcher.close()

    run(test)


def test_a_deadline_that_passes_in_the_queue_costs_no_run() -> None:
    async def test() -> None:
        now = 100.0
        gate, batcher = Gate(), Batcher(threads=1, clock=lambda: now)
        first = asyncio.create_task(batcher.submit(gate, image(1)))
        await until(lambda: gate.runs)
        second = asyncio.create_task(batcher.submit(gate, image(2), deadline=101.0))
        await asyncio.sleep(0.01)
        now = 102.0
        gate.through.set()
        await first
        assert isinstance(await outcome(second), DeadlineTooShort)
        assert gate.runs == [[1]]
        await batcher.close()

    run(test)


def test_what_the_queue_would_outlast_is_refused_before_it_waits() -> None:
    async def test() -> None:
        gate, batcher = Gate(), Batcher(threads=1)
        slow = asyncio.create_task(batcher.submit(gate, image(1)))
        await asyncio.sleep(0.3)  # so that an image takes at least that long on average
        gate.through.set()
        await slow
        gate.through.clear()
        busy = [asyncio.create_task(batcher.submit(gate, image(n))) for n in range(5)]
        await until(lambda: len(gate.runs) == 2)
        with pytest.raises(DeadlineTooShort):
            await batcher.submit(gate, image(9), deadline=time.monotonic() + 0.5)
        in_time = asyncio.create_task(
            batcher.submit(gate, image(8), deadline=time.monotonic() + 100)
        )
        # Five are before an ordinary request, but only the one that runs before an urgent one.
        soon = time.monotonic() + 5.5 * batcher._seconds
        with pytest.raises(DeadlineTooShort):
            await batcher.submit(gate, image(9), deadline=soon)
        urgent = asyncio.create_task(batcher.submit(gate, image(6), deadline=soon, priority=1))
        await until(lambda: batcher.inside == 7)
        gate.through.set()
        await asyncio.gather(*busy, in_time, urgent)
        assert gate.runs[2] == [6]
        # An idle thread takes what the mean alone would refuse.
        await batcher.submit(gate, image(7), deadline=time.monotonic() + 0.2)
        await batcher.close()

    run(test)


def test_a_failing_run_fails_its_own_request_only(images: Pixels, classifier: Opened) -> None:
    class Broken(Gate):
        def run(self, images: Pixels, outputs: Any = ("probabilities",)) -> Answers:
            raise MemoryError(f"{outputs} of {len(images)} images")

    async def test() -> None:
        batcher, version = Batcher(threads=1), classifier()
        broken = [outcome(batcher.submit(Broken(), image(1))) for _ in range(5)]
        fine = [batcher.submit(version, images) for _ in range(5)]
        assert all(isinstance(error, MemoryError) for error in await asyncio.gather(*broken))
        assert len(await asyncio.gather(*fine)) == 5
        assert batcher.inside == 0
        await batcher.close()

    run(test)


def test_of_a_request_that_fails_in_two_places_the_first_is_told_and_the_loop_hears_nothing() -> (
    None
):
    class Broken(Gate):
        def run(self, images: Pixels, outputs: Any = ("probabilities",)) -> Answers:
            place = int(images[0, 0, 0, 0])
            self.runs.append([place])
            if place == 0:
                assert self.through.wait(SECONDS)
            raise RuntimeError(f"image {place}: no {outputs}")

    heard: list[object] = []

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: heard.append(told))
        batcher, gate = Batcher(threads=2), Broken()
        both = np.concatenate([image(0), image(1)])
        request = asyncio.create_task(batcher.submit(gate, both))
        await until(lambda: sorted(gate.runs) == [[0], [1]])
        await asyncio.sleep(0.05)  # the second has failed long before the first
        gate.through.set()
        error = await outcome(request)
        assert str(error).startswith("image 0")
        del error, request
        gc.collect()
        await batcher.close()

    run(test)
    assert heard == []


def test_what_a_version_does_not_take_never_enters_the_queue() -> None:
    async def test() -> None:
        gate, batcher = Gate(), Batcher(threads=1)
        wrong: list[Any] = [
            np.zeros((1, 9, 9, 3), np.uint8),
            np.zeros((0, 8, 8, 3), np.uint8),
            Encoded(files=[], preprocessing=Preprocessing(size=16)),
            Encoded(files=[b"x"], preprocessing=Preprocessing(size=16)),
        ]
        for images in wrong:
            with pytest.raises(InputMismatch):
                await batcher.submit(gate, images)
        with pytest.raises(InputMismatch):
            await batcher.submit(gate, image(1), ("nothing",))
        assert not gate.runs
        await batcher.close()

    run(test)


def files(count: int) -> list[bytes]:
    encoded = []
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        encoded.append(file.getvalue())
    return encoded


@pytest.mark.parametrize("batching", [None, Batching(images=4, buckets=(1, 2, 4))])
def test_files_are_decoded_as_training_decodes_them(batching: Batching | None) -> None:
    class Sixteen(Gate):
        def __init__(self) -> None:
            super().__init__()
            self.size = 16
            self.seen: list[Pixels] = []

        def run(self, images: Pixels, outputs: Any = ("probabilities",)) -> Answers:
            self.seen.extend(images)
            return {name: np.zeros((len(images), 1), np.float32) for name in outputs}

    async def test() -> None:
        batcher, version = Batcher(threads=1, batching=batching), Sixteen()
        preprocessing = Preprocessing(size=16)
        answer = await batcher.submit(version, Encoded(files=files(3), preprocessing=preprocessing))
        for seen, file in zip(version.seen, files(3), strict=False):
            assert np.array_equal(seen, decode_prepared(file, preprocessing))
        assert len(answer.outputs["probabilities"]) == 3
        assert answer.timings.decode > 0
        await batcher.close()

    run(test)


@pytest.mark.parametrize("batching", [None, Batching(images=4, buckets=(1, 2, 4))])
def test_a_bad_file_is_named_by_its_place(batching: Batching | None) -> None:
    async def test() -> None:
        batcher, gate = Batcher(threads=2, batching=batching), Gate()
        gate.size = 16
        gate.through.set()
        damaged = [*files(5), b"not an image", *files(2)]
        with pytest.raises(BadImage) as refused:
            await batcher.submit(gate, Encoded(files=damaged, preprocessing=Preprocessing(size=16)))
        assert refused.value.metadata["index"] == "5"
        assert batcher.inside == 0
        await batcher.close()

    run(test)


def test_batching_runs_waiting_requests_of_a_version_together() -> None:
    async def test() -> None:
        batching = Batching(images=8, delay=0, buckets=(1, 4, 8))
        gate, other = Gate(), Gate()
        batcher = Batcher(threads=1, batching=batching)
        first = asyncio.create_task(batcher.submit(gate, image(1)))
        await until(lambda: gate.runs)
        waiting = [
            asyncio.create_task(batcher.submit(version, image(n, count)))
            for version, n, count in [(gate, 2, 2), (other, 3, 1), (gate, 4, 3), (gate, 5, 4)]
        ]
        await asyncio.sleep(0.01)
        gate.through.set()
        other.through.set()
        answers = await asyncio.gather(first, *waiting)
        # 2 + 3 images go together and are padded to 8; 4 more would not have fitted.
        assert gate.runs == [[1], [2, 2, 4, 4, 4, 0, 0, 0], [5, 5, 5, 5]]
        assert other.runs == [[3]]
        values = [answer.outputs["probabilities"][:, 0].tolist() for answer in answers]
        assert values == [[1], [2, 2], [3], [4, 4, 4], [5, 5, 5, 5]]
        assert [answer.timings.runs for answer in answers] == [(1,), (5,), (1,), (), (4,)]
        await batcher.close()

    run(test)


def test_a_request_waits_for_company_only_while_another_run_is_under_way() -> None:
    async def test() -> None:
        gate = Gate()
        batching = Batching(images=2, delay=2 * SECONDS, buckets=(1, 2))
        batcher = Batcher(threads=2, batching=batching)
        first = asyncio.create_task(batcher.submit(gate, image(1)))
        await until(lambda: gate.runs)  # at once, though nothing else came
        second = asyncio.create_task(batcher.submit(gate, image(2)))
        await asyncio.sleep(0.05)
        assert gate.runs == [[1]]
        third = asyncio.create_task(batcher.submit(gate, image(3)))
        await until(lambda: len(gate.runs) == 2)
        assert gate.runs[1] == [2, 3]
        gate.through.set()
        await asyncio.gather(first, second, third)
        await batcher.close()

    run(test)


@pytest.mark.parametrize("delay", [0.01, 2 * SECONDS])
def test_the_wait_for_company_ends_with_its_delay_or_the_run_under_way(delay: float) -> None:
    async def test() -> None:
        gate = Gate()
        batcher = Batcher(threads=2, batching=Batching(images=2, delay=delay, buckets=(1, 2)))
        first = asyncio.create_task(batcher.submit(gate, image(1)))
        await until(lambda: gate.runs)
        second = asyncio.create_task(batcher.submit(gate, image(2)))
        if delay < SECONDS:
            await until(lambda: len(gate.runs) == 2)
        gate.through.set()
        await asyncio.gather(first, second)
        assert gate.runs == [[1], [2]]
        await batcher.close()

    run(test)


def test_a_cancelled_request_leaves_its_batch() -> None:
    async def test() -> None:
        gate = Gate()
        batcher = Batcher(threads=1, batching=Batching(images=4, delay=0, buckets=(1, 2, 4)))
        first = asyncio.create_task(batcher.submit(gate, image(1)))
        await until(lambda: gate.runs)
        rest = [asyncio.create_task(batcher.submit(gate, image(n))) for n in (2, 3, 4)]
        await asyncio.sleep(0.01)
        rest[1].cancel()
        await until(rest[1].done)
        gate.through.set()
        await asyncio.gather(first, rest[0], rest[2])
        assert gate.runs == [[1], [2, 4]]
        await batcher.close()

    run(test)


def test_a_request_larger_than_a_batch_is_cut() -> None:
    async def test() -> None:
        gate = Gate()
        gate.through.set()
        batcher = Batcher(threads=1, batching=Batching(images=4, delay=0, buckets=(1, 2, 4)))
        answer = await batcher.submit(
            gate, np.arange(9, dtype=np.uint8).repeat(192).reshape(-1, 8, 8, 3)
        )
        assert answer.outputs["probabilities"][:, 0].tolist() == list(range(9))
        assert answer.timings.runs == (3, 3, 3)
        await batcher.close()

    run(test)


@pytest.mark.parametrize("buckets", [(1, 2), (4, 1), (1, 1, 4)])
def test_buckets_must_rise_to_the_batch(buckets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="buckets"):
        Batching(images=4, buckets=buckets)


def test_closing_finishes_what_is_inside_and_takes_nothing_new() -> None:
    async def test() -> None:
        gate, batcher = Gate(), Batcher(threads=1)
        tasks = [asyncio.create_task(batcher.submit(gate, image(n))) for n in range(3)]
        await until(lambda: gate.runs)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await batcher.submit(gate, image(9))
        gate.through.set()
        await asyncio.gather(*tasks, closing)
        assert gate.runs == [[0], [1], [2]]

    run(test)
