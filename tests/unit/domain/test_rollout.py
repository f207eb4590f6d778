from __future__ import annotations

import numpy as np
import pytest

from acclimate_service.domain.names import AliasName, VersionName
from acclimate_service.domain.rollout import (
    LEVEL,
    Counts,
    RolloutDraft,
    RolloutLimits,
    RolloutMode,
    RolloutState,
    beyond,
    weigh,
)


def draft(mode: RolloutMode = RolloutMode.CANARY, *, promote: bool = True) -> RolloutDraft:
    return RolloutDraft(
        alias=AliasName("shop", "production"),
        candidate=VersionName("shop", "2"),
        mode=mode,
        share=0.1,
        limits=RolloutLimits(minimum=100),
        promote=promote,
    )


def good(images: int = 200, **more: float) -> Counts:
    counts = Counts(
        requests=images,
        images=images,
        confidence=0.9 * images,
        seconds=0.01 * images,
        incumbent_requests=images,
        incumbent_images=images,
        incumbent_confidence=0.9 * images,
        incumbent_seconds=0.01 * images,
    )
    return counts + Counts(**more)  # type: ignore[arg-type]  # ints stay ints


def test_a_candidate_that_fails_every_request_is_rolled_back_within_a_few() -> None:
    states = [weigh(draft(), Counts(requests=n, errors=n))[0] for n in range(10)]
    assert states.index(RolloutState.ROLLED_BACK) <= 4


def test_one_failure_among_many_is_no_reason_to_roll_back() -> None:
    assert weigh(draft(promote=False), good(requests=1, errors=1))[0] is RolloutState.RUNNING


def test_a_shadow_that_disagrees_beyond_doubt_is_rolled_back_with_the_numbers() -> None:
    state, why = weigh(draft(RolloutMode.SHADOW), good(compared=200, agreed=100))
    assert state is RolloutState.ROLLED_BACK
    assert "100 of 200 images" in why


@pytest.mark.parametrize(
    ("more", "why"),
    [({"confidence": -0.2 * 200}, "confidence"), ({"seconds": 0.03 * 200}, "as long")],
)
def test_less_confidence_and_more_time_count_from_the_minimum_on(
    more: dict[str, float], why: str
) -> None:
    state, told = weigh(draft(), good() + Counts(**more))  # type: ignore[arg-type]
    assert state is RolloutState.ROLLED_BACK
    assert why in told
    few = Counts(requests=50, images=50, confidence=10, incumbent_images=50)
    assert weigh(draft(), few)[0] is RolloutState.RUNNING


def test_a_candidate_within_its_limits_is_promoted_only_if_that_was_asked() -> None:
    assert weigh(draft(), good())[0] is RolloutState.PROMOTED
    assert weigh(draft(promote=False), good())[0] is RolloutState.RUNNING
    assert weigh(draft(), good(images=99))[0] is RolloutState.RUNNING


def test_a_rate_at_its_limit_is_seldom_called_beyond_it_however_often_one_looks() -> None:
    drawn = np.random.default_rng(7)
    wrong = 0
    for _ in range(400):
        hits = np.cumsum(drawn.random(2000) < 0.05)
        looks = range(0, 2000, 5)
        wrong += any(beyond(int(hits[n]), n + 1, limit=0.05, level=0.05) for n in looks)
    # 400 runs of 400 looks; at the nominal level 20 would be wrong.
    assert wrong <= 20


def test_a_rate_of_twice_its_limit_is_found() -> None:
    drawn = np.random.default_rng(8)
    found = [
        beyond(int((drawn.random(2000) < 0.1).sum()), 2000, limit=0.05, level=LEVEL / 2)
        for _ in range(50)
    ]
    assert all(found)


def test_counts_add_up() -> None:
    assert Counts(requests=1, seconds=0.5) + Counts(requests=2) == Counts(requests=3, seconds=0.5)
    assert not Counts()
    assert Counts(dropped=1)
