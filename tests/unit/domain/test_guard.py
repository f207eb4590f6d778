"""What the guard decides, on outcomes made to order."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.domain.outcomes import answers, by_class, paired

from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.groups import groups
from acclimate_service.domain.guard import (
    Check,
    Decision,
    Evidence,
    FileFacts,
    GuardPolicy,
    Paired,
    Verdict,
    judge,
    judge_first,
)
from acclimate_service.domain.measure import SLICES_MOST

BALANCED = GuardPolicy()
GOOD_SOURCE = paired(300, 0, 0)
GOOD_TARGET = paired(100, 2, 42, before=0.4, name="domains/webcam")


def check(verdict: Verdict, name: str) -> Check:
    (found,) = [one for one in verdict.checks if one.name == name]
    return found


@pytest.mark.parametrize(
    ("n", "lost", "gained"),
    [(300, 0, 0), (300, 3, 0), (300, 2, 1), (400, 5, 2), (500, 6, 3), (700, 3, 0), (700, 8, 5)],
)
def test_a_few_lost_of_some_hundred_source_images_are_accepted(
    n: int, lost: int, gained: int
) -> None:
    verdict = judge(BALANCED, Evidence(source=paired(n, lost, gained), target=GOOD_TARGET))
    assert verdict.decision is Decision.ACCEPT, verdict.summary
    assert verdict.needed is None
    assert verdict.summary.startswith("Accepted: source: ")


@pytest.mark.parametrize(
    ("n", "lost", "gained"), [(54, 0, 2), (100, 0, 0), (117, 2, 2), (100, 2, 42), (30, 0, 12)]
)
def test_a_small_target_that_did_not_fall_is_accepted(n: int, lost: int, gained: int) -> None:
    target = paired(n, lost, gained, before=0.5, name="domains/webcam")
    verdict = judge(BALANCED, Evidence(source=GOOD_SOURCE, target=target))
    assert verdict.decision is Decision.ACCEPT, verdict.summary


@pytest.mark.parametrize(("lost", "gained"), [(20, 2), (12, 0), (300, 5)])
def test_forgetting_that_is_no_chance_is_rejected(lost: int, gained: int) -> None:
    verdict = judge(BALANCED, Evidence(source=paired(400, lost, gained), target=GOOD_TARGET))
    assert verdict.decision is Decision.REJECT
    assert check(verdict, "source accuracy").decision is Decision.REJECT
    assert "over the limit of 1.0 points" in verdict.summary


@pytest.mark.parametrize(
    ("n", "lost", "gained"), [(60, 0, 0), (300, 8, 5), (300, 12, 8), (1000, 60, 48)]
)
def test_what_is_neither_shown_harmful_nor_harmless_is_inconclusive_with_a_number(
    n: int, lost: int, gained: int
) -> None:
    verdict = judge(BALANCED, Evidence(source=paired(n, lost, gained), target=GOOD_TARGET))
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.needed is not None
    assert verdict.needed > n
    assert f"about {verdict.needed} verify images would decide" in verdict.summary


@pytest.mark.parametrize(("n", "lost", "gained"), [(60, 0, 0), (200, 4, 3), (300, 12, 6)])
def test_as_many_images_as_needed_do_decide_at_the_next_look(
    n: int, lost: int, gained: int
) -> None:
    first = judge(BALANCED, Evidence(source=paired(n, lost, gained), target=GOOD_TARGET))
    assert first.needed is not None
    scale = first.needed / n
    more = paired(first.needed, round(lost * scale), round(gained * scale))
    second = judge(BALANCED, Evidence(source=more, target=GOOD_TARGET, looks=1))
    assert check(second, "source accuracy").decision is not Decision.INCONCLUSIVE


def empty(name: str = "domains/amazon") -> Paired:
    return paired(0, 0, 0, name=name)


@pytest.mark.parametrize("source", [None, empty()])
def test_without_source_images_nothing_is_accepted(source: Paired | None) -> None:
    verdict = judge(BALANCED, Evidence(source=source, target=GOOD_TARGET))
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.needed is not None
    assert 100 < verdict.needed < 1000


@pytest.mark.parametrize("goal", ["not_worse", "better"])
def test_without_target_images_nothing_is_accepted(goal: str) -> None:
    policy = GuardPolicy.model_validate({"target_goal": goal, "reason": "a test"})
    verdict = judge(policy, Evidence(source=GOOD_SOURCE, target=empty("domains/webcam")))
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.needed is not None


KEPT = paired(200, 1, 1, name="domains/dslr")
FORGOTTEN = paired(200, 30, 1, name="domains/phone")
UNSEEN = empty("domains/night")


@pytest.mark.parametrize(
    ("earlier", "decision"),
    [
        ((KEPT,), Decision.ACCEPT),
        ((KEPT, FORGOTTEN), Decision.REJECT),
        ((KEPT, UNSEEN), Decision.INCONCLUSIVE),
    ],
)
def test_every_domain_accepted_earlier_must_be_kept(
    earlier: tuple[Paired, ...], decision: Decision
) -> None:
    verdict = judge(BALANCED, Evidence(source=GOOD_SOURCE, target=GOOD_TARGET, earlier=earlier))
    assert verdict.decision is decision, verdict.summary
    transfer = verdict.measurements["backward_transfer"]
    assert isinstance(transfer, dict)
    assert transfer["domains/dslr"] == 0
    assert transfer.get("domains/phone", -0.145) == pytest.approx(-0.145)


def test_a_class_of_the_source_without_verify_images_is_inconclusive() -> None:
    source = paired(300, 0, 0)
    kept = source.labels != 4
    partial = Paired(
        name=source.name,
        labels=source.labels[kept],
        incumbent=source.incumbent[kept],
        candidate=source.candidate[kept],
    )
    labels = tuple("abcdefghij")
    verdict = judge(BALANCED, Evidence(source=partial, target=GOOD_TARGET, labels=labels))
    assert verdict.decision is Decision.INCONCLUSIVE
    assert "class e has no verify image" in check(verdict, "source coverage").message
    assert verdict.needed == 271


def test_a_target_with_only_some_of_the_labels_can_be_accepted() -> None:
    some = by_class([(40, 10, 0, 25), (40, 12, 0, 20)])
    wide = Paired(
        name="domains/webcam",
        labels=some.labels,
        incumbent=np.pad(some.incumbent, ((0, 0), (0, 8))),
        candidate=np.pad(some.candidate, ((0, 0), (0, 8))),
    )
    assert judge(BALANCED, Evidence(source=GOOD_SOURCE, target=wide)).decision is Decision.ACCEPT


def extended(images_of_new_class: int) -> Paired:
    """A target on which the candidate knows an eleventh class that the incumbent lacks."""
    old = GOOD_TARGET
    labels = np.concatenate([old.labels, np.full(images_of_new_class, 10)])
    fresh = np.zeros(images_of_new_class, dtype=int)
    incumbent = np.concatenate([old.incumbent, answers(fresh == 0, fresh, 10)])
    candidate = np.pad(old.candidate, ((0, 0), (0, 1)))
    return Paired(
        name=old.name,
        labels=labels,
        incumbent=incumbent,
        candidate=np.concatenate(
            [candidate, answers(np.ones_like(fresh, dtype=bool), fresh + 10, 11)]
        ),
    )


def test_a_new_class_counts_as_gained_and_must_have_target_images() -> None:
    source = Paired(
        name="domains/amazon",
        labels=GOOD_SOURCE.labels,
        incumbent=GOOD_SOURCE.incumbent,
        candidate=np.pad(GOOD_SOURCE.candidate, ((0, 0), (0, 1))),
    )
    seen = judge(BALANCED, Evidence(source=source, target=extended(12)))
    assert seen.decision is Decision.ACCEPT, seen.summary
    assert check(seen, "target accuracy").gained == 42 + 12
    unseen = judge(BALANCED, Evidence(source=source, target=extended(0)))
    assert unseen.decision is Decision.INCONCLUSIVE
    assert check(unseen, "target coverage").decision is Decision.INCONCLUSIVE


def with_slices(pairs: Paired, hurt: int) -> Paired:
    """The candidate's answers with the first *hurt* images right before made wrong: camera 3."""
    index = np.flatnonzero(pairs.before)[:60]
    candidate = pairs.candidate.copy()
    candidate[index[:hurt]] = np.roll(candidate[index[:hurt]], 1, axis=1)
    return dataclasses.replace(
        pairs,
        candidate=candidate,
        slices={"camera=3": index, "camera=4": np.setdiff1d(np.arange(len(pairs)), index)},
    )


