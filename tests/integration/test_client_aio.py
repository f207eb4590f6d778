"""The asyncio client against the real server, as a service of somebody's would use it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.integration.rpc_server import (
    LABELS,
    Service,
    claim,
    classifier,
    model,
    picture,
    plain,
    promote,
    version,
)

from acclimate import Example, Prediction, aio
from acclimate.errors import Conflict, NotFound
from acclimate.resources import Refusal
from acclimate_service.domain.job import JobState, Phase
from acclimate_service.domain.names import JobName

RED, GREEN, BLUE = (plain(colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200)))


@pytest.fixture(scope="module")
def shop(service: Service) -> Service:
    """A model of colours, `shop`, with two versions of which the first is in production."""
    name = model(service.store, "shop")
    first, _ = (version(service.store, name, classifier(gain)) for gain in (20, 30))
    promote(service, name, first)
    return service


async def learn(service: Service, job: str) -> None:
    """What a worker does with *job*, as far as a watcher sees it."""
    lease = await asyncio.to_thread(lambda: claim(service.store, JobName.parse(job))[1])
    await asyncio.to_thread(service.store.jobs.enter, lease, Phase.PROBING)
    report = await asyncio.to_thread(service.store.blobs.put, b"<html>why</html>")
    await asyncio.to_thread(
        lambda: service.store.jobs.finish(
            lease, state=JobState.REJECTED, summary={}, report_html=report
        )
    )


def test_images_go_in_a_job_is_followed_and_its_report_read(shop: Service) -> None:
    async def images() -> AsyncIterator[Example]:
        for number, label in enumerate(LABELS * 3):
            yield Example(image=picture(number + 7000), label=label, id=f"{number}.png")

    async def act() -> None:
        async with aio.Client(f"127.0.0.1:{shop.port}") as client:
            await client.create_domain("night", LABELS)
            sent = await client.upload("night", images())
            counts = (await client.domain("night")).counts
            assert (sent.accepted, len(counts)) == (9, 3)
            job = await client.adapt("shop", "night", promote_to="production", epochs=2)
            with pytest.raises(Conflict):
                await job.report()
            learning = asyncio.create_task(learn(shop, job.name))
            told = [event async for event in job.watch()]
            await learning
            assert [event.sequence for event in told] == list(range(1, len(told) + 1))
            assert told[-1].state.value == "REJECTED"
            assert (await job.wait()).state.value == "REJECTED"
            assert await job.report() == b"<html>why</html>"
            assert (await client.aliases("shop"))[0].version == "models/shop/versions/1"

    asyncio.run(act())


def test_predictions_go_on_through_a_promotion_and_name_who_answered(shop: Service) -> None:
    async def act() -> tuple[list[Prediction | Refusal], list[Prediction]]:
        async with aio.Client(f"127.0.0.1:{shop.port}") as client:
            promoted = asyncio.Event()

            async def images() -> AsyncIterator[bytes]:
                for image in (RED, b"no image", GREEN):
                    yield image
                await promoted.wait()
                yield BLUE

            async def move() -> None:
                moved = await client.promote("shop", "2", expected="1", reason="better")
                assert moved.version == "models/shop/versions/2"
                promoted.set()

            found = []
            async for answer in client.predict_stream("shop", images(), top_k=1):
                found.append(answer)
                if len(found) == 3:
                    await move()
            with pytest.raises(Conflict):
                await client.promote("shop", "2", expected="1")
            await client.rollback("shop", reason="worse")
            with pytest.raises(NotFound):
                await client.predict("nobody", RED)
            return found, await client.predict("shop", [RED, BLUE], probabilities=True)

    streamed, asked = asyncio.run(act())
    red, refusal, green, blue = streamed
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "BAD_IMAGE"
    assert [
        (answer.classes[0].label, answer.version[-1])
        for answer in (red, green, blue)
        if isinstance(answer, Prediction)
    ] == [("red", "1"), ("green", "1"), ("blue", "2")]
    assert [(one.classes[0].label, one.version[-1]) for one in asked] == [
        ("red", "1"),
        ("blue", "1"),
    ]
    assert sum(asked[0].probabilities) == pytest.approx(1, abs=1e-5)
