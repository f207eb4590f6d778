"""Variants from an accepted version to the answer of a server that prefers them.

The network is tiny and real: it has learned where a bright bar lies.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
import torch
from PIL import Image
from tests.integration.rpc_server import Service, ask, claim, model, promote, refusal, running
from tests.integration.workbench import Bench, Shot
from tests.unit.training import tiny

from acclimate.oip import grpc_service_pb2 as oip
from acclimate.oip import grpc_service_pb2_grpc as oip_grpc
from acclimate.v1 import inference_pb2, registry_pb2
from acclimate_service.config import ServeSettings
from acclimate_service.domain.errors import VariantUnsuitable
from acclimate_service.domain.examples import Role
from acclimate_service.domain.job import JobDraft, JobKind, JobSpec, JobState
from acclimate_service.domain.model import Artifacts, Origin, Precision, Reduced
from acclimate_service.domain.names import DomainName, JobName, ModelName, VersionName
from acclimate_service.domain.verdict import Decision
from acclimate_service.inference.execution import Execution
from acclimate_service.rpc.server import Limits
from acclimate_service.serve import check_variant
from acclimate_service.store import NewVersion, Store
from acclimate_service.tracing import Phases
from acclimate_service.training.export import patch, trace
from acclimate_service.training.int8 import calibrate
from acclimate_service.training.network import Network
from acclimate_service.worker import publish, variants
from acclimate_service.worker.judgement import judge_bootstrapped
from acclimate_service.worker.publish import Candidate
from acclimate_service.worker.stock import images_of
from acclimate_service.worker.story import Story
from acclimate_service.worker.suspects import Screened
from acclimate_service.worker.variants import TriedVariant, try_variants, with_variants

LABELS = ("top", "left", "below", "right")
BRIGHT = DomainName("bright")


NUMBERS = itertools.count(1)


def shots(each: int, seed: int) -> list[Shot]:
    """Pictures that the network knows, as files."""
    found = tiny.Pictures([each] * tiny.LABELS, seed=seed)
    taken = []
    for index, label in enumerate(found.labels):
        file = io.BytesIO()
        Image.fromarray(found.read(index)).save(file, "PNG")
        taken.append(Shot(image=file.getvalue(), label=LABELS[label], id=f"{seed}-{index}"))
    return taken


@functools.cache
def traced() -> bytes:
    """A file of the incumbent, in which a job changes weights alone: a trace takes seconds."""
    return trace(tiny.incumbent(), LABELS)


def fresh() -> Network:
    """A network that answers as the incumbent, in a file that none was before."""
    net = tiny.incumbent()
    with torch.no_grad():
        list(net.parameters())[-1].add_(1e-4 * next(NUMBERS))
    return net


class Careless(variants.Bench):
    """Makes int8 files whose ranges hold a hundredth of what they should."""

    def make(self, precision: Reduced) -> tuple[bytes, Execution]:  # noqa: ARG002
        found = calibrate(self.candidate.onnx, self._calibration_images(), step=lambda: None)
        narrow = {name: (low / 100, high / 100) for name, (low, high) in found.ranges.items()}
        return replace(found, ranges=narrow).int8(), Execution.for_latency(self.threads)


class Broken(variants.Bench):
    """Makes what is no model."""

    def make(self, precision: Reduced) -> tuple[bytes, Execution]:  # noqa: ARG002
        return b"not a model", Execution.for_latency(self.threads)


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A store with verify images, and versions of one network with and without variants."""

    bench: Bench
    name: ModelName

    @property
    def store(self) -> Store:
        return self.bench.store

    def make(
        self,
        *asked: Reduced,
        by: type[variants.Bench] = variants.Bench,
        network: Network | None = None,
    ) -> tuple[VersionName | None, tuple[TriedVariant, ...], JobName]:
        """A job from its judgement to its end: a version, and what became of its variants."""
        draft = JobDraft(
            kind=JobKind.BOOTSTRAP,
            model=self.name,
            source=BRIGHT,
            target=None,
            incumbent=None,
            spec=JobSpec(variants=asked),
        )
        job, lease = claim(self.store, self.store.jobs.enqueue(draft, request_id="").name)
        story = Story(
            store=self.store, lease=lease, sign_of_life=lambda: None, spans=Phases(None, {})
        )
        images = images_of(self.store, target=BRIGHT, known=(), space=LABELS, replay_per_class=0)
        candidate = self._candidate(network or tiny.incumbent())
        judged = judge_bootstrapped(story, job, candidate, images, screened=Screened(), threads=1)
        assert judged.verdict is not None
        tried = try_variants(
            by(
                story=story,
                job=job,
                candidate=candidate,
                stock=images.stock,
                judged=judged,
                device=torch.device("cpu"),
                threads=1,
            ),
            asked,
        )
        if judged.verdict.decision is not Decision.ACCEPT:
            return None, tried, job.name
        kept = with_variants(candidate, tried)
        ended = self.store.jobs.finish(
            lease,
            state=JobState.SUCCEEDED,
            summary={"variants": [one.summary() for one in tried]},
            version=NewVersion(
                parent=None,
                origin=Origin.ACCEPTED,
                manifest=lambda name: publish.manifest(
                    kept,
                    name=name,
                    parent=None,
                    job=job.name,
                    origin=Origin.ACCEPTED,
                    created_at=dt.datetime.now(dt.UTC),
                ),
            ),
        )
        return ended.version, tried, job.name

    def _candidate(self, network: Network) -> Candidate:
        onnx = patch(traced(), network, LABELS)
        assert onnx is not None
        return Candidate(
            architecture=network.architecture,
            preprocessing=network.preprocessing,
            labels=LABELS,
            artifacts=Artifacts(
                onnx=self.store.blobs.put(onnx),
                weights=self.store.blobs.put(b"weights"),
                onnx_bytes=len(onnx),
                weights_bytes=7,
            ),
            onnx=onnx,
            parity={},
        )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    bench = Bench(tmp_path_factory.mktemp("shop"))
    bench.domain(BRIGHT.domain, LABELS)
    bench.upload(BRIGHT.domain, shots(10, 1))
    bench.upload(BRIGHT.domain, shots(150, 2), Role.HOLDOUT)
    return Shop(bench=bench, name=model(bench.store, "shop", LABELS, source=str(BRIGHT)))


