"""The asyncio client against the service that breaks on command."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import pytest
from google.rpc import code_pb2
from tests.unit.client.fake_service import Service
from tests.unit.client.test_job import story
from tests.unit.client.test_upload import examples

import acclimate
from acclimate import TLS, JobState, Prediction, aio
from acclimate._calls import AdaptOptions, PredictOptions
from acclimate._images import Wanted
from acclimate.aio import _questions
from acclimate.errors import (
    Conflict,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    Unavailable,
    UploadMismatch,
)
from acclimate.resources import Acknowledgement, Example, Refusal
from acclimate.v1 import adaptation_pb2

T = TypeVar("T")
Run = Callable[[Callable[[aio.Client], Awaitable[T]]], T]


@pytest.fixture
def run(target: str) -> Run[T]:
    """Runs a coroutine on a loop and a client of its own."""

    async def connected(act: Callable[[aio.Client], Awaitable[T]]) -> T:
        async with aio.Client(target, timeout=5, patience=5) as client:
            return await act(client)

    return lambda act: asyncio.run(connected(act))


# ── one set of rules ─────────────────────────────────────────────────────────


def test_both_clients_take_the_same_options() -> None:
    def options(call: Callable[..., object]) -> set[str]:
        found = inspect.signature(call).parameters.values()
        return {one.name for one in found if one.kind is inspect.Parameter.KEYWORD_ONLY}

    both = acclimate.Client
    assert options(both.adapt) == set(AdaptOptions.__annotations__)
    assert options(both.predict) == {*PredictOptions.__annotations__, "timeout"}
    assert options(both.predict_stream) == set(PredictOptions.__annotations__)
    defaults = inspect.signature(both.predict).parameters
    wanted = Wanted(model="m")
    for name in PredictOptions.__annotations__:
        assert getattr(wanted, name) == defaults[name].default, name


@pytest.mark.parametrize(
    "name",
    ["health", "create_domain", "domain", "upload", "job", "aliases", "promote", "rollback"],
)
def test_what_both_clients_have_is_called_the_same_way(name: str) -> None:
    def taken(kind: type[object]) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(getattr(kind, name)).parameters.values()
        return [(one.name, one.kind, one.default) for one in parameters]

    assert taken(aio.Client) == taken(acclimate.Client)
    assert getattr(aio.Client, name).__doc__


def test_both_clients_send_the_same(
    service: Service, client: acclimate.Client, run: Run[None]
) -> None:
    asked = {"epochs": 3, "base": "2", "guard": {"source_margin": 0.02}, "request_id": "r"}

    async def act(other: aio.Client) -> None:
        await other.adapt("digits", "pens", **asked)  # type: ignore[arg-type]
        await other.predict("digits@canary", b"x", top_k=2, domain="pens")
        await other.promote("digits", "2", expected="1", reason="why")

    client.adapt("digits", "pens", **asked)  # type: ignore[arg-type]
    client.predict("digits@canary", b"x", top_k=2, domain="pens")
    client.promote("digits", "2", expected="1", reason="why")
    run(act)
    assert len(service.seen) == 6
    assert service.seen[:3] == service.seen[3:]


def test_a_token_never_leaves_the_machine_in_plain_text() -> None:
    async def connect() -> None:
        aio.Client("example.org:50051", token="secret")

    with pytest.raises(ValueError, match="plain text"):
        asyncio.run(connect())


def test_a_token_goes_with_every_call(service: Service, target: str) -> None:
    async def act() -> None:
        async with aio.Client(target, token="secret") as client:
            await client.domain("pens")
            await (await client.job("j1")).report()

    asyncio.run(act())
    assert {seen.get("authorization") for seen in service.metadata} == {"Bearer secret"}


def test_a_file_for_tls_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")

    async def connect() -> None:
        aio.Client("localhost:1", tls=TLS(ca=tmp_path / "ca.pem"))

    with pytest.raises(ValueError, match="no certificate in PEM"):
        asyncio.run(connect())


# ── calls ────────────────────────────────────────────────────────────────────


def test_a_read_is_repeated_until_it_succeeds(service: Service, run: Run[str]) -> None:
    service.faults.calls = [(code_pb2.UNAVAILABLE, "SERVER_STOPPING", None)] * 2

    async def act(client: aio.Client) -> str:
        return (await client.domain("pens")).name

    assert run(act) == "domains/pens"
    assert len(service.seen) == 3


def test_what_must_not_happen_twice_is_not_repeated(service: Service, run: Run[None]) -> None:
    service.faults.calls = [(code_pb2.UNAVAILABLE, "SERVER_STOPPING", None)]

    async def act(client: aio.Client) -> None:
        await client.rollback("digits")

    with pytest.raises(Unavailable):
        run(act)
    assert len(service.seen) == 1


def test_a_refusal_is_one_of_the_same_tree(service: Service, target: str) -> None:
    service.faults.calls = [(code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED", 0.9)]

    async def act() -> None:
        async with aio.Client(target, timeout=0.5) as client:
            await client.domain("pens")

    with pytest.raises(Overloaded) as caught:
        asyncio.run(act())
    assert caught.value.reason == "OVERLOADED"
    assert caught.value.retry_after == pytest.approx(0.9)


def test_a_slow_reading_of_images_leaves_the_loop_to_others(run: Run[list[float]]) -> None:
    def slow() -> Iterator[bytes]:
        assert threading.current_thread() is not threading.main_thread()
        time.sleep(0.3)
        yield b"x"

    async def act(client: aio.Client) -> list[float]:
        asking = asyncio.create_task(client.predict("digits", slow()))
        turns = []
        while not asking.done():
            turns.append(time.monotonic())
            await asyncio.sleep(0.01)
        assert len(await asking) == 1
        return turns

    assert len(run(act)) > 5


# ── streams of predictions ───────────────────────────────────────────────────


def test_a_stream_answers_each_image_in_order(run: Run[list[object]], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"good")

    async def images() -> AsyncIterator[bytes | Path]:
        for image in (b"good", b"bad", tmp_path / "a.png"):
            await asyncio.sleep(0)
            yield image

    async def act(client: aio.Client) -> list[object]:
        return [answer async for answer in client.predict_stream("digits", images())]

    assert [type(answer) for answer in run(act)] == [Prediction, Refusal, Prediction]


def test_a_stream_whose_connection_breaks_answers_each_image_once(
    service: Service, run: Run[int]
) -> None:
    service.faults.predict_after = [3, 0, 7]

    async def act(client: aio.Client) -> int:
        return len([1 async for _ in client.predict_stream("digits", [b"x"] * 50)])

    assert run(act) == 50


def test_a_stream_reads_only_a_window_ahead(
    run: Run[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_questions, "STREAM_IN_FLIGHT", 4)

    async def act(client: aio.Client) -> tuple[int, int]:
        read = answered = most = 0

        async def images() -> AsyncIterator[bytes]:
            nonlocal read, most
            for _ in range(40):
                read += 1
                most = max(most, read - answered)
                yield b"x"

        async for _ in client.predict_stream("digits", images()):
            answered += 1
            await asyncio.sleep(0.002)
        return answered, most

    answered, most = run(act)
    assert answered == 40
    assert most <= 6  # those in flight, one that was answered and not yet counted, the next


def test_a_streams_own_broken_iterable_reaches_the_caller(run: Run[None]) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    async def act(client: aio.Client) -> None:
        async for _ in client.predict_stream("digits", broken()):
            pass

    with pytest.raises(ZeroDivisionError):
        run(act)


def test_streams_that_wait_for_their_cameras_keep_no_thread_from_others(run: Run[int]) -> None:
    async def act(client: aio.Client) -> int:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        next_image = threading.Event()

        def camera() -> Iterator[bytes]:
            yield b"x"
            next_image.wait()
            yield b"x"

        async with aclosing(client.predict_stream("digits", camera())) as stream:
            assert await anext(stream) is not None
            try:
                image = (one async for one in several())
                async with aclosing(client.predict_stream("digits", image)) as other:
                    answers = [await asyncio.wait_for(anext(other), 5)]
                answers += await asyncio.wait_for(client.predict("digits", b"x"), 5)
            finally:
                next_image.set()
            return len(answers) + len([1 async for _ in stream])

    async def several() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x"

    assert run(act) == 3


def test_an_iterable_that_breaks_between_two_attempts_reaches_the_caller(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.aio.client.STREAM_SECONDS", 0.1)
    monkeypatch.setattr("acclimate._waiting.FIRST_DELAY", 1.0)  # at least half of it is waited

    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(0.4)
        raise ZeroDivisionError

    async def act() -> None:
        async with aio.Client(target, timeout=5, patience=5) as client:
            async for _ in client.predict_stream("digits", broken()):
                pass

    with pytest.raises(ZeroDivisionError):
        asyncio.run(act())


def test_a_stream_left_early_ends_and_leaves_no_task(run: Run[set[str]]) -> None:
    async def act(client: aio.Client) -> set[str]:
        endless = (b"x" for _ in range(10**9))
        async with aclosing(client.predict_stream("digits", endless)) as stream:
            assert await anext(stream) is not None
        assert (await client.health()) is not None
        ours = asyncio.all_tasks() - {asyncio.current_task()}
        return {repr(task) for task in ours if "Questions" in repr(task)}

    assert run(act) == set()


def test_a_stream_gives_up_on_a_service_that_stays_away(service: Service, target: str) -> None:
    service.faults.predict_after = [0] * 1000

    async def act() -> None:
        async with aio.Client(target, patience=0.5) as client:
            async for _ in client.predict_stream("digits", [b"x"]):
                pass

    with pytest.raises(Unavailable):
        asyncio.run(act())


# ── uploads ──────────────────────────────────────────────────────────────────


def test_a_broken_upload_goes_on_and_sends_no_stored_example_twice(
    service: Service, run: Run[int]
) -> None:
    service.faults.break_after = [3, 0, 40, 1]
    service.faults.hide_answers = True
    told: list[int] = []

    def tell(answer: Acknowledgement) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append(answer.index)

    async def act(client: aio.Client) -> int:
        result = await client.upload(
            "pens", examples(100), request_id="u1", on_acknowledgement=tell
        )
        return result.accepted

    assert run(act) == 100
    assert service.batches["u1"].sent == list(range(100))
    assert told == sorted(set(told))


def test_an_upload_that_is_refused_leaves_no_task(run: Run[list[str]]) -> None:
    async def act(client: aio.Client) -> list[str]:
        with pytest.raises(NotFound):
            await client.upload("nowhere", examples(3), request_id="u1")
        for _ in range(20):  # what was told to end does so in turns of the loop
            await asyncio.sleep(0)
        return [repr(task) for task in asyncio.all_tasks() if "request_iterator" in repr(task)]

    assert run(act) == []


def test_an_upload_whose_client_is_closed_ends_with_it(run: Run[None]) -> None:
    async def act(client: aio.Client) -> None:
        begun, closed = asyncio.Event(), asyncio.Event()

        async def source() -> AsyncIterator[Example]:
            yield examples(1)[0]
            begun.set()
            await closed.wait()
            yield examples(2)[1]

        uploading = asyncio.create_task(client.upload("pens", source(), request_id="u1"))
        await begun.wait()
        await client.close()
        closed.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(uploading, 4)  # a silent stream is waited for longer

    run(act)


def test_what_one_client_began_the_other_goes_on_with(
    service: Service, target: str, run: Run[int]
) -> None:
    service.faults.break_after = [60, *[0] * 100]
    with (
        acclimate.Client(target, patience=0.3) as impatient,
        pytest.raises(Unavailable),
    ):
        impatient.upload("pens", examples(100), request_id="u1")
    service.faults.break_after = []

    async def source() -> AsyncIterator[Example]:
        for example in examples(100):
            yield example

    async def act(client: aio.Client) -> int:
        return (await client.upload("pens", source(), request_id="u1")).accepted

    assert run(act) == 100
    assert service.batches["u1"].sent == list(range(100))

    async def others(client: aio.Client) -> int:
        return (await client.upload("pens", examples(3, size=9), request_id="u2")).accepted

    service.batches["u2"] = service.batches["u1"]
    service.batches["u2"].committed = False
    with pytest.raises(UploadMismatch):
        run(others)


def test_a_path_is_not_a_set_of_examples(run: Run[None]) -> None:
    async def act(client: aio.Client) -> None:
        await client.upload("pens", "photos/")  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="examples_from_folder"):
        run(act)


# ── jobs ─────────────────────────────────────────────────────────────────────


def test_a_broken_watch_goes_on_where_it_broke(service: Service, run: Run[list[int]]) -> None:
    service.events = story(10)
    service.faults.watch_after = [4, 0, 3]

    async def act(client: aio.Client) -> list[int]:
        job = await client.job("j1")
        found = [event.sequence async for event in job.watch()]
        assert job.state is JobState.SUCCEEDED
        assert job.version == "models/digits/versions/2"
        return found

    assert run(act) == list(range(1, 11))


def test_waiting_ends_with_the_job_or_says_that_it_goes_on(
    service: Service, run: Run[JobState]
) -> None:
    async def late(client: aio.Client) -> JobState:
        return (await (await client.job("j1")).wait(timeout=0.2)).state

    with pytest.raises(
        DeadlineExceeded, match=r"jobs/j1 is still RUNNING after 0\.2 s; it goes on"
    ):
        run(late)

    async def act(client: aio.Client) -> JobState:
        job = await client.job("j1")
        waiting = asyncio.create_task(job.wait())
        service.job.state = adaptation_pb2.AdaptationJob.STATE_SUCCEEDED
        return (await waiting).state

    assert run(act) is JobState.SUCCEEDED


def test_an_ended_job_cannot_be_cancelled(service: Service, run: Run[None]) -> None:
    async def act(client: aio.Client) -> None:
        job = await client.job("j1")
        assert (await job.cancel()).snapshot.cancel_requested
        service.end(adaptation_pb2.AdaptationJob.STATE_CANCELLED)
        await job.cancel(reason="late")

    with pytest.raises(Conflict):
        run(act)
