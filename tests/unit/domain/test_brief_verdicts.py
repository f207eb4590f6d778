"""What the rows of a store keep of a verdict, however many domains and classes it is about."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.unit.domain.outcomes import answers, paired

from acclimate_service.domain.evidence import Evidence, Paired, Since
from acclimate_service.domain.guard import judge, judge_first
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.domain.verdict import ROWS_MOST, Verdict

BALANCED = GuardPolicy()
TARGET = paired(60, 0, 9, before=0.5, name="domains/new")


def verdict(domains: int, *, harmed: int = 0) -> Verdict:
    """On a version that knows so many domains, and forgets some of them."""
    sets = [
        paired(100, 40 if place < harmed else 0, 0, name=f"domains/camera-{place}")
        for place in range(domains)
    ]
    since = tuple(Since(version="models/shop/versions/1", pairs=pairs) for pairs in sets)
    return judge(
        BALANCED,
        Evidence(source=paired(300, 0, 0), target=TARGET, earlier=tuple(sets), since=since),
    )


def size(told: Any) -> int:
    return len(json.dumps(told, allow_nan=False))


def test_of_few_domains_every_check_is_kept() -> None:
    few = verdict(ROWS_MOST)
    brief: Any = few.brief()
    assert brief["checks"] == few.to_json()["checks"]
    assert brief["earlier"] == {}
    assert [one["role"] for one in brief["measurements"]["sets"]].count("earlier") == ROWS_MOST


def test_of_many_domains_those_that_decide_are_kept_and_of_the_others_a_row() -> None:
    many = verdict(40, harmed=2)
    brief: Any = many.brief()
    about = {check["name"].split()[1] for check in brief["checks"] if "earlier" in check["name"]}
    assert about == {"domains/camera-0", "domains/camera-1"}
    assert all(check["decision"] != "ACCEPT" for check in brief["checks"] if "camera" in str(check))
    assert len(brief["earlier"]) == 40
    assert brief["earlier"]["domains/camera-0"] == {"n": 100, "lost": 40, "gained": 0, "creep": 0.4}
    assert brief["earlier"]["domains/camera-9"] == {"n": 100, "lost": 0, "gained": 0, "creep": 0.0}
    whole: Any = many.to_json()
    for key in ("decision", "summary", "needed"):
        assert brief[key] == whole[key]
    assert [c for c in brief["checks"] if "earlier" not in c["name"]] == [
        c for c in whole["checks"] if "earlier" not in c["name"]
    ]
    assert [one["role"] for one in brief["measurements"]["sets"]] == ["source", "target"]
    assert "mean_backward_transfer" in brief["measurements"]


def test_a_brief_verdict_grows_by_a_line_for_each_domain() -> None:
    few, many = verdict(20), verdict(40)
    each = (size(many.brief()) - size(few.brief())) / 20
    assert each < 100
    assert (size(many.to_json()) - size(few.to_json())) / 20 > 40 * each


@pytest.mark.parametrize("classes", [10, 1000])
def test_ten_thousand_labels_are_no_rows(classes: int) -> None:
    labels = np.arange(2 * classes) % classes
    first = judge_first(
        BALANCED,
        labels=labels,
        probabilities=answers(np.ones(len(labels), np.bool_), labels, classes),
    )
    assert "classes" in first.measurements
    assert "classes" not in first.brief()["measurements"]  # type: ignore[operator]  # a mapping
    assert size(first.brief()) < 4000


def test_a_candidate_whose_answers_are_unsound_everywhere_is_rejected_in_brief() -> None:
    def unsound(name: str) -> Paired:
        pairs = paired(20, 0, 0, name=name)
        return replace(pairs, candidate=np.full_like(pairs.candidate, np.nan))

    earlier = tuple(unsound(f"domains/camera-{place}") for place in range(ROWS_MOST + 1))
    evidence = Evidence(source=unsound("domains/source"), target=TARGET, earlier=earlier)
    brief: Any = judge(BALANCED, evidence).brief()
    assert brief["decision"] == "REJECT"
    assert len(brief["checks"]) == ROWS_MOST + 2