def serving(shop: Shop, precision: Precision) -> Iterator[Service]:
    with running(shop.store, Limits(poll_seconds=0.05), precision=precision) as service:
        yield service


@pytest.fixture(scope="module")
def preferring_int8(shop: Shop) -> Iterator[Service]:
    yield from serving(shop, "int8")


@pytest.fixture(scope="module")
def preferring_fp32(shop: Shop) -> Iterator[Service]:
    yield from serving(shop, "fp32")


@pytest.fixture(scope="module")
def accepted(shop: Shop) -> tuple[VersionName, tuple[TriedVariant, ...], JobName]:
    version, tried, job = shop.make("int8", "fp16")
    assert version is not None
    return version, tried, job


Accepted = tuple[VersionName, tuple[TriedVariant, ...], JobName]


def test_an_accepted_variant_is_named_by_the_version_with_what_was_measured(
    shop: Shop, accepted: Accepted
) -> None:
    version, (int8, _), _ = accepted
    assert int8.verdict is not None
    assert int8.verdict.decision is Decision.ACCEPT, int8.verdict.summary
    artifacts = shop.store.registry.get_version(version).manifest.artifacts
    assert set(artifacts.variants) == {"int8"}
    kept = artifacts.variants["int8"]
    assert kept == int8.kept
    content = shop.store.blobs.get(kept.onnx)
    assert (len(content), hashlib.sha256(content).hexdigest()) == (kept.onnx_bytes, kept.onnx)
    assert kept.agreement >= 0.95
    assert kept.milliseconds
    assert kept.fp32_milliseconds


def test_the_story_tells_of_each_variant_and_the_job_goes_on_without_a_gpu(
    shop: Shop, accepted: Accepted
) -> None:
    _, (_, fp16), job = accepted
    assert fp16.verdict is None
    told = [event.message for event in shop.store.jobs.events(job)]
    assert any("int8 variant accepted" in line for line in told)
    assert any("no fp16 variant" in line and "no GPU" in line for line in told)
    assert shop.store.jobs.get(job).state is JobState.SUCCEEDED


def test_a_server_that_prefers_int8_answers_with_it_and_says_so(
    shop: Shop, accepted: Accepted, preferring_int8: Service
) -> None:
    version, (int8, _), _ = accepted
    assert int8.kept is not None
    promote(preferring_int8, shop.name, version)
    asked = shots(1, 7)
    answer = preferring_int8.inference.Predict(
        ask(shop.name, *(shot.image for shot in asked)), timeout=30
    )
    assert (answer.version, answer.variant) == (str(version), "int8")
    assert answer.sha256 == int8.kept.onnx
    found = [prediction.classes[0].label for prediction in answer.predictions]
    assert found == [shot.label for shot in asked]
    statistics = preferring_int8.inference.ListVersionStatistics(
        inference_pb2.ListVersionStatisticsRequest(parent=str(shop.name)), timeout=30
    ).statistics
    told = {one.version: (one.variant, one.sha256) for one in statistics}
    assert told[str(version)] == ("int8", int8.kept.onnx)


def test_the_open_protocol_names_the_file_that_answered(
    shop: Shop, accepted: Accepted, preferring_int8: Service
) -> None:
    version, (int8, _), _ = accepted
    assert int8.kept is not None
    stub = oip_grpc.GRPCInferenceServiceStub(preferring_int8.channel)
    size = tiny.SIZE
    answer = stub.ModelInfer(
        oip.ModelInferRequest(
            model_name=shop.name.model,
            model_version=version.version,
            inputs=[
                oip.ModelInferRequest.InferInputTensor(
                    name="images", datatype="UINT8", shape=[1, size, size, 3]
                )
            ],
            raw_input_contents=[bytes(size * size * 3)],
        ),
        timeout=30,
    )
    assert answer.parameters["variant"].string_param == "int8"
    assert answer.parameters["sha256"].string_param == int8.kept.onnx


