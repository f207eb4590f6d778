"""Which requests are remembered, and how much room a comparison takes from predictions."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from acclimate_service.domain.drift import FEWEST
from acclimate_service.domain.examples import Split
from acclimate_service.domain.names import DomainName, ModelName
from acclimate_service.inference.encoded import Encoded
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.drifts import EVERY, OUTPUT, TOGETHER, Drifts
from acclimate_service.store import Store

EXAMPLES = 64


class Answering:
    """A version whose runs take a turn of the loop; counts the images inside."""

    version = "models/shop/versions/1"
    details = SimpleNamespace(
        name=SimpleNamespace(model="shop"), manifest=SimpleNamespace(preprocessing=None)
    )

    def __init__(self) -> None:
        self.inside = self.most = self.images = 0

    async def run(self, images: Encoded, *_: object, **__: object) -> SimpleNamespace:
        self.inside += len(images.files)
        self.images += len(images.files)
        self.most = max(self.most, self.inside)
        await asyncio.sleep(0.005)
        self.inside -= len(images.files)
        return SimpleNamespace(outputs={OUTPUT: np.zeros((len(images.files), 4), np.float32)})


def a_store(uploaded: list[str] | None = None) -> Store:
    """Of one domain with so many images, or what was uploaded so far."""
    site = DomainName("site")
    images = [str(number) for number in range(EXAMPLES)] if uploaded is None else uploaded
    return cast(
        Store,
        SimpleNamespace(
            registry=SimpleNamespace(
                get_model=lambda name: SimpleNamespace(name=ModelName("shop"), source_domain=site),
                accepted_domains=lambda name: [],
            ),
            domains=SimpleNamespace(
                examples=lambda domain, splits: (
                    [SimpleNamespace(blob=one) for one in images] if Split.SELECT in splits else []
                )
            ),
            blobs=SimpleNamespace(get=lambda digest: b""),
        ),
    )


def an_answer(images: int) -> Any:
    return SimpleNamespace(outputs={OUTPUT: np.zeros((images, 4), np.float32)})


def remembers(drifts: Drifts, version: str = Answering.version) -> bool:
    """Whether the version's next request is."""
    return OUTPUT in drifts.outputs(version, ("probabilities",))


@pytest.mark.parametrize("cameras", [2, 4, EVERY])
def test_of_cameras_that_ask_by_turns_each_is_remembered_as_often(cameras: int) -> None:
    drifts = Drifts(a_store(), lane=cast(Lane, None), drawn=np.random.default_rng(0))
    drifts.observe(Answering.version, an_answer(FEWEST))
    seen = [0] * cameras
    for number in range(800 * EVERY):
        seen[number % cameras] += remembers(drifts)
    assert sum(seen) == 800
    assert min(seen) > 0.6 * 800 / cameras


def test_every_request_is_remembered_until_there_are_images_enough_to_tell() -> None:
    drifts = Drifts(a_store(), lane=cast(Lane, None), drawn=np.random.default_rng(0))
    for _ in range(FEWEST):
        assert remembers(drifts)
        drifts.observe(Answering.version, an_answer(1))
    assert sum(remembers(drifts) for _ in range(100 * EVERY)) == 100
    assert remembers(drifts, "models/shop/versions/2")  # each version has a count of its own


def test_many_who_ask_at_once_leave_the_room_to_predictions() -> None:
    version = Answering()

    async def scene() -> None:
        lane = Lane("store", threads=2, waiting=64)
        drifts = Drifts(a_store(), lane=lane, drawn=np.random.default_rng(0))
        await asyncio.gather(*(drifts.measure(cast(Any, version)) for _ in range(20)))
        lane.close()

    asyncio.run(scene())
    assert version.most <= TOGETHER
    assert version.images == EXAMPLES  # computed once for all of them


def test_a_domain_that_had_too_few_images_is_looked_at_again_when_it_has_more() -> None:
    version, uploaded = Answering(), ["first"]

    async def scene() -> list[int]:
        lane = Lane("store", threads=2, waiting=64)
        drifts = Drifts(a_store(uploaded), lane=lane, drawn=np.random.default_rng(0))
        site, computed = DomainName("site"), []
        for number in range(2):
            computed.append(len(await drifts._reference(cast(Any, version), site)))
            uploaded.extend(f"{number}-{more}" for more in range(FEWEST))
        lane.close()
        return computed

    few, enough = asyncio.run(scene())
    assert few < FEWEST <= enough
    assert version.images == enough  # none was computed of too few
