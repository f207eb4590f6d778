"""Every check says the numbers that gave its answer, each beside the limit that it met."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.domain.outcomes import by_class, paired

from acclimate_service.domain.comparison import Comparison, at_least, within
from acclimate_service.domain.evidence import Evidence, FileFacts, Since
from acclimate_service.domain.guard import judge, judge_first
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.verdict import Check, Decision, Verdict

BALANCED = GuardPolicy()
RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "≤": operator.le,
    "<": operator.lt,
    "≥": operator.ge,
    ">": operator.gt,
}
ACCURACY = {
    ("≤", "<"): Decision.ACCEPT,
    ("≤", "≤"): Decision.ACCEPT,
    ("≤", "≥"): Decision.INCONCLUSIVE,
    (">", "≤"): Decision.REJECT,
    (">", ">"): Decision.INCONCLUSIVE,
}


def check(verdict: Verdict, name: str) -> Check:
    (found,) = [one for one in verdict.checks if one.name == name]
    return found


def told(verdict: Verdict, name: str) -> str:
    return ", ".join(one.text for one in check(verdict, name).decided_by)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(0, 30), st.integers(0, 30))
def test_what_decides_about_accuracy_is_told_and_true(n: int, lost: int, gained: int) -> None:
    right = n // 2
    pairs = paired(n, min(lost, right), min(gained, n - right), before=0.5)
    verdict = judge(BALANCED, Evidence(source=pairs, target=paired(60, 0, 9, before=0.5)))
    found = check(verdict, "source accuracy")
    relations = tuple(one.relation for one in found.decided_by)
    assert ACCURACY[relations] is found.decision  # type: ignore[index]  # of two, always
    for one in (one for check in verdict.checks for one in check.decided_by):
        slack = 1e-9 if one.what == "drop" else 0.0
        assert RELATIONS[one.relation](one.value - slack, one.limit), one
    assert found.interval is not None
    assert found.interval[0] <= found.observed <= found.interval[1]  # type: ignore[operator]


def test_each_kind_of_check_tells_what_it_weighed() -> None:
    pairs = paired(300, 2, 1)
    file = FileFacts(bytes=100, milliseconds=10.0)
    evidence = Evidence(
        source=pairs,
        target=paired(100, 2, 42, before=0.4, name="domains/webcam"),
        since=(Since(version="models/shop/versions/1", pairs=replace(pairs)),),
        incumbent_file=file,
        candidate_file=FileFacts(bytes=101, milliseconds=15.0),
        label_suspects=0.02,
    )
    verdict = judge(BALANCED, evidence)
    assert verdict.decision is Decision.ACCEPT, verdict.summary
    assert told(verdict, "source accuracy") == "drop 0.3 ≤ 1.0 points, at worst 2.0 < 3.0 points"
    assert told(verdict, "source creep") == "drop 0.3 ≤ 3.0 points, at worst 2.0 < 6.0 points"
    assert told(verdict, "target accuracy").startswith("drop \N{MINUS SIGN}40.0 ≤ 0.0 points, at w")
    assert told(verdict, "source classes") == "worst drop 3.3 ≤ 5.0 points"
    assert told(verdict, "source coverage") == "classes 0 ≤ 0"
    assert told(verdict, "source NLL").startswith("rise 0.0")
    assert told(verdict, "labels") == "suspect 2.0% ≤ 15.0%"
    assert told(verdict, "size") == "size 1.01 ≤ 1.10 times"
    assert told(verdict, "latency") == "latency 1.50 ≤ 2.00 times"
    assert json.loads(json.dumps(verdict.to_json()))["checks"][0]["decided_by"][1] == {
        "what": "at worst",
        "value": check(verdict, "source accuracy").interval[1],  # type: ignore[index]
        "relation": "<",
        "limit": 0.03,
        "measure": "points",
        "text": "at worst 2.0 < 3.0 points",
    }


@pytest.mark.parametrize(
    ("outcomes", "decision", "expected"),
    [
        ((30, 28, 12, 0), Decision.REJECT, "worst drop 40.0 > 5.0 points, p 0.00049 ≤ 0.05"),
        ((6, 6, 3, 0), Decision.INCONCLUSIVE, "worst drop 50.0 ≥ 50.0 points, p 0.25 > 0.05"),
        ((30, 28, 3, 0), Decision.ACCEPT, "worst drop 10.0 > 5.0 points, least p 0.25 > 0.05"),
        ((30, 28, 1, 0), Decision.ACCEPT, "worst drop 3.3 ≤ 5.0 points"),
    ],
)
def test_what_decides_about_classes_is_the_worst_one_s(
    outcomes: tuple[int, int, int, int], decision: Decision, expected: str
) -> None:
    pairs = by_class([(100, 95, 0, 5), outcomes])
    verdict = judge(BALANCED, Evidence(source=pairs, target=paired(60, 0, 9, before=0.5)))
    assert check(verdict, "source classes").decision is decision
    assert told(verdict, "source classes") == expected


def test_a_first_version_tells_what_it_must_beat() -> None:
    labels = np.arange(60) % 3
    probabilities = np.eye(3, dtype=np.float32)[labels]
    verdict = judge_first(BALANCED, labels=labels, probabilities=probabilities)
    assert told(verdict, "source accuracy") == "accuracy at least 95.7% > 33.3%"
    few = judge_first(BALANCED, labels=labels[:9], probabilities=probabilities[:9])
    assert told(few, "source accuracy") == "images 9 < 30"
    wrong = judge_first(BALANCED, labels=labels, probabilities=np.roll(probabilities, 1, axis=1))
    assert told(wrong, "source accuracy") == "accuracy 0.0% ≤ 33.3%"


@pytest.mark.parametrize("n", [1, 2, 40])
def test_where_all_may_be_lost_it_is_not_said_that_all_is_less_than_all(n: int) -> None:
    lax = GuardPolicy(target_margin=1, reason="a test")
    target = paired(n, 0, 0, before=0.0, name="domains/webcam")
    verdict = judge(lax, Evidence(source=paired(300, 0, 0), target=target))
    assert check(verdict, "target accuracy").decision is Decision.ACCEPT
    (_, bound) = check(verdict, "target accuracy").decided_by
    assert RELATIONS[bound.relation](bound.value, bound.limit)


def test_numbers_that_differ_are_written_so_that_they_do() -> None:
    assert within("drop", 0.01004, 0.01, "points").text == "drop 1.004 > 1.000 points"
    assert within("drop", 0.01, 0.01, "points").text == "drop 1.0 ≤ 1.0 points"
    assert at_least("images", 29, 30, "count").text == "images 29 < 30"
    assert within("size", 1.1004, 1.1, "ratio").text == "size 1.1004 > 1.1000 times"
    close = Comparison(what="p", value=0.05 + 1e-12, relation=">", limit=0.05, measure="p")
    assert close.text == "p 0.05 > 0.05"