def test_a_slice_that_is_harmed_refuses_a_set_that_is_not() -> None:
    verdict = judge(
        BALANCED, Evidence(source=with_slices(paired(2000, 0, 0), 15), target=GOOD_TARGET)
    )
    assert check(verdict, "source accuracy").decision is Decision.ACCEPT
    harmed = check(verdict, "source slices")
    assert harmed.decision is Decision.REJECT
    assert "camera=3 (60 of 60 right before, 45 after)" in harmed.message
    untouched = judge(
        BALANCED, Evidence(source=with_slices(paired(2000, 0, 0), 0), target=GOOD_TARGET)
    )
    assert untouched.decision is Decision.ACCEPT


@pytest.mark.parametrize("worse", [float("nan"), float("inf"), -0.5, 2.0])
def test_answers_that_are_no_probabilities_are_rejected(worse: float) -> None:
    candidate = GOOD_SOURCE.candidate.copy()
    candidate[7, 3] = worse
    broken = dataclasses.replace(GOOD_SOURCE, candidate=candidate)
    verdict = judge(BALANCED, Evidence(source=broken, target=GOOD_TARGET))
    assert verdict.decision is Decision.REJECT
    assert "1 of 300 images the answer is not a probability distribution" in verdict.summary
    json.dumps(verdict.to_json(), allow_nan=False)