def test_a_server_that_was_not_asked_for_it_answers_with_fp32(
    shop: Shop, accepted: Accepted, preferring_fp32: Service
) -> None:
    version, _, _ = accepted
    answer = preferring_fp32.inference.Predict(ask(version, shots(1, 7)[0].image), timeout=30)
    artifacts = shop.store.registry.get_version(version).manifest.artifacts
    assert (answer.variant, answer.sha256) == ("fp32", artifacts.onnx)


def test_an_export_holds_the_variant_beside_the_version_file(
    accepted: Accepted, preferring_fp32: Service
) -> None:
    version, (int8, _), _ = accepted
    assert int8.kept is not None
    pieces = preferring_fp32.registry.ExportModelVersion(
        registry_pb2.ExportModelVersionRequest(name=str(version)), timeout=30
    )
    digests = {piece.file: piece.sha256 for piece in pieces if piece.sha256}
    assert digests["model.int8.onnx"] == int8.kept.onnx
    assert len(digests) == 4


def test_a_careless_variant_is_refused_and_never_served(
    shop: Shop, preferring_int8: Service
) -> None:
    version, (careless,), job = shop.make("int8", by=Careless)
    assert careless.verdict is not None
    assert careless.verdict.decision is Decision.REJECT, careless.verdict.summary
    assert careless.agreement is not None
    assert careless.agreement < 0.9
    assert version is not None
    assert shop.store.registry.get_version(version).manifest.artifacts.variants == {}
    told = [event.message for event in shop.store.jobs.events(job)]
    assert any("int8 variant refused" in line for line in told)
    answer = preferring_int8.inference.Predict(ask(version, shots(1, 7)[0].image), timeout=30)
    assert answer.variant == "fp32"


def test_a_variant_that_does_not_load_costs_the_job_nothing(shop: Shop) -> None:
    version, (broken,), _ = shop.make("int8", by=Broken)
    assert version is not None
    assert broken.verdict is None
    assert "no model" in broken.problem


def test_of_what_was_not_accepted_no_variant_is_made(shop: Shop) -> None:
    version, tried, job = shop.make("int8", network=tiny.network(seed=5))
    assert (version, tried) == (None, ())
    told = [event.message for event in shop.store.jobs.events(job)]
    assert not any("variant" in line for line in told)


def test_each_kind_of_variant_has_looks_of_its_own(shop: Shop) -> None:
    jobs = shop.store.jobs

    def taken(variant: Reduced) -> int:
        return jobs.variant_looks(shop.name, None, variant, before=10**6)

    versions, int8 = jobs.looks(shop.name, None), taken("int8")
    shop.make(network=fresh())
    shop.make("int8", "fp16", network=fresh())  # fp16 is not judged without a GPU
    assert jobs.looks(shop.name, None) == versions + 2
    assert taken("int8") == int8 + 1
    assert taken("fp16") == 0


def test_a_file_that_was_judged_before_spends_no_look_nor_does_its_variant(shop: Shop) -> None:
    jobs, network = shop.store.jobs, fresh()
    _, (first,), name = shop.make("int8", network=network)
    spent = jobs.looks(shop.name, None)
    _, (again,), same = shop.make("int8", network=network)
    assert jobs.looks(shop.name, None) == spent
    assert first.verdict is not None
    assert again.verdict is not None
    assert again.verdict.measurements["looks"] == first.verdict.measurements["looks"]
    assert again.verdict.decision is first.verdict.decision
    told = [event.message for event in jobs.events(same)]
    assert any(line.startswith(f"{name} made the same file") for line in told)


def test_a_variant_whose_file_was_changed_on_the_disk_is_not_served(
    shop: Shop, accepted: Accepted
) -> None:
    version, (int8, _), _ = accepted
    assert int8.kept is not None
    (file,) = (p for p in (shop.bench.home / "blobs").rglob(int8.kept.onnx) if p.is_file())
    file.chmod(0o600)
    honest = file.read_bytes()
    file.write_bytes(honest[:-1] + bytes([honest[-1] ^ 1]))
    try:
        with running(shop.store, Limits(), precision="int8") as service:
            asked = ask(version, shots(1, 7)[0].image)
            code, info = refusal(lambda: service.inference.Predict(asked, timeout=30))
    finally:
        file.write_bytes(honest)
    assert (code, info.reason) == (grpc.StatusCode.DATA_LOSS, "BLOB_CORRUPT")


@pytest.mark.parametrize(
    ("variant", "provider"), [("fp16", "cpu"), ("int8", "cuda"), ("int8", "tensorrt")]
)
def test_what_could_not_run_as_it_was_judged_is_refused_at_the_start(
    tmp_path: Path, variant: str, provider: str
) -> None:
    settings = ServeSettings(home=tmp_path, variant=variant, provider=provider)
    with pytest.raises(VariantUnsuitable, match="ACCLIMATE_VARIANT"):
        check_variant(settings)
