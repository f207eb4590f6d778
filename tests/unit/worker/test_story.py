"""What a job keeps for another attempt, and when that counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.contract.builders import claimed, draft, furnish, spoil

from acclimate_service.domain.errors import BlobCorrupt, BlobNotFound, ServiceError
from acclimate_service.domain.job import EventKind
from acclimate_service.store import Store, open_store
from acclimate_service.tracing import Phases
from acclimate_service.worker.story import Story

STATE = {"fc.weight": torch.ones(2)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(f"sqlite:///{tmp_path}/store.db", tmp_path / "blobs")
    furnish(store)
    store.jobs.enqueue(draft(), request_id="")
    return store


def attempt(store: Store) -> Story:
    """The story of the job's next attempt, the one before having been given back."""
    _, lease = claimed(store)
    return Story(store=store, lease=lease, sign_of_life=lambda: None, spans=Phases(None, {}))


def warnings(story: Story) -> list[str]:
    events = story.store.jobs.events(story.lease.job)
    return [event.message for event in events if event.kind is EventKind.WARNING]


def test_another_attempt_on_the_same_images_takes_up_what_was_finished(store: Store) -> None:
    first = attempt(store)
    first.rest_on({"domains/webcam": "a1", "domains/amazon": "b2"})
    first.save("0-head", {"epochs": 3}, STATE)
    store.jobs.release(first.lease)
    again = attempt(store)
    again.rest_on({"domains/amazon": "b2", "domains/webcam": "a1"})
    found = again.load("0-head")
    assert found is not None
    assert found[0] == {"epochs": 3}
    assert torch.equal(found[1]["fc.weight"], STATE["fc.weight"])
    assert warnings(again) == []


def test_another_attempt_on_other_images_begins_anew_and_says_so(store: Store) -> None:
    first = attempt(store)
    first.rest_on({"domains/webcam": "a1"})
    first.save("0-head", {"epochs": 3}, STATE)
    store.jobs.release(first.lease)
    again = attempt(store)
    again.rest_on({"domains/webcam": "a2"})
    assert again.load("0-head") is None
    (warning,) = warnings(again)
    assert "begins anew" in warning


def rot(store: Store, digest: str) -> None:
    spoil(store, digest, b"other bytes")


def lose(store: Store, digest: str) -> None:
    store.blobs.delete(digest)


@pytest.mark.parametrize(("damage", "refusal"), [(rot, BlobCorrupt), (lose, BlobNotFound)])
def test_a_kept_step_that_cannot_be_read_is_done_again_once_and_said(
    store: Store, damage: Callable[[Store, str], None], refusal: type[ServiceError]
) -> None:
    story = attempt(store)
    story.rest_on({"domains/webcam": "a1"})
    story.save("0-head", {"epochs": 3}, STATE)
    story.save("1-tail", {"epochs": 3}, STATE | {"fc.bias": torch.ones(1)})

    def state() -> str:
        kept = story.kept("0-head")
        assert kept is not None
        return kept.blobs["state"]

    damage(store, state())
    store.jobs.release(story.lease)
    story = attempt(store)
    story.rest_on({"domains/webcam": "a1"})
    assert story.load("0-head") is None
    (warning,) = warnings(story)
    assert "0-head" in warning
    assert "done again" in warning
    assert story.load("1-tail") is not None  # what others made stays

    store.jobs.release(story.lease)  # before it was done again
    story = attempt(store)
    story.rest_on({"domains/webcam": "a1"})
    assert story.load("0-head") is None
    story.save("0-head", {"epochs": 3}, STATE)  # the same bytes
    found = story.load("0-head")
    assert found is not None
    assert found[0] == {"epochs": 3}
    assert torch.equal(found[1]["fc.weight"], STATE["fc.weight"])

    damage(store, state())
    store.jobs.release(story.lease)
    story = attempt(store)
    story.rest_on({"domains/webcam": "a1"})
    with pytest.raises(refusal):
        story.load("0-head")
    assert len(warnings(story)) == 1
