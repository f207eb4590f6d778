"""Wrong labels, through whole jobs: a real network, digits, and some of them mislabelled."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.integration.workbench import MODEL, Bench, Shot

from acclimate.demo import digits
from acclimate_service.domain.examples import Role
from acclimate_service.domain.guard import GuardPolicy
from acclimate_service.domain.job import EventKind, Job, JobState

SIZE = 48
QUICK = {"strategy": "tail", "epochs": 5, "views": 1}
# Small sets: what is tried here is the labels, not how sure the guard can be of them.
ROOMY = GuardPolicy(base="exploratory", label_suspects_limit=0.15, reason="few images")


def shots(examples: Iterable[Any], *, dark: bool = False) -> list[Shot]:
    """Digits as they are, or as another camera sees them: inverted and blurred."""
    found = []
    for example in examples:
        image = example.image
        if dark:
            picture = ImageOps.invert(Image.open(io.BytesIO(image)).convert("RGB"))
            encoded = io.BytesIO()
            picture.point(lambda value: 40 + 0.6 * value).save(encoded, "PNG")
            image = encoded.getvalue()
        found.append(Shot(image=image, label=example.label, id=example.id))
    return found


def flipped(
    given: list[Shot], share: float, *, labels: Sequence[str] = digits.LABELS, seed: int = 0
) -> tuple[list[Shot], set[str]]:
    """The shots, that share of them with another label; and which."""
    generator = np.random.default_rng(seed)
    wrong = set(generator.choice(len(given), round(share * len(given)), replace=False).tolist())
    changed = []
    for place, shot in enumerate(given):
        by = int(generator.integers(1, len(labels))) if place in wrong else 0
        moved = labels[(labels.index(shot.label) + by) % len(labels)]
        changed.append(replace(shot, label=moved))
    return changed, {given[place].id for place in wrong}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A model that has learned the bright digits."""
    bench = Bench(tmp_path_factory.mktemp("bench"))
    source = digits.uci(train=300, holdout=300)
    bench.domain("bright", digits.LABELS)
    bench.upload("bright", shots(source.train))
    bench.upload("bright", shots(source.holdout), Role.HOLDOUT)
    bench.register("bright", size=SIZE)
    job = bench.job("bright", guard=ROOMY, **QUICK)
    assert job.state is JobState.SUCCEEDED, job.summary
    made = bench.store.registry.version_of_job(job.name)
    assert made is not None
    assert made.manifest.preprocessing.decoding == bench.store.registry.get_model(MODEL).decoding
    return bench


def adapted(bench: Bench, name: str, share: float, **guard: Any) -> tuple[Job, set[str]]:
    """An adaptation to dark digits, that share of the train labels wrong; and which they are."""
    target = digits.uci(train=200, holdout=200, seed=1)
    bench.domain(name, digits.LABELS)
    train, wrong = flipped(shots(target.train, dark=True), share)
    bench.upload(name, train)
    bench.upload(name, shots(target.holdout, dark=True), Role.HOLDOUT)
    policy = ROOMY.model_copy(update=guard)
    return bench.job(name, guard=policy, **QUICK), wrong


def accused(bench: Bench, job: Job) -> set[str]:
    told = json.loads(bench.store.blobs.get(job.report_json))
    return {row["id"] for row in told["label_suspects"] if row["split"] == "TRAIN"}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_flipped_labels_are_found_and_listed_and_too_many_make_no_version(bench: Bench) -> None:
    clean, _ = adapted(bench, "clean", 0.0)
    few, some_wrong = adapted(bench, "few", 0.1)
    many, most_wrong = adapted(bench, "many", 0.3)

    assert clean.state is JobState.SUCCEEDED, clean.summary["verdict"]
    assert len(accused(bench, clean)) <= 10
    assert few.state is JobState.SUCCEEDED, few.summary["verdict"]
    assert len(accused(bench, few) & some_wrong) >= 10  # of 20
    assert many.state is JobState.REJECTED
    assert len(accused(bench, many) & most_wrong) >= 30  # of 60
    reasons = [c["name"] for c in many.summary["verdict"]["checks"] if c["decision"] == "REJECT"]  # type: ignore[index,call-overload,union-attr]
    assert "labels" in reasons
    told = [e for e in bench.store.jobs.events(many.name) if "suspects" in e.facts]
    assert [event.kind for event in told] == [EventKind.WARNING]
    page = bench.report(many).decode()
    assert 'id="suspects"' in page
    assert "data:image/jpeg;base64," in page.partition('id="suspects"')[2]
