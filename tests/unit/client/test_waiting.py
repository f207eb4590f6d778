"""When a client tries again, and what it says of it."""

from __future__ import annotations

from acclimate._waiting import Patience
from acclimate.errors import AcclimateError, DeadlineExceeded, Unavailable

FULL = Unavailable("the disk is full", reason="STORE_FULL")
TIME_IS_UP = DeadlineExceeded("Deadline Exceeded", reason="DEADLINE_EXCEEDED")


def test_what_is_waited_for_is_told_once_until_it_goes_on() -> None:
    told: list[AcclimateError] = []
    patience = Patience(60, on_wait=lambda error, _: told.append(error))
    for _ in range(3):
        patience.delay(FULL)
    assert told == [FULL]
    patience.renew()
    patience.delay(FULL)
    assert told == [FULL, FULL]


def test_a_stream_whose_time_is_up_is_not_told_as_something_that_is_waited_for() -> None:
    """A large upload goes through several streams; nothing is wrong with it."""
    told: list[AcclimateError] = []
    patience = Patience(60, on_wait=lambda error, _: told.append(error))
    patience.delay(TIME_IS_UP)
    assert told == []
    patience.delay(FULL)
    assert told == [FULL]
