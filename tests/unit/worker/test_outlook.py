"""Too few held-out images are told of before a job trains for nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tests.contract.builders import NOON

from acclimate_service.domain.job import EventKind, Job, JobDraft, JobKind, JobSpec, JobState
from acclimate_service.domain.model import Manifest
from acclimate_service.domain.names import DomainName, JobName, ModelName, VersionName
from acclimate_service.domain.policy import GuardPolicy
from acclimate_service.worker.evaluate import VerifySet
from acclimate_service.worker.outlook import foretell, tell_creep
from acclimate_service.worker.stock import JobImages
from acclimate_service.worker.story import Story

AMAZON, WEBCAM = DomainName("amazon"), DomainName("webcam")
SPACE = ("mug", "pen", "cap")


class Told:
    """A story that remembers what it was told, of a model with so many looks."""

    def __init__(self, looks: int = 0) -> None:
        self.messages: list[str] = []
        self.store = self.jobs = self
        self.looks = lambda model, domain: looks

    def tell(self, kind: EventKind, message: str, facts: dict[str, Any]) -> None:
        assert kind is EventKind.WARNING
        assert facts
        assert all(count > 0 for count in facts.values())
        self.messages.append(message)


def job_for(*, first: bool = False) -> Job:
    """A job that learns webcam, or a first version of amazon."""
    draft = JobDraft(
        kind=JobKind.BOOTSTRAP if first else JobKind.ADAPT,
        model=ModelName("desk"),
        source=AMAZON,
        target=None if first else WEBCAM,
        incumbent=None if first else VersionName("desk", "1"),
        spec=JobSpec(),
    )
    return Job(
        name=JobName("j"), draft=draft, request_id="", state=JobState.RUNNING, phase=None,
        attempt=1, cancel_requested=False, version=None, failure=None, created_at=NOON,
        started_at=NOON, ended_at=None,
    )  # fmt: skip


def told(
    source: list[int], target: list[int], *, looks: int = 0, known: int = 3, first: bool = False
) -> str:
    """What is said of so many verify images of each label."""
    job = job_for(first=first)
    verify = {
        name: VerifySet(name=str(name), examples=(), labels=np.repeat(np.arange(3), each))
        for name, each in ((AMAZON, source), (WEBCAM, target))
    }
    images = JobImages(
        stock=cast(Any, None),
        target=verify[AMAZON if first else WEBCAM],
        learnt={},
        known=() if first else (verify[AMAZON],),
        digests={},
    )
    story = Told(looks)
    foretell(cast(Story, story), job, images, SPACE, known=0 if first else known)
    return "\n".join(story.messages)


def test_nothing_is_said_where_a_good_version_can_be_accepted() -> None:
    assert told([50, 50, 50], [10, 10, 10]) == ""
    assert told([12, 12, 12], [0, 0, 0], first=True) == ""


def test_a_source_that_can_exclude_nothing_is_told_of() -> None:
    said = told([30, 30, 30], [10, 10, 10])
    assert "source: 100.0% right before" in said
    assert "hold out" in said
    assert "target" not in said


def test_looks_wear_out_what_was_enough() -> None:
    assert "about 4" in told([50, 50, 50], [10, 10, 10], looks=10)


@pytest.mark.parametrize("first", [True, False])
def test_a_class_without_a_verify_image_is_told_of(first: bool) -> None:
    assert "class cap has no verify image" in told([80, 80, 0], [10, 10, 10], first=first)


def test_a_new_class_is_looked_for_in_the_target() -> None:
    assert told([80, 80, 0], [10, 10, 10], known=2) == ""
    assert "target: class cap" in told([80, 80, 0], [15, 15, 0], known=2)


def test_a_first_version_needs_its_minimum() -> None:
    assert "at least 30 verify images" in told([9, 9, 9], [0, 0, 0], first=True)


def told_of_creep(lost: float | None, *, standard: str = "1", margin: float = 0.03) -> str:
    """What is said of a third version that has lost so much of the source since the first."""
    checks: list[dict[str, Any]] = [{"name": "source accuracy", "observed": 0.9}]
    checks += [] if lost is None else [{"name": "source creep", "observed": lost}]
    policy = GuardPolicy(source_margin=margin, reason="a test")
    job = replace(job_for(), draft=replace(job_for().draft, spec=JobSpec(guard=policy)))
    standards = {AMAZON: VersionName("desk", standard), WEBCAM: VersionName("desk", "1")}
    incumbent = SimpleNamespace(version="models/desk/versions/3", verdict={"checks": checks})
    story = Told()
    tell_creep(cast(Story, story), job, cast(Manifest, incumbent), standards)
    return "\n".join(story.messages)


def test_what_a_chain_may_still_lose_is_told_before_it_trains() -> None:
    said = told_of_creep(0.025)
    assert "domains/amazon (2.5 points lost since models/desk/versions/1, 0.5 points left)" in said
    assert "webcam" not in said
    assert "0.0 points left" in told_of_creep(0.08)


def test_what_is_lost_of_one_of_many_domains_is_told_from_its_row() -> None:
    rows = {"domains/amazon": {"creep": 0.045}, "domains/webcam": {"creep": 0.001}}
    verdict = {"checks": [{"name": "source creep", "observed": 0.0}], "earlier": rows}
    incumbent = SimpleNamespace(version="models/desk/versions/3", verdict=verdict)
    job = replace(job_for(), draft=replace(job_for().draft, source=DomainName("yard"), target=None))
    first = VersionName("desk", "1")
    story = Told()
    standards = {DomainName("yard"): first, AMAZON: first, WEBCAM: first}
    tell_creep(cast(Story, story), job, cast(Manifest, incumbent), standards)
    (said,) = story.messages
    assert "domains/amazon (4.5 points lost since models/desk/versions/1, 0.5 points left)" in said
    assert "webcam" not in said


def test_a_chain_that_may_lose_another_step_is_not_warned_of() -> None:
    assert told_of_creep(0.015) == told_of_creep(None) == ""
    assert told_of_creep(0.025, margin=0.05) == ""
    assert told_of_creep(0.025, standard="3") == ""
