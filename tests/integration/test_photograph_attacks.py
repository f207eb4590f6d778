"""Attacks on real photographs, through real jobs: amazon is known, webcam is to be learned."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_label_screening import flipped
from tests.integration.workbench import MODEL, Bench, Shot

from acclimate_service.domain.examples import Role
from acclimate_service.domain.guard import Decision, GuardPolicy
from acclimate_service.domain.job import Job, JobDraft, JobKind, JobSpec, JobState
from acclimate_service.domain.names import AliasName, DomainName
from acclimate_service.tracing import Phases
from acclimate_service.training import weights
from acclimate_service.training.augment import GENTLE
from acclimate_service.training.cache import Cache
from acclimate_service.training.dataset import Stock
from acclimate_service.training.finetune import Effort, tune
from acclimate_service.training.network import build
from acclimate_service.training.run import Run
from acclimate_service.training.strategies import parse
from acclimate_service.training.trunk import Trunk
from acclimate_service.worker.judgement import judge_adapted
from acclimate_service.worker.publish import export_candidate
from acclimate_service.worker.stock import images_of
from acclimate_service.worker.story import Story
from acclimate_service.worker.suspects import Screened

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZE = 96
QUICK = {"strategy": "head", "epochs": 8, "views": 1}
# What is tried is harm, not how sure a few images can make the guard.
ROOMY = GuardPolicy(base="exploratory", label_suspects_limit=0.15, reason="few images")


def shots(folder: Path, *, every: int = 1, start: int = 0) -> list[Shot]:
    """Each *every*-th photograph, tagged by the half of the alphabet its object is in."""
    return [
        Shot(
            image=file.read_bytes(),
            label=file.parent.name,
            id=f"{file.parent.name}/{file.name}",
            tags=("shelf=low" if file.parent.name < "k" else "shelf=high",),
        )
        for file in sorted(folder.glob("*/*.jpg"))[start::every]
    ]


@pytest.fixture(scope="module")
def bench(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A model that has learned amazon."""
    bench = Bench(tmp_path_factory.mktemp("photographs"))
    labels = sorted(folder.name for folder in (photos / "amazon").iterdir())
    bench.domain("amazon", labels)
    known = shots(photos / "amazon")
    bench.upload("amazon", known[::2])
    bench.upload("amazon", known[1::2], Role.HOLDOUT)
    bench.register("amazon", size=SIZE)
    job = bench.job("amazon", guard=ROOMY, **QUICK)
    assert job.state is JobState.SUCCEEDED, job.summary
    bench.domain("webcam", labels)
    new = shots(photos / "webcam")
    bench.upload("webcam", new[::2])
    bench.upload("webcam", new[1::2], Role.HOLDOUT)
    return bench


def told(bench: Bench, job: Job) -> Any:
    return json.loads(bench.store.blobs.get(job.report_json))


def test_an_honest_adaptation_passes_and_its_report_tells_of_slices(bench: Bench) -> None:
    job = bench.job("webcam", guard=ROOMY, **QUICK)
    assert job.state is JobState.SUCCEEDED, job.summary["verdict"]
    for measured in told(bench, job)["verdict"]["measurements"]["sets"]:
        slices = {row["name"]: row["n"] for row in measured["slices"]}
        assert slices.keys() == {"shelf=low", "shelf=high"}
        assert sum(slices.values()) == measured["n"]
    assert "shelf=low" in bench.report(job).decode()


def test_versions_are_trained_and_judged_on_jpegs_decoded_as_the_model_says(bench: Bench) -> None:
    registry = bench.store.registry
    assert registry.get_model(MODEL).decoding == "scaled"
    versions = registry.list_versions(MODEL).items
    assert versions
    for version in versions:
        assert version.manifest.preprocessing.decoding == "scaled"
        assert version.manifest.format == 2


def test_naive_fine_tuning_is_rejected_for_forgetting(bench: Bench) -> None:
    """Every weight moves, Adam at 1e-3, BatchNorm updating; no replay, no blend."""
    store = bench.store
    version = store.registry.get_version(
        store.registry.get_alias(AliasName("shop", "production")).version
    )
    found = version.manifest
    draft = JobDraft(
        kind=JobKind.ADAPT,
        model=MODEL,
        source=DomainName("amazon"),
        target=DomainName("webcam"),
        incumbent=version.name,
        spec=JobSpec(guard=ROOMY),
    )
    name = store.jobs.enqueue(draft, request_id="").name
    claimed = store.jobs.claim("a test", lease_seconds=3600, max_attempts=3)
    assert claimed is not None
    assert claimed[0].name == name
    story = Story(store=store, lease=claimed[1], sign_of_life=lambda: None, spans=Phases(None, {}))
    network = build(found.architecture, labels=len(found.labels), size=found.preprocessing.size)
    weights.restore(network, store.blobs.get(found.artifacts.weights))
    network.preprocessing = found.preprocessing
    images = images_of(
        store, target=DomainName("webcam"), known=[DomainName("amazon")], space=found.labels,
        replay_per_class=0,
    )  # fmt: skip
    run = Run(clock=time.monotonic)
    tune(
        network,
        parse("naive"),
        start={key: t.detach().clone() for key, t in network.state_dict().items()},
        stock=Stock(train=images.stock.train),
        trunk=Trunk(network, Cache(budget=2**28), augmentation=GENTLE, views=1, run=run),
        effort=Effort(epochs=6),
        run=run,
    )
    network.to(memory_format=torch.contiguous_format)
    candidate = export_candidate(
        story, network, found.labels, images.stock.train, like=found.artifacts.onnx
    )
    judged = judge_adapted(
        story,
        claimed[0],
        version,
        candidate,
        images,
        standards=store.registry.standards(version.name),
        screened=Screened(),
        threads=1,
    )
    assert judged.verdict is not None
    assert judged.verdict.decision is Decision.REJECT
    rejecting = [c for c in judged.verdict.checks if c.decision is Decision.REJECT]
    source = next(check for check in rejecting if check.name == "source accuracy")
    assert source.observed is not None
    assert source.observed >= 0.1


def test_flipped_photographs_make_no_version(bench: Bench, photos: Path) -> None:
    labels = sorted(folder.name for folder in (photos / "webcam").iterdir())
    bench.domain("poisoned", labels)
    wrong, which = flipped(shots(photos / "webcam")[::2], 0.3, labels=labels)
    # The same pictures in another domain: their content is known, and to be learned from.
    bench.upload("poisoned", wrong)
    job = bench.job("poisoned", guard=ROOMY, **QUICK)
    assert job.state is JobState.REJECTED, job.summary["verdict"]
    listed = {row["id"] for row in told(bench, job)["label_suspects"]}
    assert len(listed & which) >= 0.6 * len(which)
    assert len(listed - which) <= 0.05 * len(wrong)
