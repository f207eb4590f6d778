"""Presets, overrides and the reasons for them."""

from __future__ import annotations

import re
from pathlib import Path

import pydantic
import pytest
from tests.unit.domain.outcomes import paired

from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.guard import Decision, Evidence, GuardPolicy, judge

PRESETS = ("strict", "balanced", "exploratory")
ENDS = ("limit", "margin")
CHOICES = (
    "base",
    "reason",
    "target_goal",
    "class_minimum",
    "label_suspects_use",
    "first_minimum",
)


def test_the_defaults_are_the_balanced_preset() -> None:
    assert GuardPolicy() == GuardPolicy.preset("balanced")
    assert (GuardPolicy().source_drop_limit, GuardPolicy().source_margin) == (0.01, 0.03)


def test_every_limit_is_laxer_from_preset_to_preset() -> None:
    strict, balanced, exploratory = (GuardPolicy.preset(name).model_dump() for name in PRESETS)
    for name in strict.keys() - set(CHOICES):
        assert strict[name] < balanced[name] < exploratory[name], name
    for name in ("class_minimum", "first_minimum"):
        assert strict[name] > balanced[name] > exploratory[name], name
    assert strict["target_goal"] == "better"


def test_the_presets_are_the_published_ones() -> None:
    """Stored jobs hold their limits; a preset that changed would make them overrides."""
    guide = (Path(__file__).parents[3] / "docs" / "guard.md").read_text(encoding="utf-8")
    published = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \| (\S+) \|$", guide, re.MULTILINE)
    derived = {f"{role}_creep_{what}" for role in ("source", "earlier") for what in ENDS}
    limits = set(GuardPolicy.model_fields) - {"base", "reason"}
    assert {row[0] for row in published} == limits - derived
    assert all(guide.count(f"`{name}`") for name in derived)
    for column, name in enumerate(PRESETS, start=1):
        values = {row[0]: row[column] for row in published}
        assert GuardPolicy.model_validate({**values, "base": name}) == GuardPolicy.preset(name)


@pytest.mark.parametrize("name", PRESETS)
def test_a_policy_survives_json(name: str) -> None:
    policy = GuardPolicy.preset(name)
    assert GuardPolicy.model_validate_json(policy.model_dump_json()) == policy
    own = GuardPolicy.model_validate({"base": name, "level": 0.04, "reason": "the client's"})
    assert GuardPolicy.model_validate_json(own.model_dump_json()) == own


def test_what_is_not_given_has_the_presets_value() -> None:
    policy = GuardPolicy(base="strict", source_margin=0.05, reason="a new lens")
    assert policy.level == 0.025
    assert policy.overrides == {"source_margin": 0.02}


def test_an_override_without_a_reason_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="source_margin differ from"):
        GuardPolicy(source_margin=0.1)
    with pytest.raises(pydantic.ValidationError, match="give a reason"):
        GuardPolicy(source_margin=0.1, reason="  ")
    assert GuardPolicy(source_margin=0.03).overrides == {}


def test_an_override_and_its_reason_stand_in_the_verdict() -> None:
    policy = GuardPolicy(source_margin=0.2, reason="the old camera is gone")
    target = paired(100, 0, 20, before=0.5, name="domains/webcam")
    verdict = judge(policy, Evidence(source=paired(60, 0, 0), target=target))
    assert verdict.decision is Decision.ACCEPT
    assert verdict.measurements["overrides"] == {"source_margin": 0.03}
    told = verdict.measurements["policy"]
    assert isinstance(told, dict)
    assert told["reason"] == "the old camera is gone"


@pytest.mark.parametrize(
    "wrong",
    [
        {"source_drop_limit": 0.03},
        {"earlier_margin": 0.01},
        {"target_margin": 0.0},
        {"level": 0.0},
        {"level": float("nan")},
        {"source_margin": -0.1},
        {"nll_rise_limit": float("inf")},
        {"base": "reckless"},
        {"margin": 0.1},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        GuardPolicy.model_validate({"reason": "a test", **wrong})


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidSpec, match="there are balanced, strict, exploratory"):
        GuardPolicy.preset("reckless")


def test_better_is_asked_for_by_a_gain_that_is_shown() -> None:
    better = GuardPolicy(target_goal="better", reason="the target pays for it")
    same = Evidence(source=paired(400, 0, 0), target=paired(400, 5, 5, name="domains/webcam"))
    assert judge(GuardPolicy(), same).decision is Decision.ACCEPT
    unmoved = judge(better, same)
    assert unmoved.decision is Decision.INCONCLUSIVE
    assert "no number of images would decide" in unmoved.summary
    gained = Evidence(source=paired(400, 0, 0), target=paired(400, 2, 12, name="domains/webcam"))
    assert judge(better, gained).decision is Decision.ACCEPT
