"""Whoever shares a database shares its fence, in one process or in several."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from tests.contract.conftest import Place

from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.store.engine import open_engine
from acclimate_service.store.fence import Fence, Taken, fence_of

NAMES = [f"name {number}" for number in range(50)]


@pytest.fixture
def engines(place: Place) -> Iterator[tuple[sa.Engine, sa.Engine]]:
    found = open_engine(place.url), open_engine(place.url)
    yield found
    for engine in found:
        engine.dispose()


@pytest.fixture
def fences(engines: tuple[sa.Engine, sa.Engine]) -> tuple[Fence, Fence]:
    """The same one, as two processes have it."""
    return fence_of(engines[0]), fence_of(engines[1])


def taken(fence: Fence, *names: str) -> bool:
    try:
        with fence.alone(names):
            return False
    except Taken:
        return True


def test_many_hold_a_name_together_and_then_nobody_has_it_alone(
    fences: tuple[Fence, Fence],
) -> None:
    one, two = fences
    with one.together(NAMES), two.together(NAMES[:1]), one.together(NAMES[:1]):
        assert taken(two, NAMES[0])
        assert taken(one, NAMES[49])
        assert taken(one, "another", NAMES[7])
        assert not taken(one, "another")
    assert not taken(one, *NAMES)
    assert not taken(two, *NAMES)


def test_one_who_has_a_name_alone_is_waited_for(fences: tuple[Fence, Fence]) -> None:
    one, two = fences
    got = threading.Event()

    def hold() -> None:
        with two.together(NAMES):
            got.set()

    waiting = threading.Thread(target=hold)
    with one.alone(NAMES[:1]):
        assert taken(two, NAMES[0])
        waiting.start()
        assert not got.wait(0.3)
    assert got.wait(10)
    waiting.join()


def test_a_name_is_let_go_when_its_block_fails(fences: tuple[Fence, Fence]) -> None:
    one, two = fences
    for hold in (one.together, one.alone):
        with pytest.raises(ZeroDivisionError), hold(NAMES):
            raise ZeroDivisionError
    assert not taken(two, *NAMES)


def test_what_was_done_under_a_lock_that_was_lost_does_not_count(
    place: Place, engines: tuple[sa.Engine, sa.Engine], fences: tuple[Fence, Fence]
) -> None:
    if place.is_sqlite:
        pytest.skip("a file's lock is lost with its process alone")
    ended = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with (
        pytest.raises(StoreUnavailable),
        fences[0].together(NAMES),
        engines[1].begin() as connection,
    ):
        connection.execute(ended)
    with fences[0].together(NAMES):  # and the next call finds another connection
        assert taken(fences[1], NAMES[0])
