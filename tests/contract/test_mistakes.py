"""What was made by mistake can be taken back, and nothing else can."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.contract.builders import (
    MODEL,
    SOURCE,
    TARGET,
    FakeClock,
    claimed,
    domain,
    draft,
    furnish,
    make_version,
    model,
    pictures,
    send,
    upload,
)

from acclimate_service.domain.errors import HoldoutLeak, InUse, NotFound
from acclimate_service.domain.examples import Role, Split
from acclimate_service.domain.job import JobState
from acclimate_service.domain.names import BatchName, DomainName, ModelName
from acclimate_service.store import AuditFilter, Store
from acclimate_service.store.intake import Answer

STRAY = DomainName("webcma")


@pytest.fixture
def store(store: Store) -> Store:
    furnish(store)
    return store


def judged(store: Store) -> None:
    """A job that looked at both domains' holdouts and was refused."""
    version = make_version(store)
    store.jobs.enqueue(draft(version), request_id="")
    _, lease = claimed(store)
    store.jobs.look(lease, [SOURCE, TARGET], asked="is it harmless?")
    store.jobs.finish(lease, state=JobState.REJECTED, summary={})


def failed(store: Store) -> None:
    store.jobs.enqueue(draft(), request_id="")
    _, lease = claimed(store)
    store.jobs.finish(lease, state=JobState.CANCELLED, summary={})


def actions(store: Store) -> list[tuple[str, str]]:
    return [(entry.action, entry.subject) for entry in store.audit.list(AuditFilter()).items]


# ── models ───────────────────────────────────────────────────────────────────


def test_a_model_that_never_had_a_version_goes_with_its_jobs_and_frees_its_id(
    store: Store,
) -> None:
    failed(store)
    store.registry.delete_model(MODEL)
    with pytest.raises(NotFound):
        store.registry.get_model(MODEL)
    assert store.jobs.list().items == ()
    assert actions(store)[0] == ("DeleteModel", str(MODEL))
    model(store, ModelName("another"))
    assert [item.name for item in store.registry.list_models().items] == [ModelName("another")]


def test_a_model_stays_while_a_job_of_it_may_make_a_version(store: Store) -> None:
    job = store.jobs.enqueue(draft(), request_id="")
    with pytest.raises(InUse, match=str(job.name)):
        store.registry.delete_model(MODEL)
    assert store.registry.get_model(MODEL).name == MODEL


def test_a_model_that_ever_had_a_version_stays(store: Store) -> None:
    store.registry.delete_version(make_version(store))
    with pytest.raises(InUse, match="1 versions"):
        store.registry.delete_model(MODEL)


def test_what_is_not_there_is_not_deleted(store: Store) -> None:
    for call in (
        lambda: store.registry.delete_model(ModelName("nobody")),
        lambda: store.domains.delete(STRAY),
        lambda: store.domains.delete_batch(BatchName("webcam", "20260101-000000-aaaaaa")),
    ):
        with pytest.raises(NotFound):
            call()


# ── domains ──────────────────────────────────────────────────────────────────


def test_a_domain_made_by_mistake_goes_with_its_images(store: Store) -> None:
    domain(store, STRAY)
    pics = pictures(3)
    upload(store, pics, Role.HOLDOUT, to=STRAY, request="one")
    send(store, pictures(2, prefix="open"), Role.TRAIN, to=STRAY, request="two")
    store.domains.delete(STRAY)
    with pytest.raises(NotFound):
        store.domains.get(STRAY)
    # What was held out there may be learned from elsewhere now.
    _, answers = send(store, pics, Role.TRAIN, request="three")
    assert {outcome.answer for outcome in answers} == {Answer.ACCEPTED}
    assert actions(store)[1][0] == "DeleteDomain"


def test_a_domain_goes_with_the_jobs_that_came_to_nothing(store: Store) -> None:
    failed(store)
    store.domains.delete(SOURCE)
    assert store.jobs.list().items == ()


@pytest.mark.parametrize("name", [SOURCE, TARGET])
def test_a_domain_that_a_job_was_judged_with_stays(store: Store, name: DomainName) -> None:
    judged(store)
    with pytest.raises(InUse):
        store.domains.delete(name)
    assert store.domains.get(name).name == name


def test_a_domain_that_a_job_waits_for_stays(store: Store) -> None:
    job = store.jobs.enqueue(draft(), request_id="")
    with pytest.raises(InUse, match=str(job.name)):
        store.domains.delete(SOURCE)


# ── uploads ──────────────────────────────────────────────────────────────────


def test_an_upload_in_the_wrong_role_can_be_taken_back(store: Store) -> None:
    pics = pictures(2)
    first = upload(store, pics, Role.TRAIN, request="one")
    _, answers = send(store, pics, Role.HOLDOUT, request="two")
    assert {outcome.refusal.reason for outcome in answers if outcome.refusal} == {
        HoldoutLeak.reason
    }
    store.domains.delete_batch(first.name)
    upload(store, pics, Role.HOLDOUT, request="three")
    assert store.domains.counts(TARGET)["mug"][Split.TRAIN] == 0


def test_an_upload_that_came_after_the_last_job_can_be_taken_back(
    store: Store, clock: FakeClock
) -> None:
    upload(store, pictures(2), Role.TRAIN, to=SOURCE, request="one")
    judged(store)
    clock.advance(1)
    late = upload(store, pictures(2, prefix="late"), Role.TRAIN, to=SOURCE, request="two")
    store.domains.delete_batch(late.name)
    assert store.domains.counts(SOURCE)["mug"][Split.TRAIN] == 2


def test_an_upload_that_a_job_has_learnt_from_stays(store: Store) -> None:
    batch = upload(store, pictures(2), Role.TRAIN, to=SOURCE, request="one")
    judged(store)
    with pytest.raises(InUse, match="has learnt"):
        store.domains.delete_batch(batch.name)


def test_an_upload_that_a_job_under_way_does_not_read_can_be_taken_back(store: Store) -> None:
    base = make_version(store)
    make_version(store, base)  # the model knows TARGET, and the next job's incumbent does not
    beside = upload(store, pictures(2), Role.TRAIN, to=TARGET, request="beside")
    domain(store, STRAY)
    store.jobs.enqueue(replace(draft(base), target=STRAY), request_id="")
    claimed(store)
    late = upload(store, pictures(2, prefix="late"), Role.TRAIN, to=SOURCE, request="late")
    store.domains.delete_batch(beside.name)
    store.domains.delete_batch(late.name)  # it came after the job had begun
    assert store.domains.list_batches(TARGET).items == ()


def test_an_upload_stays_while_a_job_that_may_read_it_waits(store: Store) -> None:
    batch = upload(store, pictures(2), Role.TRAIN, to=SOURCE, request="one")
    store.jobs.enqueue(draft(), request_id="")
    with pytest.raises(InUse):
        store.domains.delete_batch(batch.name)
