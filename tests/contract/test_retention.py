from __future__ import annotations

import pytest
from tests.contract.builders import (
    MODEL,
    PRODUCTION,
    SOURCE,
    TARGET,
    FakeClock,
    claimed,
    domain,
    draft,
    furnish,
    make_version,
    manifest,
    pictures,
    upload,
)

from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.examples import Role
from acclimate_service.domain.job import Job, JobState
from acclimate_service.domain.names import AliasName, BatchName, DomainName, VersionName
from acclimate_service.domain.retention import RetentionPolicy
from acclimate_service.store import Store

DAY = 86_400.0
NOTHING = RetentionPolicy(versions=None, candidate_days=None)


@pytest.fixture
def store(store: Store) -> Store:
    furnish(store)
    return store


def numbers(store: Store) -> list[int]:
    return sorted(int(v.name.version) for v in store.registry.list_versions(MODEL).items)


def refused(store: Store, incumbent: VersionName | None = None) -> Job:
    """A job that the guard refused, with the candidate that it kept and its report."""
    store.jobs.enqueue(draft(incumbent), request_id="")
    job, lease = claimed(store)
    kept = manifest(store, VersionName("desk", "0"), job.name, weights=b"candidate")
    return store.jobs.finish(
        lease,
        state=JobState.REJECTED,
        summary={"manifest": kept.model_dump(mode="json"), "target": None},
        report_html=store.blobs.put(b"<html>"),
        report_json=store.blobs.put(b"{}"),
    )


def test_old_versions_go_and_the_newest_of_each_model_stay(store: Store) -> None:
    for _ in range(5):
        make_version(store)
    removed = store.tidy(RetentionPolicy(versions=2))
    assert {name.version for name in removed.versions} == {"1", "2", "3"}
    assert numbers(store) == [4, 5]


def test_what_an_alias_or_a_rollback_or_a_live_lineage_needs_stays(store: Store) -> None:
    root = make_version(store)  # 1, whose descendant is live
    make_version(store)  # 2
    live = make_version(store, root)  # 3
    back = make_version(store)  # 4, where a rollback would go
    dead = make_version(store)  # 5, whose only descendant goes with it
    make_version(store, dead)  # 6
    make_version(store)  # 7
    store.registry.set_alias(AliasName("desk", "canary"), back)
    store.registry.set_alias(AliasName("desk", "canary"), live)
    removed = store.tidy(RetentionPolicy(versions=1))
    assert [name.version for name in removed.versions] == ["6", "5", "2"]
    assert numbers(store) == [1, 3, 4, 7]


def test_what_a_waiting_job_adapts_stays(store: Store) -> None:
    waited_for, *_ = make_version(store), make_version(store), make_version(store)
    store.jobs.enqueue(draft(waited_for), request_id="")
    store.tidy(RetentionPolicy(versions=1))
    assert numbers(store) == [1, 3]


def test_a_rehearsal_says_what_would_go_and_removes_nothing(store: Store) -> None:
    for _ in range(3):
        make_version(store)
    rehearsed = store.tidy(RetentionPolicy(versions=1), rehearse=True)
    assert numbers(store) == [1, 2, 3]
    assert store.tidy(RetentionPolicy(versions=1)) == rehearsed


def test_an_old_refused_candidate_cannot_be_forced_any_more(store: Store, clock: FakeClock) -> None:
    job = refused(store)
    assert store.tidy(RetentionPolicy(candidate_days=30)).candidates == ()
    clock.advance(31 * DAY)
    assert store.tidy(RetentionPolicy(candidate_days=30)).candidates == (job.name,)
    assert store.tidy(RetentionPolicy(candidate_days=30)).candidates == ()
    kept = store.jobs.get(job.name)
    assert kept.summary == {"target": None}
    with pytest.raises(InvalidSpec, match="no candidate"):
        store.registry.force_version(job.name, who="ann", why="because")


def test_a_version_that_was_forced_keeps_its_files(store: Store, clock: FakeClock) -> None:
    job = refused(store)
    version = store.registry.force_version(job.name, who="ann", why="because")
    clock.advance(31 * DAY)
    store.tidy(RetentionPolicy())
    assert store.reconcile().missing == ()
    assert store.blobs.exists(version.manifest.artifacts.onnx)


def test_old_reports_go_only_if_that_is_asked_for(store: Store, clock: FakeClock) -> None:
    job = refused(store)
    clock.advance(1000 * DAY)
    assert store.tidy(RetentionPolicy()).reports == ()
    removed = store.tidy(NOTHING.model_copy(update={"report_days": 90}))
    assert removed.reports == (job.name,)
    assert store.jobs.get(job.name).report_html == ""


def test_images_go_only_from_domains_that_nothing_rests_on(store: Store, clock: FakeClock) -> None:
    loose = domain(store, DomainName("loose"))
    for to in (SOURCE, TARGET, loose):
        upload(store, pictures(2, prefix=str(to)), Role.TRAIN, to=to, request=str(to))
    make_version(store, make_version(store), promote=PRODUCTION)
    clock.advance(100 * DAY)
    removed = store.tidy(NOTHING.model_copy(update={"batch_days": 90}))
    assert [name.domain for name in removed.batches] == ["loose"]
    assert all(isinstance(name, BatchName) for name in removed.batches)
    left = {to.domain: len(store.domains.list_batches(to).items) for to in (SOURCE, TARGET, loose)}
    assert left == {"amazon": 1, "webcam": 1, "loose": 0}


def test_young_images_of_a_domain_that_nothing_rests_on_stay(store: Store) -> None:
    upload(store, pictures(2), Role.TRAIN, request="r")
    assert store.tidy(NOTHING.model_copy(update={"batch_days": 90})).batches == ()
