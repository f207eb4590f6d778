from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import partial

import grpc
import pytest
from google.protobuf import struct_pb2
from pydantic import JsonValue
from tests.integration.rpc_server import (
    Service,
    claim,
    classifier,
    domain,
    model,
    picture,
    promote,
    refusal,
    upload,
    version,
)

from acclimate.v1 import adaptation_pb2 as pb
from acclimate.v1 import registry_pb2
from acclimate_service.domain.job import EventKind, Failure, JobState, Lease, Phase
from acclimate_service.domain.names import JobName
from acclimate_service.rpc import fields
from acclimate_service.store.audit import AuditFilter

Job = pb.AdaptationJob


def stocked(service: Service, name: str, labels: tuple[str, ...] = ("red", "green")) -> str:
    """A domain with two images to train on."""
    where = domain(service, name, labels)
    seed = sum(name.encode()) * 1000
    sent = [
        pb.Example(image=picture(seed + index), label=label) for index, label in enumerate(labels)
    ]
    upload(service, where, sent, request_id=f"stock-{name}")
    return where


def create(service: Service, name: object, where: str, **more: object) -> Job:
    request = pb.CreateAdaptationJobRequest(model=str(name), domain=where, **more)  # type: ignore[arg-type]
    return service.adaptation.CreateAdaptationJob(request, timeout=10)


def leased(service: Service, job: Job) -> Lease:
    """The lease of *job*, claimed as a worker does."""
    return claim(service.store, JobName.parse(job.name))[1]


def test_a_bare_backbone_is_bootstrapped(service: Service) -> None:
    name = model(service.store, "bare-one", labels=())
    job = create(service, name, stocked(service, "studio"))
    assert (job.kind, job.source_domain, job.target_domain, job.incumbent) == (
        Job.KIND_BOOTSTRAP,
        "domains/studio",
        "",
        "",
    )
    assert job.state == Job.STATE_QUEUED


def test_a_backbone_is_not_bootstrapped_twice(service: Service) -> None:
    name, where = model(service.store, "bare-two", labels=()), stocked(service, "first-site")
    first = create(service, name, where, request_id="first")
    code, info = refusal(lambda: create(service, name, stocked(service, "second-site")))
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_READY")
    assert create(service, name, where, request_id="first") == first
    service.adaptation.CancelAdaptationJob(
        pb.CancelAdaptationJobRequest(name=first.name), timeout=10
    )
    assert create(service, name, "domains/second-site").source_domain == "domains/second-site"


def test_an_adaptation_pins_the_version_that_its_base_points_at(service: Service) -> None:
    name = model(service.store, "pinned", source=stocked(service, "source-of-pinned"))
    first, second = (version(service.store, name, classifier(gain)) for gain in (21, 22))
    promote(service, name, first)
    where = stocked(service, "camera")
    by_default = create(service, name, where)
    by_alias = create(service, name, where, base=f"{name}/aliases/production")
    by_version = create(service, name, where, base=str(second))
    promote(service, name, second)
    assert by_default.kind == Job.KIND_ADAPT
    assert by_default.source_domain == "domains/source-of-pinned"
    assert by_default.target_domain == where
    assert [job.incumbent for job in (by_default, by_alias, by_version)] == [
        str(first),
        str(first),
        str(second),
    ]


