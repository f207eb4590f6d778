"""What has to go when one more version must fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

from acclimate_service.domain.errors import Overloaded
from acclimate_service.inference.residents import Resident, Share, make_room


def resident(version: str, trunk: str = "", tail: int = 1, *, used: bool = False) -> Resident[Any]:
    share = Share(trunk=trunk, tail_bytes=tail) if trunk else None
    made = Resident[Any](version, None, None, share)  # type: ignore[arg-type]  # only looked at
    made.references = int(used)
    return made


def gone(
    residents: Sequence[Resident[Any]],
    version: str,
    trunk: str = "",
    tail: int = 1,
    *,
    loading: Mapping[str, Share | None] | None = None,
    kept: Collection[str] = (),
    capacity: int = 3,
    tail_bytes: int = 100,
) -> list[str]:
    share = Share(trunk=trunk, tail_bytes=tail) if trunk else None
    found = make_room(
        version,
        share,
        residents=residents,
        loading=loading or {},
        kept=kept,
        capacity=capacity,
        tail_bytes=tail_bytes,
    )
    return [one.version for one in found]


def test_any_number_of_tails_on_one_trunk_take_one_place() -> None:
    many = [resident(f"v{number}", "t") for number in range(50)]
    assert gone([*many, resident("w")], "v50", "t") == []
    assert gone([*many, resident("w")], "x") == []
    assert gone([*many, resident("w"), resident("x")], "y") == [one.version for one in many]


def test_a_trunk_goes_only_when_every_tail_on_it_may() -> None:
    busy = [resident("v1", "t"), resident("v2", "t", used=True)]
    others = [resident("w"), resident("x")]
    assert gone([*busy, *others], "y") == ["w"]
    assert gone([*busy, *others], "y", kept={"w"}) == ["x"]
    with pytest.raises(Overloaded):
        gone([*busy, *others], "y", kept={"w", "x"})


def test_what_was_used_last_on_a_trunk_counts_for_the_whole_of_it() -> None:
    assert gone([resident("v1", "t"), resident("w"), resident("v2", "t")], "x", capacity=2) == ["w"]


def test_the_tails_that_were_unused_longest_go_until_the_new_one_fits() -> None:
    tails = [resident(f"v{number}", "t", 30) for number in range(3)]
    assert gone(tails, "new", "t", 10) == []
    assert gone(tails, "new", "t", 11) == ["v0"]
    assert gone(tails, "new", "t", 41) == ["v0", "v1"]
    assert gone([resident("v0", "t", 30, used=True), *tails[1:]], "new", "t", 11) == ["v1"]


def test_tails_that_stay_do_not_count() -> None:
    assert (
        gone([resident("v0", "t", 90), resident("v1", "t", 90)], "v2", "t", 90, kept={"v0", "v1"})
        == []
    )


def test_tails_that_are_being_loaded_count() -> None:
    loading = {"v1": Share(trunk="t", tail_bytes=80)}
    assert gone([resident("v0", "t", 10)], "v2", "t", 20, loading=loading) == ["v0"]
    with pytest.raises(Overloaded):
        gone([], "v2", "t", 30, loading=loading)


def test_a_tail_larger_than_all_the_room_may_be_alone_in_it() -> None:
    assert gone([resident("v0", "t", 10)], "v1", "t", 500) == ["v0"]
    with pytest.raises(Overloaded):
        gone([resident("v0", "t", 10, used=True)], "v1", "t", 500)


def test_a_place_that_is_being_loaded_into_does_not_go() -> None:
    loading = {"v1": Share(trunk="t", tail_bytes=1)}
    assert gone([resident("v0", "t"), resident("w")], "x", loading=loading, capacity=2) == ["w"]