def test_confidence_that_went_wrong_is_rejected_though_accuracy_stayed() -> None:
    careless = paired(600, 0, 0, before=0.8, confidence=0.9999999)
    verdict = judge(BALANCED, Evidence(source=careless, target=GOOD_TARGET))
    assert check(verdict, "source accuracy").decision is Decision.ACCEPT
    assert check(verdict, "source NLL").decision is Decision.REJECT
    assert verdict.decision is Decision.REJECT


def test_suspect_labels_over_the_limit_are_rejected() -> None:
    for share, decision in [(0.15, Decision.ACCEPT), (0.16, Decision.REJECT)]:
        verdict = judge(
            BALANCED, Evidence(source=GOOD_SOURCE, target=GOOD_TARGET, label_suspects=share)
        )
        assert verdict.decision is decision


def test_suspect_labels_to_judge_by_leave_the_answer_open() -> None:
    evidence = Evidence(source=GOOD_SOURCE, target=GOOD_TARGET, held_out_suspects=0.16)
    verdict = judge(BALANCED, evidence)
    assert verdict.decision is Decision.INCONCLUSIVE
    assert check(verdict, "held-out labels").decision is Decision.INCONCLUSIVE
    assert check(verdict, "labels").decision is Decision.ACCEPT


def test_a_first_version_learned_from_suspect_labels_is_rejected() -> None:
    labels = np.arange(200) % 4
    answers = np.full((200, 4), 0.01)
    answers[np.arange(200), labels] = 0.97
    for share, decision in [(0.1, Decision.ACCEPT), (0.3, Decision.REJECT)]:
        verdict = judge_first(BALANCED, labels=labels, probabilities=answers, label_suspects=share)
        assert verdict.decision is decision


