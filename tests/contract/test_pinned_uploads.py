"""Which uploads count for a job: those that were committed before its first attempt."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from tests.contract.builders import (
    SOURCE,
    TARGET,
    FakeClock,
    chain_of,
    claimed,
    draft,
    furnish,
    make_version,
    pictures,
    send,
    upload,
)
from tests.contract.test_migrations import at

from acclimate_service.domain.examples import Role, Split
from acclimate_service.domain.job import Job, JobState
from acclimate_service.store import Store, schema


@pytest.fixture
def store(store: Store) -> Store:
    furnish(store)
    return store


def read(store: Store, job: Job) -> set[str]:
    """The contents that the job reads of its source."""
    found = store.domains.examples(SOURCE, splits=tuple(Split), up_to=job.reads_up_to)
    return {example.content for example in found}


def test_a_resumed_job_reads_what_its_first_attempt_read(store: Store, clock: FakeClock) -> None:
    early, late = pictures(3, prefix="early"), pictures(2, prefix="late")
    upload(store, early, Role.TRAIN, to=SOURCE, request="early")
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    assert read(store, job) == {picture.content for picture in early}
    upload(store, late, Role.AUTO, to=SOURCE, request="late")
    store.jobs.release(lease)
    again, _ = claimed(store, "worker-2")
    assert read(store, again) == {picture.content for picture in early}
    clock.advance(3600)
    dead, _ = claimed(store, "worker-3")
    assert read(store, dead) == {picture.content for picture in early}
    assert store.jobs.get(job.name).reads_up_to == job.reads_up_to


def test_what_is_uploaded_while_a_job_waits_counts_for_it(store: Store) -> None:
    job = store.jobs.enqueue(draft(), request_id="")
    assert job.reads_up_to is None
    early = pictures(3)
    upload(store, early, Role.TRAIN, to=SOURCE, request="early")
    assert read(store, claimed(store)[0]) == {picture.content for picture in early}


def test_it_is_the_commit_that_counts_not_the_beginning_of_an_upload(store: Store) -> None:
    pics = pictures(3)
    batch, _ = send(store, pics, Role.TRAIN, to=SOURCE, request="open")
    store.jobs.enqueue(draft(), request_id="")
    job, _ = claimed(store)
    store.domains.commit_batch(batch.name, count=3, chain=chain_of(pics))
    assert read(store, job) == set()
    assert store.domains.counts(SOURCE)["mug"][Split.TRAIN] == 3


def test_an_upload_after_one_that_was_taken_back_does_not_count_as_it(store: Store) -> None:
    upload(store, pictures(1), Role.TRAIN, to=SOURCE, request="stays")
    taken_back = upload(store, pictures(1, prefix="wrong"), Role.TRAIN, request="wrong")
    store.jobs.enqueue(draft(), request_id="")
    job, _ = claimed(store)
    store.domains.delete_batch(taken_back.name)
    upload(store, pictures(2, prefix="late"), Role.TRAIN, to=SOURCE, request="late")
    assert read(store, job) == {picture.content for picture in pictures(1)}


def test_an_image_that_is_erased_does_not_count_for_whom_it_counted(store: Store) -> None:
    kept, erased = pictures(2)
    upload(store, [kept, erased], Role.TRAIN, to=SOURCE, request="both")
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    store.jobs.request_cancel(job.name)
    store.jobs.finish(lease, state=JobState.CANCELLED, summary={})
    store.erase(erased.content, who="ada", why="asked to")
    assert read(store, job) == {kept.content}


def test_uploads_and_jobs_of_an_older_acclimate_count_and_read_as_they_did(store: Store) -> None:
    older, newer = pictures(2, prefix="older"), pictures(2, prefix="newer")
    upload(store, older, Role.TRAIN, to=SOURCE, request="older")
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    with at(store, "0013"):
        columns = sa.inspect(store.database.engine).get_columns("jobs")
        assert "reads_up_to" not in {column["name"] for column in columns}
    upload(store, newer, Role.TRAIN, to=SOURCE, request="newer")
    every = {picture.content for picture in (*older, *newer)}
    assert read(store, store.jobs.get(job.name)) == every
    store.jobs.release(lease)
    again, _ = claimed(store)
    upload(store, pictures(1, prefix="late"), Role.TRAIN, to=SOURCE, request="late")
    assert read(store, again) == every


def test_the_order_of_commits_survives_jobs_and_domains_side_by_side(store: Store) -> None:
    base = make_version(store)
    for number in range(3):
        upload(store, pictures(1, prefix=f"s{number}"), Role.TRAIN, to=SOURCE, request=f"s{number}")
        upload(store, pictures(1, prefix=f"t{number}"), Role.TRAIN, to=TARGET, request=f"t{number}")
        store.jobs.enqueue(draft(base), request_id=f"{number}")
    with store.database.engine.connect() as connection:
        numbers = sa.select(schema.batches.c.commit_number).order_by(schema.batches.c.number)
        assert list(connection.execute(numbers).scalars()) == [1, 2, 3, 4, 5, 6]
    assert claimed(store)[0].reads_up_to == 6
