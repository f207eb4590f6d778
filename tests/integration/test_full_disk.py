"""A whole job on a disk that is full whenever it writes: it waits for room, in every phase."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import pytest
from tests.chaos.pictures import ARCHITECTURE, LABELS, SIDE, bars, weights
from tests.integration.workbench import MODEL, Bench, Shot

from acclimate import Example
from acclimate_service.domain.examples import Role
from acclimate_service.domain.guard import GuardPolicy
from acclimate_service.domain.job import EventKind, JobState, Phase
from acclimate_service.domain.model import Architecture, Model, Preprocessing, WeightsSource
from acclimate_service.domain.names import DomainName
from acclimate_service.store import folder
from acclimate_service.training.cache import Shelf
from acclimate_service.worker import story

REFUSED = 2  # of the first writes in each phase
NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def shots(examples: list[Example]) -> list[Shot]:
    return [Shot(image=e.image, label=e.label, id=e.id) for e in examples]


def tiny(bench: Bench, place: Path) -> None:
    """A model of a few weights, which is exported in a second."""
    library, _, name = ARCHITECTURE.partition("/")
    bench.store.registry.create_model(
        Model(
            name=MODEL,
            architecture=Architecture(library=library, name=name),
            weights=WeightsSource(
                kind="FILE", reference=bench.store.blobs.put(weights(place).read_bytes())
            ),
            labels=(),
            preprocessing=Preprocessing(size=SIDE, crop=1.0),
            source_domain=DomainName("bright"),
            created_at=bench.store.domains.get(DomainName("bright")).created_at,
        )
    )


def test_a_job_that_finds_the_disk_full_in_each_phase_waits_and_makes_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, cache=tmp_path / "cache")
    bench.domain("bright", LABELS)
    bench.upload("bright", shots(bars(0, 40)))
    bench.upload("bright", shots(bars(1000, 80)), Role.HOLDOUT)
    tiny(bench, tmp_path)
    met, spilled = Counter[Phase](), Counter[bool]()
    sync, spill = folder._sync, Shelf._spill

    def full_at_first(file: BinaryIO) -> None:
        (job,) = bench.store.jobs.list(states=[JobState.RUNNING]).items
        assert job.phase is not None
        met[job.phase] += 1
        if met[job.phase] <= REFUSED:
            raise NO_ROOM
        sync(file)

    def full_once(shelf: Shelf) -> None:
        spilled[True] += 1
        if spilled[True] == 1:
            raise NO_ROOM
        spill(shelf)

    monkeypatch.setattr(folder, "_sync", full_at_first)
    monkeypatch.setattr(Shelf, "_spill", full_once)
    monkeypatch.setattr(story, "_RETRY_SECONDS", 0.01)
    job = bench.job(
        "bright", guard=GuardPolicy.preset("exploratory"), strategy="late", epochs=5, views=1
    )
    monkeypatch.undo()
    assert {phase for phase, writes in met.items() if writes > REFUSED} == set(Phase) - {
        Phase.PREPARING  # which keeps nothing but its cache
    }
    told = [e for e in bench.store.jobs.events(job.name, limit=1000) if e.kind is EventKind.WARNING]
    assert "the trunk cache cannot be written (No space left on device)" in told[0].message
    assert told[0].phase is Phase.PREPARING
    assert job.state is JobState.SUCCEEDED, job.summary
    assert job.attempt == 1
    assert bench.store.reconcile().missing == ()