def test_a_larger_or_slower_file_is_rejected_and_an_unmeasured_one_is_not_judged() -> None:
    def decision(candidate: FileFacts | None) -> Decision:
        evidence = Evidence(
            source=GOOD_SOURCE,
            target=GOOD_TARGET,
            incumbent_file=FileFacts(bytes=1_000_000, milliseconds=10),
            candidate_file=candidate,
        )
        return judge(BALANCED, evidence).decision

    assert decision(FileFacts(bytes=1_050_000, milliseconds=12)) is Decision.ACCEPT
    assert decision(FileFacts(bytes=1_200_000, milliseconds=12)) is Decision.REJECT
    assert decision(FileFacts(bytes=1_000_000, milliseconds=25)) is Decision.REJECT
    assert decision(FileFacts(bytes=1_000_000)) is Decision.ACCEPT
    assert decision(None) is Decision.ACCEPT


def test_a_worn_out_holdout_is_never_called_a_hundred_percent_sure() -> None:
    verdict = judge(BALANCED, Evidence(source=paired(2000, 0, 0), target=GOOD_TARGET, looks=200))
    message = check(verdict, "source accuracy").message
    assert "with 99.99992% confidence at look 201" in message


def test_a_verdict_is_plain_json_and_the_same_every_time() -> None:
    evidence = Evidence(
        source=with_slices(paired(300, 2, 1), 0),
        target=GOOD_TARGET,
        earlier=(paired(200, 1, 1, name="domains/dslr"),),
        incumbent_file=FileFacts(bytes=10, milliseconds=1),
        candidate_file=FileFacts(bytes=10, milliseconds=1),
    )
    once, twice = (json.dumps(judge(BALANCED, evidence).to_json(), allow_nan=False) for _ in "ab")
    assert once == twice
    told = json.loads(once)
    assert [one["role"] for one in told["measurements"]["sets"]] == ["source", "earlier", "target"]
    assert told["measurements"]["policy"]["base"] == "balanced"
    source = told["measurements"]["sets"][0]
    assert sum(row["lost"] for row in source["classes"]) == source["lost"] == 2
    assert len(source["slices"]) == 2


SIZES = st.integers(0, 200)


