"""Versions come and go under load, and no request fails for it."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acclimate_service.domain.errors import NotReady, Overloaded, VersionInUse, VersionUnloadable
from acclimate_service.inference import loading, memory
from acclimate_service.inference import pool as pool_module
from acclimate_service.inference.batcher import Batcher, Batching
from acclimate_service.inference.classifier import Answers, Classifier, Pixels
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.pool import Pool
from acclimate_service.inference.residents import Footprint, Loaded

Opened = Callable[..., Classifier]
Loader = Callable[[], Loaded[int]]
SECONDS = 60
ONE = Footprint(own=1)
MEBIBYTE = 2**20


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), SECONDS))


@asynccontextmanager
async def pool_of(
    *, threads: int = 2, room: int = 4096, **options: Any
) -> AsyncIterator[Pool[int]]:
    batcher = Batcher(threads=threads, room=room)
    pool = Pool[int](batcher, **options)
    try:
        yield pool
    finally:
        await pool.close()
        await batcher.close()


@pytest.fixture
def loader(classifier: Opened) -> Callable[[int], Loader]:
    return lambda seed: lambda: Loaded(classifier=classifier(seed), details=seed)


def loaded(pool: Pool[int]) -> list[str]:
    return sorted(version.version for version in pool.resident() if not version.loading)


class Slow(Classifier):
    """A classifier whose runs after the warming wait until they are let through."""

    def __init__(self) -> None:
        self.labels, self.size, self.execution = 4, 8, Execution()
        self.digest, self.precision = "", "fp32"
        self.through = threading.Event()
        self.running = threading.Event()

    def warm(self, batches: Any = (1,)) -> None:
        assert batches

    def run(self, images: Pixels, outputs: Any = ("probabilities",)) -> Answers:
        self.running.set()
        assert self.through.wait(SECONDS)
        return {name: np.zeros((len(images), 4), np.float32) for name in outputs}


def test_fifty_swaps_under_eight_clients_fail_no_request_and_mix_no_answer(
    loader: Callable[[int], Loader], classifier: Opened, images: Pixels
) -> None:
    expected = {
        f"versions/{seed}": classifier(seed).run(images)["probabilities"] for seed in range(51)
    }
    answers: list[tuple[str, int]] = []

    async def client(pool: Pool[int], done: asyncio.Event, seed: int) -> None:
        choice = random.Random(seed)
        while not done.is_set():
            count = choice.randint(1, 5)
            with pool.acquire("production") as handle:
                answer = await handle.run(images[:count])
                assert f"versions/{handle.details}" == handle.version
            found = answer.outputs["probabilities"]
            assert np.array_equal(found, expected[handle.version][:count]), handle.version
            answers.append((handle.version, count))

    async def test() -> None:
        async with pool_of() as pool:
            with await pool.ensure("versions/0", loader(0)):
                pool.point("production", "versions/0")
            done = asyncio.Event()
            async with asyncio.TaskGroup() as clients:
                for seed in range(8):
                    clients.create_task(client(pool, done, seed))
                for seed in range(1, 51):
                    with await pool.ensure(f"versions/{seed}", loader(seed)):
                        previous = pool.point("production", f"versions/{seed}")
                    assert previous == f"versions/{seed - 1}"
                    await asyncio.sleep(0.005)
                done.set()
            assert loaded(pool) == ["versions/49", "versions/50"]
            counted = pool.statistics()
            assert sum(one.success.count for one in counted.values()) == len(answers)
            assert sum(one.inferences for one in counted.values()) == sum(n for _, n in answers)
            assert not any(one.failure.count or one.cancelled.count for one in counted.values())

    run(test)
    assert len({version for version, _ in answers}) > 25
    assert len(answers) > 200


@pytest.mark.parametrize("stage", ["open", "warm"])
def test_a_load_that_fails_leaves_the_old_version_serving(
    stage: str, loader: Callable[[int], Loader], images: Pixels
) -> None:
    class Cold(Slow):
        def warm(self, batches: Any = (1,)) -> None:
            raise VersionUnloadable(f"no answer to {batches}")

    def broken() -> Loaded[int]:
        if stage == "open":
            raise VersionUnloadable("not a model")
        return Loaded(classifier=Cold(), details=0)

    async def test() -> None:
        async with pool_of() as pool:
            with await pool.ensure("old", loader(0)):
                pool.point("production", "old")
            for _ in range(3):
                with pytest.raises(VersionUnloadable):
                    await pool.ensure("new", broken)
                with pytest.raises(NotReady):
                    pool.point("production", "new")
            assert loaded(pool) == ["old"]
            with pool.acquire("production") as handle:
                assert handle.version == "old"
                await handle.run(images)
            with await pool.ensure("new", loader(1)) as handle:  # a later load may succeed
                assert handle.details == 1

    run(test)


def test_loads_of_one_version_at_the_same_time_are_one_load(classifier: Opened) -> None:
    loads: list[int] = []

    def load() -> Loaded[int]:
        loads.append(1)
        return Loaded(classifier=classifier(), details=len(loads))

    async def test() -> None:
        async with pool_of() as pool:
            handles = await asyncio.gather(*(pool.ensure("one", load) for _ in range(20)))
            assert {handle.details for handle in handles} == {1}
            assert pool.resident()[0].references == 20
            for handle in handles:
                handle.release()
                handle.release()  # a second time does nothing
            assert pool.resident()[0].references == 0

    run(test)
    assert loads == [1]


def test_a_caller_who_gives_up_does_not_stop_a_load_that_others_wait_for(
    classifier: Opened,
) -> None:
    may = threading.Event()

    def load() -> Loaded[int]:
        assert may.wait(SECONDS)
        return Loaded(classifier=classifier(), details=7)

    async def test() -> None:
        async with pool_of() as pool:
            first = asyncio.create_task(pool.ensure("one", load))
            second = asyncio.create_task(pool.ensure("one", load))
            await asyncio.sleep(0.01)
            assert [version.loading for version in pool.resident()] == [True]
            first.cancel()
            await asyncio.sleep(0.01)
            may.set()
            with await second as handle:
                assert handle.details == 7

    run(test)


def test_the_event_loop_turns_while_a_version_loads() -> None:
    may = threading.Event()

    def load() -> Loaded[int]:
        assert may.wait(SECONDS)
        return Loaded(classifier=Slow(), details=0)

    async def test() -> None:
        async with pool_of() as pool:
            task = asyncio.create_task(pool.ensure("one", load))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not task.done()
            may.set()
            (await task).release()

    run(test)


def test_a_request_in_flight_ends_on_the_version_it_began_on(
    loader: Callable[[int], Loader],
) -> None:
    slow = Slow()
    reference = weakref.ref(slow)

    async def test() -> None:
        nonlocal slow
        async with pool_of(spare=0) as pool:
            with await pool.ensure("old", lambda: Loaded(classifier=slow, details=0)):
                pool.point("production", "old")

            async def request() -> str:
                with pool.acquire("production") as handle:
                    await handle.run(np.zeros((1, 8, 8, 3), np.uint8))
                return handle.version

            task = asyncio.create_task(request())
            await asyncio.to_thread(slow.running.wait)
            with await pool.ensure("new", loader(1)):
                pool.point("production", "new")
            assert loaded(pool) == ["new", "old"]
            with pool.acquire("production") as handle:
                assert handle.version == "new"
            slow.through.set()
            assert await task == "old"
            assert loaded(pool) == ["new"]

    run(test)
    del slow
    gc.collect()
    assert reference() is None


def test_of_the_versions_no_alias_needs_only_the_spare_ones_stay(
    loader: Callable[[int], Loader],
) -> None:
    async def test() -> None:
        async with pool_of(spare=2) as pool:
            with await pool.ensure("v0", loader(0)):
                pool.point("production", "v0")
            for seed in range(1, 6):
                (await pool.ensure(f"v{seed}", loader(seed))).release()
            assert loaded(pool) == ["v0", "v4", "v5"]
            pool.acquire("v4").release()  # so that v5 is the longest unused
            (await pool.ensure("v6", loader(6))).release()
            assert loaded(pool) == ["v0", "v4", "v6"]
            assert pool.unpoint("production") == "v0"
            assert loaded(pool) == ["v4", "v6"]

    run(test)


def test_what_was_unused_longest_makes_room_and_is_loaded_again_when_it_is_needed(
    loader: Callable[[int], Loader],
) -> None:
    async def test() -> None:
        async with pool_of(budget=2) as pool:
            for seed, alias in enumerate("abc"):
                with await pool.ensure(alias, loader(seed), footprint=ONE):
                    pool.point(f"of-{alias}", alias)
            assert loaded(pool) == ["b", "c"]
            assert pool.aliases() == {"of-a": "a", "of-b": "b", "of-c": "c"}
            with pytest.raises(NotReady):
                pool.acquire("of-a")
            assert not pool.fits(ONE)
            with await pool.ensure("a", loader(0), footprint=ONE, prompt=True) as handle:
                assert handle.details == 0
            assert loaded(pool) == ["a", "c"]
            pool.acquire("of-a").release()

    run(test)


def test_a_load_waits_until_requests_let_go_of_the_room_that_it_needs(
    loader: Callable[[int], Loader],
) -> None:
    async def test() -> None:
        async with pool_of(budget=2) as pool:
            held = [await pool.ensure(name, loader(0), footprint=ONE) for name in "ab"]
            waiting = asyncio.create_task(pool.ensure("c", loader(2), footprint=ONE))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            held[0].release()
            (await waiting).release()
            assert loaded(pool) == ["b", "c"]
            held[1].release()

    run(test)


def test_a_load_that_waits_for_room_in_vain_is_refused_and_unloads_nothing(
    loader: Callable[[int], Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "ROOM_SECONDS", 0.05)

    async def test() -> None:
        async with pool_of(budget=3) as pool:
            held = [await pool.ensure(name, loader(0), footprint=ONE) for name in "ab"]
            (await pool.ensure("idle", loader(1), footprint=ONE)).release()
            with pytest.raises(Overloaded, match="ACCLIMATE_RESIDENT_MIB"):
                await pool.ensure("c", loader(2), footprint=Footprint(own=2))
            assert loaded(pool) == ["a", "b", "idle"]
            for handle in held:
                handle.release()

    run(test)


def test_a_load_that_nobody_waits_for_any_more_takes_no_room(
    loader: Callable[[int], Loader],
) -> None:
    async def test() -> None:
        async with pool_of(budget=1) as pool:
            held = await pool.ensure("a", loader(0), footprint=ONE)
            pool.point("production", "a")
            waiting = asyncio.create_task(pool.ensure("b", loader(1), footprint=ONE))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.sleep(0.01)
            held.release()
            await asyncio.sleep(0.05)
            assert [one.version for one in pool.resident()] == ["a"]

    run(test)


def test_a_load_that_is_given_up_makes_way_for_one_that_there_is_room_for(
    loader: Callable[[int], Loader],
) -> None:
    async def test() -> None:
        async with pool_of(budget=3) as pool:
            held = await pool.ensure("a", loader(0), footprint=Footprint(own=2))
            (await pool.ensure("idle", loader(0), footprint=ONE)).release()
            large = asyncio.create_task(pool.ensure("b", loader(1), footprint=Footprint(own=2)))
            await asyncio.sleep(0.01)
            small = asyncio.create_task(pool.ensure("c", loader(2), footprint=ONE))
            await asyncio.sleep(0.01)
            large.cancel()
            async with asyncio.timeout(pool_module.ROOM_SECONDS / 2):
                (await small).release()
            with pytest.raises(asyncio.CancelledError):
                await large
            held.release()

    run(test)


def test_what_fits_beside_all_there_is_does_not_wait_behind_a_load_that_has_no_room(
    loader: Callable[[int], Loader],
) -> None:
    async def test() -> None:
        async with pool_of(budget=3) as pool:
            held = await pool.ensure("a", loader(0), footprint=Footprint(own=2))
            large = asyncio.create_task(pool.ensure("b", loader(1), footprint=Footprint(own=2)))
            await asyncio.sleep(0.01)
            (await pool.ensure("c", loader(2), footprint=ONE)).release()
            assert not large.done()
            held.release()
            (await large).release()

    run(test)


def test_a_modest_load_puts_out_nothing_that_was_asked_for_lately_and_waits_for_nobody(
    loader: Callable[[int], Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with pool_of(budget=2) as pool:
            with await pool.ensure("a", loader(0), footprint=ONE):
                pool.point("production", "a")
            (await pool.ensure("spare", loader(1), footprint=ONE)).release()
            pool.point("trial", "new", cold=True, trial=True)
            (await pool.ensure("new", loader(2), footprint=ONE, modest=True)).release()
            assert loaded(pool) == ["a", "new"]
            with pytest.raises(Overloaded):
                await pool.ensure("newer", loader(3), footprint=ONE, modest=True)
            assert loaded(pool) == ["a", "new"]
            monkeypatch.setattr(pool_module, "LIVE_SECONDS", 0)
            (await pool.ensure("newer", loader(3), footprint=ONE, modest=True)).release()
            assert loaded(pool) == ["a", "newer"]  # what was only tried went first

    run(test)


def test_what_is_tried_makes_room_before_what_aliases_point_at(
    loader: Callable[[int], Loader],
) -> None:
    async def test() -> None:
        async with pool_of(budget=2) as pool:
            with await pool.ensure("a", loader(0), footprint=ONE):
                pool.point("production", "a")
            (await pool.ensure("new", loader(1), footprint=ONE)).release()
            pool.point("trial", "new", cold=True, trial=True)
            pool.acquire("trial").release()  # later than production was asked for
            (await pool.ensure("b", loader(2), footprint=ONE)).release()
            assert loaded(pool) == ["a", "b"]

    run(test)


@pytest.mark.parametrize("prompt", [False, True])
def test_a_load_that_hangs_holds_up_no_other_and_is_given_up_at_the_end(
    prompt: bool, loader: Callable[[int], Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "CLOSE_SECONDS", 0.05)
    may = threading.Event()

    def hang() -> Loaded[int]:
        may.wait(SECONDS)
        raise VersionUnloadable("too late")

    async def test() -> None:
        batcher = Batcher(threads=1)
        pool = Pool[int](batcher)
        hanging = asyncio.create_task(pool.ensure("slow", hang, prompt=prompt))
        await asyncio.sleep(0.01)
        (await pool.ensure("quick", loader(1), prompt=prompt)).release()
        assert not await pool.close()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        may.set()
        await batcher.close()

    run(test)


def test_many_versions_in_a_memory_for_two_answer_everybody(
    loader: Callable[[int], Loader], images: Pixels
) -> None:
    most = 0

    async def client(pool: Pool[int], number: int) -> None:
        nonlocal most
        choice = random.Random(number)
        for _ in range(30):
            seed = choice.randrange(7)
            with await pool.ensure(f"v{seed}", loader(seed), footprint=ONE, prompt=True) as handle:
                assert handle.details == seed
                most = max(most, len(loaded(pool)))
                await handle.run(images[:1])

    async def test() -> None:
        async with pool_of(budget=2) as pool:
            for seed in range(7):
                pool.point(f"alias-{seed}", f"v{seed}", cold=True)
            await asyncio.gather(*(client(pool, number) for number in range(16)))

    run(test)
    assert most == 2


def test_two_aliases_keep_their_version_until_both_have_moved(
    loader: Callable[[int], Loader],
) -> None:
    async def test() -> None:
        async with pool_of(spare=0) as pool:
            with await pool.ensure("a", loader(0)), await pool.ensure("b", loader(1)):
                pool.point("production", "a")
                pool.point("canary", "a")
                assert pool.resident()[0].aliases == ("canary", "production")
                pool.point("production", "b")
            assert loaded(pool) == ["a", "b"]
            pool.point("canary", "b")
            assert loaded(pool) == ["b"]
            assert pool.aliases() == {"production": "b", "canary": "b"}

    run(test)


def test_unloading_waits_for_the_last_request_and_takes_no_new_one() -> None:
    async def test() -> None:
        slow = Slow()
        async with pool_of() as pool:
            with await pool.ensure("a", lambda: Loaded(classifier=slow, details=0)) as handle:
                task = asyncio.create_task(handle.run(np.zeros((1, 8, 8, 3), np.uint8)))
                unloading = asyncio.create_task(pool.unload("a"))
                await asyncio.sleep(0.01)
                assert pool.resident()[0].leaving
                with pytest.raises(NotReady):
                    pool.acquire("a")
                with pytest.raises(NotReady):
                    pool.point("production", "a")
                slow.through.set()
                await task
                assert not unloading.done()
            await unloading
            assert not pool.resident()
            await pool.unload("a")  # it is out already

    run(test)


def test_a_version_that_is_ensured_while_it_leaves_stays(loader: Callable[[int], Loader]) -> None:
    async def test() -> None:
        async with pool_of() as pool:
            with await pool.ensure("a", loader(0)):
                unloading = asyncio.create_task(pool.unload("a"))
                await asyncio.sleep(0)
                (await pool.ensure("a", loader(0))).release()
            await unloading
            assert loaded(pool) == ["a"]
            pool.acquire("a").release()


def test_an_unload_that_was_given_up_leaves_the_version_serving(
    loader: Callable[[int], Loader],
) -> None:
    async def test() -> None:
        async with pool_of() as pool:
            with await pool.ensure("a", loader(0)):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(pool.unload("a"), 0.01)
                pool.acquire("a").release()
            assert loaded(pool) == ["a"]

    run(test)


def test_what_an_alias_points_at_is_not_unloaded(loader: Callable[[int], Loader]) -> None:
    async def test() -> None:
        async with pool_of() as pool:
            with await pool.ensure("a", loader(0)):
                pool.point("production", "a")
            with pytest.raises(VersionInUse):
                await pool.unload("a")
            pool.unpoint("production")
            await pool.unload("a")
            assert not pool.resident()

    run(test)


@pytest.mark.parametrize("key", ["production", "versions/1", ""])
def test_nothing_answers_for_what_is_not_loaded(key: str) -> None:
    async def test() -> None:
        async with pool_of() as pool:
            with pytest.raises(NotReady):
                pool.acquire(key)

    run(test)


def test_a_released_handle_gives_no_more_answers(loader: Callable[[int], Loader]) -> None:
    async def test() -> None:
        async with pool_of() as pool:
            with await pool.ensure("a", loader(0)) as handle:
                pass
            with pytest.raises(RuntimeError, match="released"):
                await handle.run(np.zeros((1, 8, 8, 3), np.uint8))

    run(test)


def test_statistics_tell_success_failure_and_abandonment_apart(images: Pixels) -> None:
    class Failing(Slow):
        def run(self, images: Pixels, outputs: Any = ("probabilities",)) -> Answers:
            if images[0, 0, 0, 0] == 0:
                raise MemoryError("too much")
            return super().run(images, outputs)

    async def test() -> None:
        version = Failing()
        async with pool_of(threads=1) as pool:
            with await pool.ensure("a", lambda: Loaded(classifier=version, details=0)) as handle:
                with pytest.raises(MemoryError):
                    await handle.run(np.zeros((1, 8, 8, 3), np.uint8))
                task = asyncio.create_task(handle.run(np.ones((1, 8, 8, 3), np.uint8)))
                await asyncio.to_thread(version.running.wait)
                assert pool.statistics()["a"].pending == 1
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                version.through.set()
                await handle.run(np.ones((3, 8, 8, 3), np.uint8))
                with handle.encoding():
                    inside = pool.statistics()["a"]
            counts = pool.statistics()["a"]
        assert (inside.encode.count, counts.encode.count) == (0, 1)
        assert counts.pending == 0
        assert {cause.name: n for cause, n in counts.causes.items() if n} == {
            "BACKEND": 1,
            "CANCELED": 1,
        }
        assert (counts.success.count, counts.failure.count, counts.cancelled.count) == (1, 1, 1)
        assert (counts.inferences, counts.executions) == (3, 1)
        assert counts.infer.count == counts.queue.count == counts.decode.count == 1
        assert counts.runs[3].count == 1
        assert counts.last_inference > 0
        assert 0 < counts.runs[3].ns <= counts.infer.ns <= counts.success.ns

    assert len(images)
    run(test)


def test_counts_outlive_an_unload(loader: Callable[[int], Loader], images: Pixels) -> None:
    async def test() -> None:
        async with pool_of(spare=0) as pool:
            for _ in range(2):
                with await pool.ensure("a", loader(0)) as handle:
                    await handle.run(images)
            assert pool.statistics()["a"].inferences == 10

    run(test)


def test_a_version_is_warmed_for_every_size_that_it_will_run_in() -> None:
    warmed: list[int] = []

    class Thermometer(Slow):
        def warm(self, batches: Any = (1,)) -> None:
            warmed.extend(batches)

    async def test() -> None:
        batcher = Batcher(threads=1, batching=Batching(images=4, buckets=(1, 2, 4)))
        pool = Pool[int](batcher)
        (await pool.ensure("a", lambda: Loaded(classifier=Thermometer(), details=0))).release()
        await pool.close()
        await batcher.close()

    run(test)
    assert warmed == [1, 2, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives threads priorities")
def test_the_thread_that_loads_steps_back_and_no_other(classifier: Opened) -> None:
    found: list[int] = []

    def load() -> Loaded[int]:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return Loaded(classifier=classifier(), details=0)

    async def test() -> None:
        before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        async with pool_of(nice=10) as pool:
            (await pool.ensure("a", load)).release()
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
        assert found == [max(before, 10)]

    run(test)


def test_what_several_unloads_free_is_returned_to_the_system_once_and_soon(
    loader: Callable[[int], Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "RETURN_SECONDS", 0.2)

    async def test() -> None:
        returned = threading.Event()
        trims: list[int] = []

        def trim() -> None:
            trims.append(1)
            returned.set()

        monkeypatch.setattr(memory, "trim", trim)
        async with pool_of(spare=0) as pool:
            for seed in range(3):
                (await pool.ensure(f"versions/{seed}", loader(seed))).release()
            assert loaded(pool) == []
            assert await asyncio.to_thread(returned.wait, SECONDS)
            assert len(trims) == 1
            (await pool.ensure("versions/3", loader(3))).release()
            returned.clear()
            assert await asyncio.to_thread(returned.wait, SECONDS)

    run(test)


async def settled_bytes() -> int:
    """What this process holds when garbage and what malloc keeps have been given back."""
    gc.collect()
    await asyncio.to_thread(memory.trim)
    pages = int(Path("/proc/self/statm").read_text().split()[1])  # noqa: ASYNC240  no disk
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("leaky", [False, True])
def test_memory_comes_back_over_swaps_and_a_leak_would_be_seen(
    leaky: bool, classifier: Opened, images: Pixels
) -> None:
    ballast = 2 * MEBIBYTE  # of float32: 8 MiB a version
    leaked: list[Classifier] = []
    sizes: list[int] = []

    def load() -> Loaded[int]:
        version = classifier(1, ballast=ballast)
        if leaky:
            leaked.append(version)
        return Loaded(classifier=version, details=0)

    async def test() -> None:
        async with pool_of() as pool:
            for swap in range(20):
                with await pool.ensure(f"versions/{swap}", load) as handle:
                    pool.point("production", f"versions/{swap}")
                    await handle.run(images)
                if swap >= 5:
                    sizes.append(await settled_bytes())

    run(test)
    # Twelve versions lie between the first sizes and the last; half of their bytes divides
    # what is kept from what the rest of a process that ran other tests does meanwhile.
    growth = float(np.median(sizes[-3:]) - np.median(sizes[:3])) / MEBIBYTE
    assert (growth > 48) if leaky else (growth < 48)
