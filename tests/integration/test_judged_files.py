"""What is judged is a file, by its digest; and a part of the images cannot be paid for by the rest.

The files are small and real: they answer with the colour that an image has most of.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.integration.rpc_server import LABELS, SIZE, claim, classifier, model, plain, version
from tests.integration.workbench import Bench, Shot

from acclimate_service.domain.errors import BlobCorrupt
from acclimate_service.domain.examples import Role
from acclimate_service.domain.job import JobDraft, JobKind, JobSpec
from acclimate_service.domain.model import Architecture, Artifacts, Preprocessing
from acclimate_service.domain.names import DomainName, ModelName, VersionName
from acclimate_service.domain.verdict import Decision, Verdict
from acclimate_service.tracing import Phases
from acclimate_service.worker.judgement import judge_adapted
from acclimate_service.worker.publish import Candidate
from acclimate_service.worker.stock import images_of
from acclimate_service.worker.story import Story
from acclimate_service.worker.suspects import Screened

HUES = {"red": 0, "green": 1, "blue": 2}


def shots(each: int, seed: int, *, pale: float = 0.0) -> list[Shot]:
    """Plain images, most of their label's colour; that share of them so pale that red wins."""
    generator = np.random.default_rng(seed)
    found = []
    for label, channel in HUES.items():
        for place in range(each):
            colour = generator.integers(0, 120, 3)
            colour[channel] = generator.integers(160, 256)
            if channel and place < pale * each:
                colour[0] = min(255, colour[channel] + 5)
            red, green, blue = (int(value) for value in colour)
            tag = "light=day" if place % 2 else "light=night"
            image = plain((red, green, blue))
            found.append(Shot(image=image, label=label, id=f"{label} {place}", tags=(tag,)))
    return found


def favouring(*weights: float) -> bytes:
    """A file whose logits are the channels' means times these weights."""
    graph = onnx.load_from_string(classifier(20.0))
    for tensor in graph.graph.initializer:
        if tensor.name == "gain":
            gains = 20 * np.array(weights, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(gains, "gain"))
    content: bytes = graph.SerializeToString()
    return content


@dataclass(frozen=True, kw_only=True)
class Court:
    """A model whose first version is in use, and the images to judge another by."""

    bench: Bench
    name: ModelName
    incumbent: VersionName

    def judge(
        self, content: bytes, *, digest: str | None = None, standard: VersionName | None = None
    ) -> Verdict:
        """What the guard says of a candidate's file; *standard* is the source's."""
        store = self.bench.store
        draft = JobDraft(
            kind=JobKind.ADAPT,
            model=self.name,
            source=DomainName("studio"),
            target=DomainName("yard"),
            incumbent=self.incumbent,
            spec=JobSpec(),
        )
        job, lease = claim(store, store.jobs.enqueue(draft, request_id="").name)
        candidate = Candidate(
            architecture=Architecture(library="timm", name="resnet18"),
            preprocessing=Preprocessing(size=SIZE, crop=1.0),
            labels=LABELS,
            artifacts=Artifacts(
                onnx=digest or hashlib.sha256(content).hexdigest(),
                weights="0" * 64,
                onnx_bytes=len(content),
                weights_bytes=1,
            ),
            onnx=content,
            parity={},
        )
        images = images_of(
            store,
            target=DomainName("yard"),
            known=[DomainName("studio")],
            space=LABELS,
            replay_per_class=0,
        )
        story = Story(store=store, lease=lease, sign_of_life=lambda: None, spans=Phases(None, {}))
        judged = judge_adapted(
            story,
            job,
            store.registry.get_version(self.incumbent),
            candidate,
            images,
            standards={DomainName("studio"): standard or self.incumbent},
            screened=Screened(),
            threads=1,
        )
        assert judged.verdict is not None
        return judged.verdict


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Court:
    bench = Bench(tmp_path_factory.mktemp("court"))
    for name, seed, pale in (("studio", 1, 0.0), ("yard", 2, 0.8)):
        bench.domain(name, LABELS)
        bench.upload(name, shots(90, seed, pale=pale), Role.HOLDOUT)
        bench.upload(name, shots(4, seed + 10))
    shop = model(bench.store, "shop", source="domains/studio")
    return Court(bench=bench, name=shop, incumbent=version(bench.store, shop, classifier(20.0)))


def test_a_better_file_is_accepted_and_tags_reach_the_verdict(court: Court) -> None:
    verdict = court.judge(favouring(0.9, 1, 1))
    assert verdict.decision is Decision.ACCEPT, verdict.summary
    sets = verdict.to_json()["measurements"]["sets"]  # type: ignore[index,call-overload]
    for measured in sets:  # type: ignore[union-attr]
        rows = measured["slices"]  # type: ignore[index,call-overload]
        assert [row["name"] for row in rows] == ["light=day", "light=night"]  # type: ignore[index,union-attr,call-overload]


def test_a_file_that_gains_on_average_and_loses_a_class_is_rejected(court: Court) -> None:
    verdict = court.judge(favouring(0.3, 1, 1))
    target = next(check for check in verdict.checks if check.name == "target accuracy")
    assert target.observed is not None
    assert target.observed <= -0.1
    assert verdict.decision is Decision.REJECT
    rejecting = {check.name for check in verdict.checks if check.decision is Decision.REJECT}
    assert "source classes" in rejecting
    assert "red" in next(c.message for c in verdict.checks if c.name == "source classes")


def test_a_candidate_that_was_changed_after_its_export_is_not_judged(court: Court) -> None:
    honest = favouring(0.9, 1, 1)
    changed = favouring(1.0, 1, 1)
    with pytest.raises(BlobCorrupt):
        court.judge(changed, digest=hashlib.sha256(honest).hexdigest())


def test_an_incumbent_that_was_changed_on_the_disk_is_not_judged_beside(court: Court) -> None:
    """A weaker incumbent would make any candidate look well."""
    store = court.bench.store
    digest = store.registry.get_version(court.incumbent).manifest.artifacts.onnx
    (file,) = (path for path in (court.bench.home / "blobs").rglob(digest) if path.is_file())
    file.chmod(0o600)
    honest = file.read_bytes()
    file.write_bytes(favouring(1.0, 0.1, 0.1))
    try:
        with pytest.raises(BlobCorrupt):
            court.judge(favouring(0.9, 1, 1))
    finally:
        file.write_bytes(honest)


def test_what_the_versions_in_between_lost_is_weighed_too(court: Court) -> None:
    """No worse than the incumbent, which itself has lost much since the first version."""
    worn = favouring(0.3, 1, 1)
    chain = replace(court, incumbent=version(court.bench.store, court.name, worn))
    verdict = chain.judge(worn, standard=court.incumbent)
    by_name = {check.name: check for check in verdict.checks}
    assert by_name["source accuracy"].lost == 0
    assert by_name["source creep"].lost > 10
    assert by_name["source creep"].decision is Decision.REJECT
    assert verdict.decision is Decision.REJECT


def test_the_incumbent_is_not_weighed_twice(court: Court) -> None:
    verdict = court.judge(favouring(0.9, 1, 1))
    assert not [check for check in verdict.checks if check.name.endswith("creep")]