@settings(max_examples=40)
@given(SIZES, SIZES, st.integers(0, 40), st.integers(0, 8), st.integers(0, 30))
def test_a_verdict_accepts_only_if_every_check_does(
    n_source: int, n_target: int, lost: int, gained: int, looks: int
) -> None:
    source = paired(n_source, min(lost, n_source // 2), min(gained, n_source // 30))
    target = paired(n_target, min(gained, n_target // 4), min(lost, n_target // 3), before=0.5)
    verdict = judge(BALANCED, Evidence(source=source, target=target, looks=looks))
    decisions = {one.decision for one in verdict.checks}
    assert (verdict.decision is Decision.ACCEPT) == (decisions == {Decision.ACCEPT})
    assert (verdict.decision is Decision.REJECT) == (Decision.REJECT in decisions)
    if verdict.decision is Decision.ACCEPT:
        drop = check(verdict, "source accuracy")
        assert drop.observed is not None
        assert drop.observed <= 0.01
        assert drop.interval is not None
        assert drop.interval[1] <= 0.03 + 1e-4
    json.dumps(verdict.to_json(), allow_nan=False)


@pytest.mark.parametrize("right", [0, 3, 20])
def test_a_first_version_that_guesses_is_not_accepted(right: int) -> None:
    labels = np.arange(100) % 5
    verdict = judge_first(
        BALANCED, labels=labels, probabilities=answers(np.arange(100) < right, labels, 5)
    )
    assert verdict.decision is Decision.REJECT


@pytest.mark.parametrize(("most", "n"), [(31, 39), (23, 43), (30, 52), (40, 52)])
def test_a_first_version_that_always_answers_the_most_frequent_class_is_rejected(
    most: int, n: int
) -> None:
    """Whatever rounding does to shares such as 31 of 39."""
    labels = np.repeat([0, 1], [most, n - most])
    always = np.tile([0.9, 0.1], (n, 1))
    accuracy = judge_first(BALANCED, labels=labels, probabilities=always).checks[0]
    assert accuracy.decision is Decision.REJECT
    assert accuracy.decided_by[0].relation == "≤"


def test_a_first_version_that_beats_the_majority_by_nothing_to_speak_of_asks_for_no_number() -> (
    None
):
    labels = np.repeat([0, 1], [20, 20])
    right = np.eye(2)[labels]
    right[:10] = [0.0, 1.0]  # 30 of 40
    first = judge_first(BALANCED, labels=labels, probabilities=right, majority=0.75 - 1e-9)
    assert first.decision is Decision.INCONCLUSIVE
    assert first.needed is None
    assert "no number of images would decide" in first.summary


def test_a_first_version_is_accepted_when_it_surely_beats_the_majority() -> None:
    labels = np.arange(100) % 5
    learned = answers(np.arange(100) < 80, labels, 5)
    assert judge_first(BALANCED, labels=labels, probabilities=learned).decision is Decision.ACCEPT
    rare = judge_first(BALANCED, labels=labels, probabilities=learned, majority=0.78)
    assert rare.decision is Decision.INCONCLUSIVE
    assert rare.needed is not None
    assert rare.needed > 100


@pytest.mark.parametrize("n", [0, 1, 29])
def test_a_first_version_with_too_few_images_is_inconclusive(n: int) -> None:
    labels = np.arange(n) % 3
    verdict = judge_first(
        BALANCED, labels=labels, probabilities=answers(np.ones(n, dtype=bool), labels, 3)
    )
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.needed == 30
    json.dumps(verdict.to_json(), allow_nan=False)


def test_a_first_version_without_images_of_a_class_or_with_nan_is_not_accepted() -> None:
    labels = np.arange(100) % 4
    blind = answers(np.ones(100, dtype=bool), labels, 5)
    assert (
        judge_first(BALANCED, labels=labels, probabilities=blind).decision is Decision.INCONCLUSIVE
    )
    blind[3, 2] = np.nan
    assert judge_first(BALANCED, labels=labels, probabilities=blind).decision is Decision.REJECT


def test_a_tag_for_every_few_images_costs_no_square_of_them() -> None:
    """Masks of 4,000 slices over 12,000 images, and a row for each, would be 48 MB and 1 MB."""
    pairs = paired(12_000, 40, 40)
    every = np.arange(len(pairs))
    tracemalloc.start()
    try:
        slices = {f"burst={n}": every[3 * n : 3 * n + 3] for n in range(4000)}
        source = dataclasses.replace(pairs, slices=slices)
        assert len(groups(source, slices, BALANCED.level)) == 4000
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 12_000 * 4000 / 4
    verdict = judge(BALANCED, Evidence(source=source, target=GOOD_TARGET))
    measured = verdict.measurements["sets"][0]  # type: ignore[index]
    assert measured["slices_in_all"] == 4000  # type: ignore[index,call-overload]
    rows: Any = measured["slices"]  # type: ignore[index,call-overload]
    assert len(rows) == SLICES_MOST
    assert sum(row["lost"] + row["gained"] for row in rows) == 80


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": np.arange(9)},
        {"labels": np.zeros(10)},
        {"labels": np.full(10, 7)},
        {"labels": np.full(10, -1)},
        {"candidate": np.full((10, 2), 0.5)},
        {"incumbent": np.full(10, 0.5)},
        {"slices": {"camera=3": np.ones(10, dtype=bool)}},
        {"slices": {"camera=3": np.ones(3)}},
        {"slices": {"camera=3": np.array([0, 10])}},
        {"slices": {"camera=3": np.array([-1, 3])}},
    ],
)
def test_outcomes_that_are_not_paired_are_refused(wrong: dict[str, object]) -> None:
    whole: dict[str, Any] = {
        "name": "domains/amazon",
        "labels": np.zeros(10, dtype=int),
        "incumbent": np.full((10, 3), 1 / 3),
        "candidate": np.full((10, 3), 1 / 3),
    }
    Paired(**whole)
    with pytest.raises(InvalidSpec):
        Paired(**whole | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"looks": -1},
        {"label_suspects": 1.5},
        {"earlier": (GOOD_SOURCE, GOOD_SOURCE)},
    ],
)
def test_evidence_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec):
        Evidence(source=None, target=GOOD_TARGET, **wrong)
