"""What has to go when one more version must fit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from acclimate_service.inference.residents import Footprint, Resident, make_room, taken

TRUNK = 50


def footprint(own: int = 10, trunk: str = "") -> Footprint:
    return Footprint(own=own, trunk=trunk, trunk_bytes=TRUNK if trunk else 0)


def resident(version: str, own: int = 10, trunk: str = "", *, used: bool = False) -> Resident[Any]:
    made = Resident[Any](version, None, None, footprint(own, trunk))  # type: ignore[arg-type]  # only looked at
    made.references = int(used)
    return made


def gone(
    residents: Sequence[Resident[Any]],
    new: Footprint,
    *,
    budget: int,
    loading: Sequence[Footprint] = (),
    kept: Collection[str] = (),
    pointed: Collection[str] = (),
) -> list[str] | None:
    found = make_room(
        new, residents=residents, loading=loading, kept=kept, pointed=pointed, budget=budget
    )
    return None if found is None else [one.version for one in found]


def test_nothing_goes_while_there_is_room() -> None:
    assert gone([resident("a"), resident("b")], footprint(), budget=30) == []


def test_what_was_unused_longest_goes_first_and_no_more_than_must() -> None:
    three = [resident("a"), resident("b"), resident("c")]
    assert gone(three, footprint(), budget=39) == ["a"]
    assert gone(three, footprint(), budget=29) == ["a", "b"]


def test_what_an_alias_points_at_goes_after_what_none_does() -> None:
    three = [resident("a"), resident("b"), resident("c")]
    assert gone(three, footprint(), budget=39, pointed={"a", "b"}) == ["c"]
    assert gone(three, footprint(), budget=29, pointed={"a", "b"}) == ["c", "a"]
    assert gone(three, footprint(), budget=39, pointed={"a", "b", "c"}) == ["a"]


def test_what_requests_hold_or_wait_for_stays() -> None:
    held = [resident("a", used=True), resident("b"), resident("c")]
    assert gone(held, footprint(), budget=39) == ["b"]
    assert gone(held, footprint(), budget=39, kept={"b"}) == ["c"]
    assert gone(held, footprint(), budget=39, kept={"b", "c"}) is None
    leaving = resident("d")
    leaving.leaving = True
    assert gone([leaving], footprint(), budget=15) is None


def test_what_is_being_loaded_counts_and_cannot_go() -> None:
    assert gone([resident("a")], footprint(), budget=29, loading=[footprint()]) == ["a"]
    assert gone([], footprint(), budget=15, loading=[footprint()]) is None


def test_a_version_larger_than_the_budget_may_be_alone_in_it() -> None:
    assert gone([], footprint(500), budget=100) == []
    assert gone([resident("a"), resident("b")], footprint(500), budget=100) == ["a", "b"]
    assert gone([resident("a", used=True)], footprint(500), budget=100) is None


def test_a_trunk_counts_once_for_all_the_tails_on_it() -> None:
    tails = [resident(f"v{number}", 1, "t") for number in range(10)]
    assert taken(one.footprint for one in tails) == TRUNK + 10
    assert gone(tails, footprint(1, "t"), budget=TRUNK + 11) == []
    assert gone(tails, footprint(1, "t"), budget=TRUNK + 10) == ["v0"]
    assert gone(tails, footprint(1, "other"), budget=2 * TRUNK + 11) == []


def test_a_trunk_is_free_when_the_last_tail_on_it_goes() -> None:
    tails = [resident("v0", 1, "t"), resident("v1", 1, "t"), resident("w", 10)]
    assert gone(tails, footprint(20), budget=TRUNK + 30) == ["v0", "v1"]


@pytest.mark.parametrize("number", [1000])
def test_room_is_found_among_a_thousand_cameras(number: int) -> None:
    many = [resident(f"v{index}") for index in range(number)]
    pointed = {one.version for one in many}
    assert gone(many, footprint(), budget=10 * number, pointed=pointed) == ["v0"]
