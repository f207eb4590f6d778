"""The screen of labels over a real trunk and store, with a network of a few thousand weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from tests.integration.workbench import Bench, Shot
from tests.unit.training.tiny import LABELS, Pictures, incumbent, trunk

from acclimate_service.domain.examples import Role
from acclimate_service.domain.job import EventKind
from acclimate_service.domain.names import DomainName
from acclimate_service.store import Store
from acclimate_service.training.dataset import Stock
from acclimate_service.worker.stock import JobImages, images_of
from acclimate_service.worker.story import Story
from acclimate_service.worker.suspects import LabelScreen

SPACE = tuple(f"bar {index}" for index in range(LABELS))


class Told:
    """A story that only remembers what it was told, over a real store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.events: list[tuple[EventKind, str, dict[str, Any]]] = []

    def tell(self, kind: EventKind, message: str, facts: dict[str, Any]) -> None:
        self.events.append((kind, message, facts))

    def step(self) -> bool:
        return False


def shots(each: int, *, seed: int, flipped: float = 0.0) -> list[Shot]:
    """Pictures of bars; of that share the label is the next one, and the id says so."""
    truth, given = (Pictures([each] * LABELS, seed=seed, flipped=f) for f in (0.0, flipped))
    found = []
    for place, label in enumerate(given.labels):
        file = io.BytesIO()
        Image.fromarray(given.read(place)).save(file, "PNG")
        kind = "right" if label == truth.labels[place] else "wrong"
        found.append(Shot(image=file.getvalue(), label=SPACE[label], id=f"{kind} {seed}-{place}"))
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, JobImages]:
    """A quarter of the train labels, and of the held-out ones, wrong."""
    bench = Bench(Path(tmp_path_factory.mktemp("bench")))
    bench.domain("bars", SPACE)
    bench.upload("bars", shots(30, seed=11, flipped=0.25))
    bench.upload("bars", shots(30, seed=12, flipped=0.25), Role.HOLDOUT)
    found = images_of(
        bench.store, target=DomainName("bars"), known=[], space=SPACE, replay_per_class=0
    )
    return bench, found


def screened(
    images: tuple[Bench, JobImages], *, known: int = LABELS, leave_out: bool = True
) -> tuple[LabelScreen, Stock, Told]:
    bench, found = images
    story = Told(bench.store)
    screen = LabelScreen(
        story=cast("Story", story), images=found, space=SPACE, known=known, leave_out=leave_out
    )
    return screen, screen(found.stock, trunk(incumbent())), story


@pytest.mark.parametrize("known", [LABELS, 0])
def test_suspects_are_found_in_every_split_and_leave_training_and_choosing(
    images: tuple[Bench, JobImages], known: int
) -> None:
    screen, stock, _ = screened(images, known=known)
    for part in (screen.found.train, screen.found.select, screen.found.verify):
        wrong = [one.example.id.startswith("wrong") for one in part.suspects]
        assert np.sum(wrong) >= 0.6 * 0.25 * part.images
        assert len(wrong) - np.sum(wrong) <= 0.05 * part.images
    gone = {one.example.content for one in screen.found.suspects}
    assert not gone & set(stock.train.contents)
    assert stock.select is not None
    assert not gone & set(stock.select.contents)
    before = images[1].stock
    assert len(stock.train) == len(before.train) - len(screen.found.train.suspects)
    verify = {example.content for example in images[1].target.examples}
    assert verify & gone, "what is judged by is judged as it stands"


def test_a_policy_that_only_reports_leaves_the_stock_alone(
    images: tuple[Bench, JobImages],
) -> None:
    screen, stock, story = screened(images, leave_out=False)
    assert stock is images[1].stock
    assert screen.found.train.suspects
    (event,) = story.events
    assert "trained on all the same" in event[1]


def test_what_was_found_is_told_with_its_pictures(images: tuple[Bench, JobImages]) -> None:
    screen, _, story = screened(images)
    ((kind, message, facts),) = story.events
    assert kind is EventKind.WARNING
    assert f"{len(screen.found.train.suspects)} of {screen.found.train.images} train" in message
    first = facts["suspects"][0]
    assert first.keys() == {"id", "blob", "split", "label", "suggested", "confidence"}
    assert images[0].store.blobs.get(first["blob"])
    surest = [one.confidence for one in screen.found.train.suspects]
    assert surest == sorted(surest, reverse=True)


def test_too_few_images_are_said_to_be_unscreened(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.domain("bars", SPACE)
    bench.upload("bars", shots(2, seed=13))
    found = images_of(
        bench.store, target=DomainName("bars"), known=[], space=SPACE, replay_per_class=0
    )
    screen, stock, story = screened((bench, found))
    assert stock.train is found.stock.train
    assert screen.found.to_json()["agreement"] is None
    assert story.events[0][1] == "too few images to screen their labels"
