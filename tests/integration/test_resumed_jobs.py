"""A job whose worker died goes on where it was, whatever was uploaded meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.contract.builders import spoil
from tests.integration.test_label_screening import shots
from tests.integration.workbench import MODEL, Bench

from acclimate.demo import digits
from acclimate_service.domain.errors import LeaseLost
from acclimate_service.domain.examples import Role
from acclimate_service.domain.job import EventKind, Job, JobDraft, JobKind, JobSpec, Lease, Phase
from acclimate_service.domain.names import DomainName


def asked(bench: Bench) -> Job:
    """A first version that waits to be made."""
    draft = JobDraft(
        kind=JobKind.BOOTSTRAP,
        model=MODEL,
        source=DomainName("bright"),
        target=None,
        incumbent=None,
        spec=JobSpec(epochs=1, views=1, strategy="head"),
    )
    return bench.store.jobs.enqueue(draft, request_id="")


def attempts(bench: Bench, job: Job) -> list[list[EventKind]]:
    """The kinds of the events that each attempt told of."""
    told: list[list[EventKind]] = [[]]
    for event in bench.store.jobs.events(job.name):
        if "attempt" in event.facts:
            told.append([])
        assert event.kind is not None
        told[-1].append(event.kind)
    return told[1:]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_steps_that_were_finished_count_after_an_upload_to_the_job_s_domain(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    pictures = digits.uci(train=80, holdout=80)
    bench.domain("bright", digits.LABELS)
    bench.upload("bright", shots(pictures.train[:60]))
    bench.upload("bright", shots(pictures.holdout[:60]), Role.HOLDOUT)
    bench.register("bright", size=32)
    job = asked(bench)

    def die_while_exporting() -> None:
        now = bench.store.jobs.get(job.name)
        if now.phase is Phase.EXPORTING:
            raise LeaseLost("died", job=job.name, worker="a test", attempt=now.attempt)

    bench.work(job.name, sign_of_life=die_while_exporting)
    bench.store.jobs.release(Lease(job=job.name, worker="a test", attempt=1))
    assert bench.store.jobs.checkpoints(job.name)
    bench.upload("bright", shots(pictures.train[60:]))
    bench.upload("bright", shots(pictures.holdout[60:]), Role.HOLDOUT)
    bench.work(job.name)

    ended = bench.store.jobs.get(job.name)
    assert ended.state.ended, ended
    assert ended.failure is None
    first, second = attempts(bench, job)
    assert EventKind.EPOCH in first
    assert EventKind.EPOCH not in second
    events = bench.store.jobs.events(job.name)
    assert not any("begins anew" in event.message for event in events)
    rested_on = [event.facts for event in events if "known_verify" in event.facts]
    assert len(rested_on) == 2
    assert rested_on[0] == rested_on[1]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_steps_whose_files_have_rotted_are_done_again_and_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    pictures = digits.uci(train=80, holdout=80)
    bench.domain("bright", digits.LABELS)
    bench.upload("bright", shots(pictures.train))
    bench.upload("bright", shots(pictures.holdout), Role.HOLDOUT)
    bench.register("bright", size=32)
    job = asked(bench)

    def die_while_judging() -> None:
        now = bench.store.jobs.get(job.name)
        if now.phase is Phase.JUDGING:
            raise LeaseLost("died", job=job.name, worker="a test", attempt=now.attempt)

    bench.work(job.name, sign_of_life=die_while_judging)
    bench.store.jobs.release(Lease(job=job.name, worker="a test", attempt=1))
    kept = bench.store.jobs.checkpoints(job.name)
    assert any("weights" in step.blobs for step in kept.values())
    for step in kept.values():
        for digest in step.blobs.values():
            spoil(bench.store, digest, b"rotten")
    bench.work(job.name)

    ended = bench.store.jobs.get(job.name)
    assert ended.state.ended, ended
    assert ended.failure is None
    told = [event.facts for event in bench.store.jobs.events(job.name)]
    again = [facts["step"] for facts in told if facts.get("reason") == "BLOB_CORRUPT"]
    # A blend that took the candidate as it is has its very file, which is whole again by then.
    assert again[0] == "0-head-candidate"
    assert len(again) in (len(kept) - 1, len(kept))
    assert bench.store.reconcile().missing == ()