def test_the_same_request_id_is_the_same_job_even_if_the_alias_moved_meanwhile(
    service: Service,
) -> None:
    name = model(service.store, "repeated")
    first, second = (version(service.store, name, classifier(gain)) for gain in (23, 24))
    promote(service, name, first)
    where = stocked(service, "camera-of-repeated")
    spec = pb.AdaptationSpec(epochs=3)
    job = create(service, name, where, request_id="job-1", spec=spec)
    promote(service, name, second)
    assert create(service, name, where, request_id="job-1", spec=spec) == job
    code, info = refusal(
        lambda: create(service, name, where, request_id="job-1", spec=pb.AdaptationSpec(epochs=4))
    )
    assert (code, info.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_what_cannot_become_a_job_is_refused_with_its_reason(service: Service) -> None:
    name = model(service.store, "picky")
    where = stocked(service, "fine")
    empty = domain(service, "without-images")
    other = stocked(service, "strange", labels=("red", "mauve"))
    stranger = model(service.store, "stranger")
    theirs = version(service.store, stranger, classifier(25))

    def reason(**asked: object) -> str:
        given = {"name": name, "where": where, **asked}
        return str(refusal(lambda: create(service, **given))[1].reason)  # type: ignore[arg-type]

    assert reason() == "NO_INCUMBENT"
    promote(service, name, version(service.store, name, classifier(26)))
    assert reason(name="models/nobody") == "NOT_FOUND"
    assert reason(where="domains/nowhere") == "NOT_FOUND"
    assert reason(where=empty) == "NOT_ENOUGH_EXAMPLES"
    assert reason(where=other) == "INVALID_SPEC"
    assert reason(base=str(theirs)) == "NO_INCUMBENT"
    assert reason(base=f"{name}/versions/99") == "VERSION_NOT_FOUND"
    assert reason(base="nonsense") == "INVALID_NAME"
    bare = model(service.store, "picky-backbone", labels=())
    assert reason(name=bare, base=f"{bare}/aliases/production") == "NO_INCUMBENT"
    assert reason(spec=pb.AdaptationSpec(epochs=-1)) == "INVALID_SPEC"
    assert reason(spec=pb.AdaptationSpec(strategy="tial")) == "INVALID_SPEC"
    assert reason(spec=pb.AdaptationSpec(strategy="tail+fast")) == "INVALID_SPEC"
    grown = create(service, name, other, spec=pb.AdaptationSpec(extend_labels=True))
    assert grown.spec.extend_labels


def test_a_job_shows_the_guard_that_it_will_be_judged_by(service: Service) -> None:
    name = model(service.store, "guarded", labels=())
    overrides = struct_pb2.Struct()
    overrides.update({"first_minimum": 12, "reason": "a small site"})
    spec = pb.AdaptationSpec(guard_preset="exploratory", guard_overrides=overrides)
    job = create(service, name, stocked(service, "site"), spec=spec)
    assert job.spec.guard_preset == "exploratory"
    assert dict(job.spec.guard_overrides) == {"first_minimum": 12, "reason": "a small site"}


def test_a_models_policy_is_recorded_and_its_jobs_take_it_over(service: Service) -> None:
    name = model(service.store, "policed", labels=())
    where = stocked(service, "site-of-policed")
    limits = struct_pb2.Struct()
    limits.update({"first_minimum": 50})
    asked = registry_pb2.SetModelGuardRequest(
        name=str(name), preset="strict", overrides=limits, reason="it sorts medicines"
    )
    shown = service.registry.SetModelGuard(asked, timeout=10)
    expected = {"first_minimum": 50, "reason": "it sorts medicines"}
    assert (shown.guard_preset, dict(shown.guard_overrides)) == ("strict", expected)
    (line,) = service.store.audit.list(AuditFilter(subject=str(name), action="SetModelGuard")).items
    assert line.action == "SetModelGuard"
    assert line.who
    assert "strict" in line.why
    assert "first_minimum" in line.why
    assert "it sorts medicines" in line.why
    job = create(service, name, where)
    assert (job.spec.guard_preset, dict(job.spec.guard_overrides)) == ("strict", expected)
    service.adaptation.CancelAdaptationJob(pb.CancelAdaptationJobRequest(name=job.name), timeout=10)
    other = create(service, name, where, spec=pb.AdaptationSpec(guard_preset="balanced"))
    assert (other.spec.guard_preset, dict(other.spec.guard_overrides)) == ("balanced", {})


def test_a_policy_without_a_reason_or_with_a_limit_that_is_none_is_refused(
    service: Service,
) -> None:
    name = str(model(service.store, "unpoliced", labels=()))
    unknown, absurd = struct_pb2.Struct(), struct_pb2.Struct()
    unknown.update({"no_such_limit": 1})
    absurd.update({"source_margin": 7})
    for wrong in (
        {"reason": ""},
        {"reason": "why", "preset": "lenient"},
        {"reason": "why", "overrides": unknown},
        {"reason": "why", "overrides": absurd},
    ):
        request = registry_pb2.SetModelGuardRequest(name=name, **wrong)
        code, info = refusal(partial(service.registry.SetModelGuard, request, timeout=10))
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SPEC")
    missing = registry_pb2.SetModelGuardRequest(name="models/none", reason="why")
    code, _ = refusal(lambda: service.registry.SetModelGuard(missing, timeout=10))
    assert code is grpc.StatusCode.NOT_FOUND
    assert service.store.audit.list(AuditFilter(subject=name, action="SetModelGuard")).items == ()


def test_jobs_are_listed_by_model_and_state(service: Service) -> None:
    name = model(service.store, "listed")
    promote(service, name, version(service.store, name, classifier(27)))
    where = stocked(service, "site-of-listed")
    jobs = [create(service, name, where) for _ in range(3)]
    service.adaptation.CancelAdaptationJob(
        pb.CancelAdaptationJobRequest(name=jobs[0].name), timeout=10
    )

    def listed(state: Job.State.ValueType) -> list[str]:
        answer = service.adaptation.ListAdaptationJobs(
            pb.ListAdaptationJobsRequest(model=str(name), state=state), timeout=10
        )
        return [job.name for job in answer.jobs if job.kind == Job.KIND_ADAPT]

    assert listed(Job.STATE_UNSPECIFIED) == [job.name for job in reversed(jobs)]
    assert listed(Job.STATE_CANCELLED) == [jobs[0].name]
    code, _ = refusal(lambda: listed(99))  # type: ignore[arg-type]
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_jobs_are_listed_by_the_domain_that_they_learn(service: Service) -> None:
    name = model(service.store, "listed-by-domain")
    promote(service, name, version(service.store, name, classifier(28)))
    night, day = (stocked(service, f"{when}-of-listed") for when in ("night", "day"))
    at_night = create(service, name, night)
    create(service, name, day)

    def listed(domain: str) -> list[str]:
        request = pb.ListAdaptationJobsRequest(model=str(name), domain=domain)
        answer = service.adaptation.ListAdaptationJobs(request, timeout=10)
        return [job.name for job in answer.jobs]

    assert listed(str(night)) == [at_night.name]
    assert len(listed("")) > 1
    code, info = refusal(lambda: listed("night"))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME")


# ── following ────────────────────────────────────────────────────────────────


def test_a_watcher_is_told_everything_once_from_any_point_to_the_end(service: Service) -> None:
    job = create(service, model(service.store, "watched", labels=()), stocked(service, "w-site"))
    told: dict[int, list[pb.JobEvent]] = {0: [], 3: []}

    def watch(after: int) -> None:
        request = pb.WatchAdaptationJobRequest(name=job.name, after_sequence=after)
        told[after].extend(service.adaptation.WatchAdaptationJob(request, timeout=30))

    watchers = [threading.Thread(target=watch, args=(after,)) for after in told]
    for watcher in watchers:
        watcher.start()
    lease = leased(service, job)
    service.store.jobs.enter(lease, Phase.PROBING)
    for epoch in range(5):
        facts = {"epoch": epoch, "loss": 0.5 / (epoch + 1)}
        service.store.jobs.event(lease, EventKind.EPOCH, Phase.PROBING, f"epoch {epoch}", facts)
        time.sleep(0.02)
    service.store.jobs.finish(
        lease,
        state=JobState.FAILED,
        summary={},
        failure=Failure(reason="TRAINING_DIVERGED", message="it diverged"),
    )
    for watcher in watchers:
        watcher.join(30)
    whole = service.store.jobs.events(JobName.parse(job.name))
    assert [event.sequence for event in told[0]] == [event.sequence for event in whole]
    assert [event.sequence for event in told[3]] == [event.sequence for event in told[0][3:]]
    epochs = [event for event in told[0] if event.kind == pb.JobEvent.KIND_EPOCH]
    assert [event.facts["epoch"] for event in epochs] == [0, 1, 2, 3, 4]
    assert told[0][-1].state == Job.STATE_FAILED
    ended = service.adaptation.GetAdaptationJob(
        pb.GetAdaptationJobRequest(name=job.name), timeout=10
    )
    assert (ended.state, ended.failure_reason) == (Job.STATE_FAILED, "TRAINING_DIVERGED")


def test_watching_a_job_that_ended_long_ago_ends_at_once(service: Service) -> None:
    job = create(service, model(service.store, "over", labels=()), stocked(service, "o-site"))
    service.adaptation.CancelAdaptationJob(pb.CancelAdaptationJobRequest(name=job.name), timeout=10)
    for after in (0, 10_000):
        request = pb.WatchAdaptationJobRequest(name=job.name, after_sequence=after)
        events = list(service.adaptation.WatchAdaptationJob(request, timeout=10))
        assert [event.state for event in events] == [Job.STATE_CANCELLED] * len(events)
        assert bool(events) == (after == 0)


def test_a_watcher_that_leaves_costs_the_others_nothing(service: Service) -> None:
    job = create(service, model(service.store, "left", labels=()), stocked(service, "l-site"))
    request = pb.WatchAdaptationJobRequest(name=job.name)
    leaving = service.adaptation.WatchAdaptationJob(request, timeout=30)
    staying = service.adaptation.WatchAdaptationJob(request, timeout=30)
    assert next(leaving).sequence == next(staying).sequence == 1
    leaving.cancel()
    service.adaptation.CancelAdaptationJob(pb.CancelAdaptationJobRequest(name=job.name), timeout=10)
    assert [event.state for event in staying] == [Job.STATE_CANCELLED]


def test_a_cancelled_job_cannot_be_started_and_an_ended_one_not_cancelled(
    service: Service,
) -> None:
    name = model(service.store, "stopped", labels=())
    job = create(service, name, stocked(service, "s-site"))
    lease = leased(service, job)
    service.store.jobs.finish(lease, state=JobState.REJECTED, summary={"why": "forgot"})
    code, info = refusal(
        lambda: service.adaptation.CancelAdaptationJob(
            pb.CancelAdaptationJobRequest(name=job.name), timeout=10
        )
    )
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_ENDED")


@pytest.mark.parametrize("wanted", ["html", "json", ""])
def test_a_report_comes_whole_once_there_is_one(service: Service, wanted: str) -> None:
    name = model(service.store, f"told-{wanted or 0}", labels=())
    job = create(service, name, stocked(service, f"t-site-{wanted or 0}"))
    request = pb.GetReportRequest(name=job.name, format=wanted)
    code, info = refusal(lambda: list(service.adaptation.GetReport(request, timeout=10)))
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_READY")
    contents = {"html": b"<html>" * 200_000, "json": b"{}"}
    service.store.jobs.finish(
        leased(service, job),
        state=JobState.REJECTED,
        summary={},
        report_html=service.store.blobs.put(contents["html"]),
        report_json=service.store.blobs.put(contents["json"]),
    )
    parts = list(service.adaptation.GetReport(request, timeout=10))
    assert b"".join(part.chunk for part in parts) == contents[wanted or "html"]


def test_what_takes_long_to_write_is_not_written_on_the_event_loop(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = model(service.store, "written", source=stocked(service, "source-of-written"))
    made = version(service.store, name, classifier(23))
    promote(service, name, made)
    threads = []
    usual = fields.struct_of

    def struct_of(values: Mapping[str, JsonValue]) -> struct_pb2.Struct:
        threads.append(threading.current_thread().name.partition("_")[0])
        return usual(values)

    monkeypatch.setattr(fields, "struct_of", struct_of)
    job = create(service, name, stocked(service, "written-camera"))
    service.adaptation.GetAdaptationJob(pb.GetAdaptationJobRequest(name=job.name), timeout=10)
    service.adaptation.ListAdaptationJobs(pb.ListAdaptationJobsRequest(model=str(name)), timeout=10)
    service.adaptation.CancelAdaptationJob(pb.CancelAdaptationJobRequest(name=job.name), timeout=10)
    request = registry_pb2.GetModelVersionRequest(name=str(made))
    service.registry.GetModelVersion(request, timeout=10)
    listing = registry_pb2.ListModelVersionsRequest(parent=str(name))
    service.registry.ListModelVersions(listing, timeout=10)
    assert set(threads) == {"store"}
    assert len(threads) >= 7
