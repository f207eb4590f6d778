from __future__ import annotations

import asyncio

import pytest

from acclimate_service.rpc.time_limit import TimeLimit

SHORT, LONG = 0.02, 60.0


async def within(limit: TimeLimit, seconds: float) -> str:
    with limit:
        await asyncio.sleep(seconds)
    return "done"


async def outcomes(*calls: asyncio.Task[str]) -> list[object]:
    return list(await asyncio.gather(*calls, return_exceptions=True))


def test_what_takes_too_long_ends_with_a_timeout_and_what_does_not_goes_on() -> None:
    async def live() -> list[object]:
        limit = TimeLimit(SHORT)
        slow, quick = (asyncio.create_task(within(limit, seconds)) for seconds in (LONG, 0.0))
        found = await outcomes(slow, quick)
        assert not slow.cancelled()
        return found

    late, done = asyncio.run(live())
    assert isinstance(late, TimeoutError)
    assert done == "done"


def test_each_of_several_that_began_apart_has_the_whole_time() -> None:
    async def live() -> list[float]:
        limit, loop = TimeLimit(5 * SHORT), asyncio.get_running_loop()

        async def timed() -> float:
            began = loop.time()
            with pytest.raises(TimeoutError):
                await within(limit, LONG)
            return loop.time() - began

        tasks = []
        for _ in range(4):
            tasks.append(asyncio.create_task(timed()))
            await asyncio.sleep(SHORT)
        return list(await asyncio.gather(*tasks))

    assert all(seconds >= 5 * SHORT for seconds in asyncio.run(live()))


def test_a_call_after_all_others_have_ended_is_ended_too() -> None:
    async def live() -> list[object]:
        limit = TimeLimit(SHORT)
        assert await within(limit, 0.0) == "done"
        await asyncio.sleep(2 * SHORT)  # the timer of the first has found nobody
        return await outcomes(asyncio.create_task(within(limit, LONG)))

    assert [type(one) for one in asyncio.run(live())] == [TimeoutError]


def test_who_is_cancelled_by_others_is_cancelled_and_not_late() -> None:
    async def live() -> list[object]:
        limit = TimeLimit(LONG)
        task = asyncio.create_task(within(limit, LONG))
        await asyncio.sleep(0)
        task.cancel()
        return await outcomes(task)

    assert [type(one) for one in asyncio.run(live())] == [asyncio.CancelledError]


def test_who_is_cancelled_while_being_late_stays_cancelled() -> None:
    async def live() -> list[object]:
        limit = TimeLimit(SHORT)
        task = asyncio.create_task(within(limit, LONG))

        def cancel_too() -> None:
            limit._look()  # it is late, and is told so
            task.cancel()

        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(SHORT, cancel_too)
        return await outcomes(task)

    assert [type(one) for one in asyncio.run(live())] == [asyncio.CancelledError]


def test_an_error_of_its_own_goes_through() -> None:
    async def live() -> None:
        with TimeLimit(LONG):
            raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        asyncio.run(live())


def test_a_hundred_calls_at_once_have_one_timer() -> None:
    async def live() -> int:
        limit, loop = TimeLimit(LONG), asyncio.get_running_loop()
        timers = 0
        call_at = loop.call_at

        def counted(when: float, call: object, *more: object, **rest: object) -> object:
            nonlocal timers
            timers += 1
            return call_at(when, call, *more, **rest)  # type: ignore[arg-type]

        loop.call_at = counted  # type: ignore[method-assign,assignment]

        async def one() -> None:
            with limit:
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(one()) for _ in range(100)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return timers

    assert asyncio.run(live()) == 1
