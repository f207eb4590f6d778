"""What a report tells its reader to do."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.worker.reports import Document, Scene, adapted, bootstrapped, registered

from acclimate_service.domain.job import JobSpec
from acclimate_service.worker.advice import headline, steps, subject
from acclimate_service.worker.printable import printable
from acclimate_service.worker.told import Spec, Told


def commands(told: Document) -> list[str]:
    return [step.command for step in steps(Told.model_validate(told)) if step.command]


def texts(told: Document) -> str:
    return "\n".join(step.text for step in steps(Told.model_validate(told)))


def said(told: Document) -> str:
    return headline(Told.model_validate(told))


def with_check(told: Document, name: str, **changes: Any) -> Document:
    """The document as if this one check had come out differently, and decided all."""
    verdict = told["verdict"]
    for check in verdict["checks"]:
        if check["name"] == name:
            check.update(changes)
    verdict["decision"] = changes["decision"]
    told["state"] = {"REJECT": "REJECTED", "INCONCLUSIVE": "INCONCLUSIVE"}[changes["decision"]]
    return told


ACCEPTED = Scene(source_images=800)


def test_an_accepted_version_is_to_be_promoted() -> None:
    told = adapted(ACCEPTED)
    assert commands(told) == ["acclimate versions shop", "acclimate promote shop VERSION"]
    told["version"] = "models/shop/versions/4"
    assert commands(told) == ["acclimate promote shop 4"]


def test_an_alias_that_moved_can_be_moved_back() -> None:
    told = adapted(Scene(source_images=800, spec=JobSpec(promote_to="production")))
    assert commands(told) == ["acclimate rollback shop --alias production"]


def test_a_holdout_that_was_often_looked_at_is_to_be_renewed() -> None:
    told = adapted(Scene(source_images=3000, looks=5, source_lost=0.0, source_gained=0.01))
    assert told["verdict"]["decision"] == "ACCEPT"
    assert "5 candidates for webcam were judged by its verify images before" in texts(told)


def test_undecided_names_the_domain_and_how_many_images_to_hold_out() -> None:
    told = adapted(Scene(source_images=60))
    (check,) = [c for c in told["verdict"]["checks"] if c["name"] == "source accuracy"]
    more = -(-(check["needed"] - 60) * 10 // 6)  # six of ten images held out verify
    assert f"Hold out about {more} more images of amazon" in texts(told)
    assert commands(told) == [
        "acclimate upload FOLDER --domain amazon --role holdout",
        "acclimate adapt shop webcam",
    ]
    assert said(told).startswith("No new version: too few held-out images to be sure of amazon.")


def test_the_need_of_a_class_is_counted_from_the_whole_set() -> None:
    told = adapted(ACCEPTED)
    changes = {"decision": "INCONCLUSIVE", "needed": 300, "n": 30}
    told = with_check(told, "target classes", **changes)
    assert "Hold out about 100 more images of webcam" in texts(told)  # 300 less the set's 240


def test_what_no_images_decide_is_not_answered_with_more_images() -> None:
    told = with_check(adapted(ACCEPTED), "target accuracy", decision="INCONCLUSIVE", needed=None)
    assert "No number of images would decide accuracy on webcam" in texts(told)
    assert not any("upload" in command for command in commands(told))


def test_a_number_of_images_that_nobody_has_is_not_asked_for() -> None:
    told = with_check(adapted(ACCEPTED), "target ECE", decision="INCONCLUSIVE", needed=25_376)
    assert "Only 25,376 verify images would decide ECE on webcam" in texts(told)
    assert "Train for fewer --epochs" in texts(told)
    assert not any("upload" in command for command in commands(told))


def test_what_a_chain_forgot_is_answered_with_an_earlier_version() -> None:
    told = with_check(adapted(ACCEPTED), "source NLL", decision="REJECT")
    for check in told["verdict"]["checks"]:
        check["name"] = check["name"].replace("source NLL", "source creep")
    assert "have together forgotten as much of amazon as they may" in texts(told)
    assert "--base" in texts(told)
    assert commands(told)[0] == "acclimate adapt shop webcam --replay-per-class 40"
    assert "accuracy on amazon, all versions together" in [
        subject(Told.model_validate(told), check)
        for check in Told.model_validate(told).verdict.checks  # type: ignore[union-attr]
    ]


def test_forgetting_is_answered_with_more_replay() -> None:
    told = adapted(Scene(source_lost=0.06, spec=JobSpec(replay_per_class=30)))
    assert "Too much of amazon and dslr was forgotten" in texts(told)
    assert "acclimate adapt shop webcam --replay-per-class 60" in commands(told)
    assert said(told).startswith("No new version: beyond the limits on amazon and dslr.")


def test_a_job_that_is_asked_for_again_is_asked_for_as_before() -> None:
    spec = JobSpec(strategy="last:2", variants=("int8",), extend_labels=True, promote_to="edge")
    told = with_check(
        adapted(Scene(spec=spec)), "source accuracy", decision="INCONCLUSIVE", needed=900
    )
    assert (
        "acclimate adapt shop webcam --strategy last:2 --extend-labels --variant int8 "
        "--promote-to edge"
    ) in commands(told)


def test_what_advice_leaves_unsaid_is_the_default() -> None:
    assert Spec().model_dump(mode="json").items() <= JobSpec().model_dump(mode="json").items()


@pytest.mark.parametrize(
    ("check", "word"),
    [
        ("target accuracy", "Look at the labels of its images first"),
        ("source classes", "A class of amazon was lost"),
        ("earlier domains/dslr slices", "A slice of dslr was lost"),
        ("target NLL", "The probabilities on webcam mean less"),
        ("target ECE", "The confidence on webcam fits less"),
        ("labels", "Too many labels look wrong"),
        ("size", "The exported file has grown"),
        ("latency", "answered too slowly"),
    ],
)
def test_every_rejection_says_what_to_try(check: str, word: str) -> None:
    told = with_check(adapted(ACCEPTED), check, decision="REJECT")
    assert word in texts(told)
    assert 'acclimate jobs force 0198a3f4 --reason "…"' in commands(told)


def test_a_first_version_that_guesses_is_told_so() -> None:
    told = bootstrapped(right=0.1)
    assert "no better than guessing" in said(told)
    assert "acclimate adapt shop amazon" in commands(told)


def test_a_first_version_with_few_images_asks_for_more_of_its_source() -> None:
    assert "more images of amazon" in texts(bootstrapped(images=20))


def test_a_registration_is_to_be_promoted_if_wanted() -> None:
    assert "measured, not judged" in said(registered())
    assert commands(registered())[-1] == "acclimate promote shop VERSION"


def test_the_headline_says_how_accuracy_moved() -> None:
    accepted, rejected = said(adapted(ACCEPTED)), said(adapted(Scene(source_lost=0.06)))
    assert "On webcam, right answers rise from 66.7% to 89.6%" in accepted
    assert "on amazon, right answers would fall from" in rejected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\x00b\x1b", "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"),
        ("\u202eevil", "\N{REPLACEMENT CHARACTER}evil"),
        ("\ud800", "\N{REPLACEMENT CHARACTER}"),
        ("x" * 11, "x" * 9 + "…"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
    ids=ascii,
)
def test_text_is_cleaned_and_cut(text: str, shown: str) -> None:
    assert printable(text, 10) == shown
