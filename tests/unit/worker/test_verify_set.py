"""The verify images of a domain, and the slices that their tags name."""

from __future__ import annotations

from acclimate_service.domain.examples import Example, Role, Split
from acclimate_service.domain.names import BatchName, DomainName
from acclimate_service.worker.images import verify_set


def example(number: int, *tags: str) -> Example:
    return Example(
        domain=DomainName("gate"),
        batch=BatchName("gate", "b"),
        content=f"{number:064x}",
        blob=f"{number:064x}",
        label="mug",
        role=Role.HOLDOUT,
        split=Split.VERIFY,
        id=str(number),
        tags=tags,
    )


def test_a_slice_is_the_places_of_all_images_with_its_tag() -> None:
    examples = [example(0, "night", "camera=3"), example(1, "day"), example(2, "night", "day")]
    found = verify_set("domains/gate", examples, ("mug",)).slices()
    assert {tag: places.tolist() for tag, places in found.items()} == {
        "day": [1, 2],
        "night": [0, 2],
    }


def test_the_number_of_a_frame_names_no_slice() -> None:
    examples = [example(n, f"frame={n}") for n in range(50)]
    assert verify_set("domains/gate", examples, ("mug",)).slices() == {}
