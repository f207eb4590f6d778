from __future__ import annotations

from acclimate_service.rpc.sparing import Sparing


def test_a_flood_of_refusals_is_some_lines_a_second_and_a_count() -> None:
    now = [100.0]
    sparing = Sparing(20, lambda: now[0])
    assert [sparing.line() for _ in range(40)] == [{}] * 40
    assert [sparing.line() for _ in range(1000)] == [None] * 1000
    now[0] += 1.0
    assert sparing.line() == {"not_logged_before": 1000}
    assert [sparing.line() for _ in range(19)] == [{}] * 19
    assert sparing.line() is None
