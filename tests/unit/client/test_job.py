from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.protobuf import struct_pb2
from google.rpc import code_pb2
from tests.unit.client.fake_service import NOW, Service, start

from acclimate import Client, JobState, _waiting
from acclimate.errors import Conflict, DeadlineExceeded, NotFound, Unavailable
from acclimate.resources import EventKind, Phase
from acclimate.v1 import adaptation_pb2

AdaptationJob = adaptation_pb2.AdaptationJob


def story(length: int) -> list[adaptation_pb2.JobEvent]:
    facts = struct_pb2.Struct()
    facts.update({"epoch": 3, "loss": 0.25, "list": [1, None, "a", True], "deep": {"b": 2.5}})
    return [
        adaptation_pb2.JobEvent(
            sequence=number,
            time=NOW,
            kind=adaptation_pb2.JobEvent.KIND_EPOCH,
            phase=AdaptationJob.PHASE_TUNING,
            message=f"event {number}",
            facts=facts,
            state=AdaptationJob.STATE_RUNNING,
        )
        for number in range(1, length + 1)
    ]


def test_what_is_asked_for_is_what_is_sent(service: Service, client: Client) -> None:
    job = client.adapt(
        "digits",
        "pens",
        epochs=3,
        seed=0,
        base="2",
        promote_to="production",
        variants=["int8"],
        guard_preset="strict",
        guard={"source_margin": 0.02, "reason": "tight"},
    )
    request = service.seen[0][1]
    assert isinstance(request, adaptation_pb2.CreateAdaptationJobRequest)
    assert (request.model, request.domain) == ("models/digits", "domains/pens")
    assert request.base == "models/digits/versions/2"
    assert request.spec.epochs == 3
    assert request.spec.HasField("seed")
    assert list(request.spec.variants) == ["int8"]
    assert not request.spec.HasField("views")
    assert request.spec.guard_overrides["source_margin"] == 0.02
    assert job.state is JobState.RUNNING
    assert job.phase is Phase.TUNING


def test_numbers_of_a_story_are_whole_where_they_were(service: Service, client: Client) -> None:
    service.events = story(1)
    (event,) = client.job("j1").watch()
    assert event.facts == {
        "epoch": 3,
        "loss": 0.25,
        "list": [1, None, "a", True],
        "deep": {"b": 2.5},
    }
    assert event.kind is EventKind.EPOCH


def test_a_broken_watch_goes_on_where_it_broke(service: Service, client: Client) -> None:
    service.events = story(10)
    service.faults.watch_after = [4, 0, 3]
    job = client.job("j1")
    assert [event.sequence for event in job.watch()] == list(range(1, 11))
    assert job.state is JobState.SUCCEEDED
    assert job.version == "models/digits/versions/2"


def test_a_stream_that_ends_before_the_job_is_taken_up_again(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.events = story(4)
    ends = iter([AdaptationJob.STATE_RUNNING, AdaptationJob.STATE_SUCCEEDED])
    end = service.end
    monkeypatch.setattr(service, "end", lambda _: end(next(ends)))
    assert [event.sequence for event in client.job("j1").watch()] == [1, 2, 3, 4]
    assert [name for name, _ in service.seen].count("WatchAdaptationJob") == 2


def test_a_watch_can_begin_in_the_middle(service: Service, client: Client) -> None:
    service.events = story(5)
    assert [event.sequence for event in client.job("j1").watch(after=3)] == [4, 5]


def test_a_watch_gives_up_when_patience_is_out(service: Service, target: str) -> None:
    service.events = story(5)
    service.faults.watch_after = [0] * 1000
    with Client(target, patience=0.3) as client, pytest.raises(Unavailable):
        list(client.job("j1").watch())


def test_a_watch_that_was_silent_for_longer_than_its_patience_outlasts_a_break(
    service: Service, target: str
) -> None:
    service.events = story(3)
    service.faults.watch_after, service.faults.watch_silent = [2], 0.6
    with Client(target, patience=0.4) as client:
        assert [event.sequence for event in client.job("j1").watch()] == [1, 2, 3]


@pytest.mark.parametrize("held", [False, True])
def test_a_silent_watch_outlasts_each_break_of_a_connection_that_held_until_then(
    service: Service, target: str, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    monkeypatch.setattr(_waiting, "HELD_SECONDS", 0.2 if held else 60)
    service.events = story(1)
    service.faults.watch_after, service.faults.watch_silent = [0] * 4, 0.3
    with Client(target, patience=0.5) as client:
        watch = client.job("j1").watch()
        if held:
            assert [event.sequence for event in watch] == [1]
        else:
            with pytest.raises(Unavailable):
                next(watch)


def test_waiting_ends_with_the_job(service: Service, client: Client) -> None:
    job = client.job("j1")
    timer = threading.Timer(0.3, service.end, [AdaptationJob.STATE_REJECTED])
    timer.start()
    assert job.wait(timeout=10).state is JobState.REJECTED
    timer.join()


def test_waiting_too_long_says_that_the_job_goes_on(client: Client) -> None:
    with pytest.raises(DeadlineExceeded, match="goes on") as caught:
        client.job("j1").wait(timeout=0.2)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.metadata["state"] == "RUNNING"


def test_an_ended_job_cannot_be_cancelled(service: Service, client: Client) -> None:
    job = client.job("j1")
    assert job.cancel().snapshot.cancel_requested
    service.end(AdaptationJob.STATE_CANCELLED)
    with pytest.raises(Conflict) as caught:
        job.cancel()
    assert caught.value.reason == "JOB_ENDED"


def test_waiting_outlasts_a_service_that_is_started_again(service: Service) -> None:
    server, target = start(service)
    with Client(target, timeout=5, patience=30, retries=0) as client:
        job = client.job("j1")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(job.wait, 30)
            server.stop(grace=None).wait()
            # Longer than a single call is repeated for.
            with pytest.raises(Unavailable):
                client.job("j1")
            service.end(AdaptationJob.STATE_SUCCEEDED)
            server, _ = start(service, int(target.rpartition(":")[2]))
            assert waiting.result(30).state is JobState.SUCCEEDED
    server.stop(grace=None).wait()


def test_waiting_gives_up_on_a_service_that_stays_away(service: Service) -> None:
    server, target = start(service)
    with Client(target, patience=0.5, retries=0) as client:
        job = client.job("j1")
        server.stop(grace=None).wait()
        with pytest.raises(Unavailable):
            job.wait()


def test_a_report_arrives_whole_though_the_first_try_broke(
    service: Service, client: Client
) -> None:
    job = client.job("j1")
    service.faults.calls = [(code_pb2.UNAVAILABLE, "STORE_UNAVAILABLE", None)]
    assert job.report() == b"<html></html>"
    assert job.report("json") == b'{"a":1}'


def test_no_such_job_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound):
        client.job("elsewhere")


def test_jobs_are_asked_for_by_model_domain_and_state(service: Service, client: Client) -> None:
    (job,) = client.jobs(model="digits", domain="pens", state=JobState.RUNNING)
    request = service.seen[0][1]
    assert isinstance(request, adaptation_pb2.ListAdaptationJobsRequest)
    assert (request.model, request.domain) == ("models/digits", "domains/pens")
    assert request.state == AdaptationJob.STATE_RUNNING
    assert job.name == "jobs/j1"
