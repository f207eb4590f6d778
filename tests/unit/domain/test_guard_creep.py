"""Many small drops, one after the other, and what all of them together may lose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydantic
import pytest
from tests.unit.domain.outcomes import answers, paired

from acclimate_service.domain.evidence import Paired, Since
from acclimate_service.domain.guard import Check, Decision, Evidence, GuardPolicy, Verdict, judge

BALANCED = GuardPolicy()
TARGET = paired(100, 2, 42, before=0.4, name="domains/webcam")
IMAGES, STEP = 300, 3  # one point of the source is lost at every step: the default limit


def creep(verdict: Verdict, name: str = "source creep") -> Check:
    (found,) = [check for check in verdict.checks if check.name == name]
    return found


def right(lost: int) -> Paired:
    """A source of which so many images are lost, beside itself."""
    labels = np.arange(IMAGES) % 10
    rows = answers(np.arange(IMAGES) >= lost, labels, 10)
    return Paired(name="domains/amazon", labels=labels, incumbent=rows, candidate=rows)


def step(lost: int, *, since: bool) -> Verdict:
    """The verdict on a version that loses a point more than one that has lost so many images."""
    was, now = right(lost), right(lost + STEP)
    standard = Since(
        version="models/shop/versions/1", pairs=replace(now, incumbent=right(0).incumbent)
    )
    return judge(
        BALANCED,
        Evidence(
            source=replace(now, incumbent=was.incumbent),
            target=TARGET,
            since=(standard,) if since else (),
        ),
    )


def lost_by_a_chain(*, since: bool) -> float:
    """Of a thousand adaptations, each a point worse than the one before, what comes through."""
    lost = 0
    for _ in range(1000):
        if lost + STEP > IMAGES or step(lost, since=since).decision is not Decision.ACCEPT:
            break
        lost += STEP
    return lost / IMAGES


def test_a_chain_of_small_losses_ends_at_the_margin() -> None:
    assert lost_by_a_chain(since=True) == pytest.approx(BALANCED.source_margin)


def test_without_a_standard_a_chain_of_small_losses_would_lose_ten_times_as_much() -> None:
    """The control: each step is within what one step may lose."""
    assert lost_by_a_chain(since=False) > 10 * BALANCED.source_margin


def test_what_is_lost_beyond_chance_by_all_versions_together_is_rejected() -> None:
    verdict = step(30, since=True)
    assert verdict.decision is Decision.REJECT
    assert creep(verdict).decision is Decision.REJECT
    assert "source since models/shop/versions/1: 100.0% right before, 89.0% after" in (
        verdict.summary
    )


def test_too_few_images_to_exclude_twice_the_margin_are_undecided() -> None:
    few = paired(40, 0, 0)
    since = (Since(version="models/shop/versions/1", pairs=few),)
    found = creep(judge(BALANCED, Evidence(source=few, target=TARGET, since=since)))
    assert found.decision is Decision.INCONCLUSIVE
    assert found.needed is not None
    assert found.needed > 40


@pytest.mark.parametrize(("lost", "decision"), [(10, Decision.ACCEPT), (40, Decision.REJECT)])
def test_an_earlier_domain_has_its_own_margin(lost: int, decision: Decision) -> None:
    earlier = paired(300, 0, 0, name="domains/dslr")
    since = Since(version="models/shop/versions/4", pairs=paired(300, lost, 0, name="domains/dslr"))
    evidence = Evidence(source=paired(300, 0, 0), target=TARGET, earlier=(earlier,), since=(since,))
    assert creep(judge(BALANCED, evidence), "earlier domains/dslr creep").decision is decision


def test_a_policy_that_lets_half_of_all_go_asks_for_no_more() -> None:
    lax = GuardPolicy(source_margin=0.6, reason="a test")
    since = (Since(version="models/shop/versions/1", pairs=paired(300, 90, 0)),)
    verdict = judge(lax, Evidence(source=paired(300, 0, 0), target=TARGET, since=since))
    assert not [check for check in verdict.checks if check.name == "source creep"]


def since(lost: int) -> Evidence:
    """A version that loses nothing, while all since the first lost so many of 300."""
    whole = (Since(version="models/shop/versions/1", pairs=paired(300, lost, 0)),)
    return Evidence(source=paired(300, 0, 0), target=TARGET, since=whole)


def test_what_a_chain_may_lose_can_be_said_apart_from_what_one_version_may() -> None:
    wide = GuardPolicy(source_creep_limit=0.1, reason="the old cameras go")
    assert wide.creep("source") == (0.1, 0.13)
    assert wide.creep("earlier") == (0.05, 0.1)
    assert creep(judge(BALANCED, since(24))).decision is Decision.REJECT
    found = creep(judge(wide, since(24)))
    assert found.decision is Decision.ACCEPT
    assert [one.limit for one in found.decided_by] == [0.1, 0.13]
    tight = GuardPolicy(source_creep_limit=0, reason="medicines")
    assert creep(judge(BALANCED, since(6))).decision is Decision.ACCEPT
    assert creep(judge(tight, since(6))).decision is Decision.REJECT
    lax = GuardPolicy(source_creep_limit=1, reason="all may go")
    assert not [one for one in judge(lax, since(200)).checks if one.name == "source creep"]


@pytest.mark.parametrize(
    "limits",
    [
        {"source_creep_limit": 0.1, "source_creep_margin": 0.1},
        {"source_creep_margin": 0.02},
        {"earlier_creep_limit": 0.3, "earlier_creep_margin": 0.2},
        {"source_creep_limit": 0.99},
        {"source_creep_limit": -0.1},
        {"source_creep_margin": 0},
        {"source_creep_limit": float("nan")},
        {"source_creep_limit": 1.1},
    ],
)
def test_a_creep_limit_that_no_images_could_show_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError):
        GuardPolicy.model_validate({**limits, "reason": "a test"})


def test_a_policy_without_creep_limits_is_written_as_before_they_could_be_said() -> None:
    """Workers of an older Acclimate take no job that asks for what they do not know."""
    assert not [name for name in BALANCED.model_dump() if "creep" in name]
    own = GuardPolicy(earlier_creep_limit=0.2, reason="a test")
    assert own.model_dump()["earlier_creep_limit"] == 0.2
    assert GuardPolicy.model_validate_json(own.model_dump_json()) == own
    assert own.overrides == {"earlier_creep_limit": None}
    derived = own.derived("", {"source_creep_limit": 0.2, "reason": "another"})
    assert GuardPolicy.model_validate(derived).creep("earlier") == (0.2, 0.25)
