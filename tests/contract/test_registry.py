from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
from tests.contract.builders import (
    MODEL,
    PRODUCTION,
    SOURCE,
    TARGET,
    claimed,
    draft,
    furnish,
    make_version,
    manifest,
    model,
)

from acclimate_service.domain.errors import (
    AliasMoved,
    AliasNotFound,
    AlreadyExists,
    InvalidSpec,
    NoIncumbent,
    NotFound,
    RequestIdReused,
    VersionInUse,
    VersionNotFound,
)
from acclimate_service.domain.job import Job, JobState
from acclimate_service.domain.model import Decoding, Origin, Preprocessing
from acclimate_service.domain.names import AliasName, DomainName, ModelName, VersionName
from acclimate_service.store import AuditFilter, Store, schema


@pytest.fixture
def store(store: Store) -> Store:
    furnish(store)
    return store


def rejected(store: Store, incumbent: VersionName | None = None, *, kept: bool = True) -> Job:
    """A job that the guard refused, its candidate kept or not."""
    store.jobs.enqueue(draft(incumbent), request_id="")
    job, lease = claimed(store)
    candidate = manifest(store, VersionName("desk", "999"), job.name, parent=incumbent)
    summary = {"manifest": candidate.model_dump(mode="json")} if kept else {}
    return store.jobs.finish(lease, state=JobState.REJECTED, summary=summary)


# ── models ───────────────────────────────────────────────────────────────────


def test_the_same_request_makes_one_model(store: Store) -> None:
    found = store.registry.get_model(MODEL)
    assert model(store) == found
    make_version(store)  # which fills in its labels
    assert model(store).labels == ("mug", "pen")
    with pytest.raises(RequestIdReused):
        store.registry.create_model(
            dataclasses.replace(found, name=ModelName("other")), "create models/desk"
        )
    with pytest.raises(AlreadyExists):
        store.registry.create_model(found, "another request")


@pytest.mark.parametrize("decoding", ["full", "scaled"])
@pytest.mark.parametrize("size", [None, 96])
def test_a_model_keeps_how_its_jpegs_are_decoded(
    store: Store, decoding: Decoding, size: int | None
) -> None:
    given = None if size is None else Preprocessing(size=size, decoding=decoding)
    asked = dataclasses.replace(
        store.registry.get_model(MODEL),
        name=ModelName("other"),
        preprocessing=given,
        decoding=decoding,
    )
    made = store.registry.create_model(asked, "r")
    assert (made.decoding, made.preprocessing) == (decoding, given)
    assert store.registry.get_model(ModelName("other")) == made
    assert store.registry.create_model(asked, "r") == made
    other: Decoding = "scaled" if decoding == "full" else "full"
    again = dataclasses.replace(
        asked,
        preprocessing=None if given is None else given.model_copy(update={"decoding": other}),
        decoding=other,
    )
    way_out = f"never changes.*new name.*--decoding {other}.*adapt.*alias"
    with pytest.raises(RequestIdReused, match=way_out):
        store.registry.create_model(again, "r")
    with pytest.raises(AlreadyExists, match=way_out):
        store.registry.create_model(again, "another request")
    with pytest.raises(AlreadyExists, match="choose another id"):
        store.registry.create_model(asked, "another request")


def test_a_model_needs_its_source_domain(store: Store) -> None:
    lost = dataclasses.replace(
        store.registry.get_model(MODEL),
        name=ModelName("other"),
        source_domain=DomainName("nowhere"),
    )
    with pytest.raises(NotFound):
        store.registry.create_model(lost)
    with pytest.raises(NotFound):
        store.registry.get_model(ModelName("other"))


def test_models_are_listed_page_by_page(store: Store) -> None:
    model(store, ModelName("chair"))
    first = store.registry.list_models(1)
    second = store.registry.list_models(1, first.next_token)
    assert [item.name.model for item in first.items + second.items] == ["chair", "desk"]
    assert second.next_token == ""


# ── versions ─────────────────────────────────────────────────────────────────


def test_versions_count_from_one_and_are_never_numbered_again(store: Store) -> None:
    first = make_version(store)
    second = make_version(store, first)
    assert (first.version, second.version) == ("1", "2")
    store.registry.delete_version(second)
    assert make_version(store, first).version == "3"
    with pytest.raises(VersionNotFound):
        store.registry.get_version(second)
    assert [item.name.version for item in store.registry.list_versions(MODEL).items] == ["3", "1"]


def test_a_version_that_something_needs_is_not_deleted(store: Store) -> None:
    first = make_version(store, promote=PRODUCTION)
    second = make_version(store, first, promote=PRODUCTION)
    third = make_version(store, second, promote=PRODUCTION)
    fourth = make_version(store, first)
    store.jobs.enqueue(draft(fourth), request_id="")
    for version, needed_by in (
        (first, "versions/2"),  # its lineage
        (second, "aliases/production"),  # where a rollback goes
        (third, "aliases/production"),
        (fourth, "jobs/"),
    ):
        with pytest.raises(VersionInUse, match=needed_by):
            store.registry.delete_version(version)


def test_every_domain_of_a_lineage_joins_the_guard_oldest_first(store: Store) -> None:
    first = make_version(store)
    assert store.registry.accepted_domains(first) == (SOURCE,)
    second = make_version(store, first)
    third = make_version(store, second)
    assert store.registry.accepted_domains(third) == (SOURCE, TARGET)
    with pytest.raises(VersionNotFound):
        store.registry.accepted_domains(VersionName(MODEL.model, "4"))


def test_the_domains_of_a_lineage_are_known_without_reading_its_manifests(store: Store) -> None:
    first = make_version(store)
    second = make_version(store, first)
    versions = schema.versions
    with store.database.engine.begin() as connection:
        connection.execute(
            sa.update(versions)
            .where(versions.c.id == first.version)
            .values(manifest={"format": 99})
        )
    assert store.registry.accepted_domains(second) == (SOURCE, TARGET)


def test_the_first_version_is_the_source_s_standard_and_a_domain_s_the_last_made_for_it(
    store: Store,
) -> None:
    first = make_version(store)
    second = make_version(store, first)
    third = make_version(store, second)
    found = store.registry.standards(third)
    assert found == {
        SOURCE: first,
        TARGET: third,
    }


def test_what_a_forced_version_lost_is_accepted_and_it_is_the_new_standard(store: Store) -> None:
    first = make_version(store)
    forced = store.registry.force_version(rejected(store, first).name, who="ann", why="wanted")
    later = make_version(store, forced.name)
    found = store.registry.standards(later)
    assert (found[SOURCE], found[TARGET]) == (forced.name, later)


def test_a_forced_version_says_who_and_why_and_leaves_the_verdict(store: Store) -> None:
    first = make_version(store)
    job = rejected(store, first)
    forced = store.registry.force_version(job.name, who="ada", why="the holdout is mislabelled")
    assert (forced.origin, forced.forced_by) == (Origin.FORCED, "ada")
    assert forced.forced_reason == "the holdout is mislabelled"
    assert forced.parent == first
    assert forced.manifest.version == str(forced.name) == "models/desk/versions/2"
    assert forced.manifest.origin is Origin.FORCED
    assert store.registry.force_version(job.name, who="eve", why="again") == forced
    assert store.jobs.get(job.name).state is JobState.REJECTED


def test_only_what_the_guard_refused_and_kept_is_forced_and_for_a_reason(store: Store) -> None:
    made = store.registry.get_version(make_version(store))
    for job, why in (
        (made.job, "x"),
        (rejected(store).name, "  "),
        (rejected(store, kept=False).name, "x"),
    ):
        with pytest.raises(InvalidSpec):
            store.registry.force_version(job, who="ada", why=why)
    assert len(store.registry.list_versions(MODEL).items) == 1


# ── aliases ──────────────────────────────────────────────────────────────────


def test_an_alias_moves_only_from_where_it_was_believed_to_be(store: Store) -> None:
    first = make_version(store)
    second = make_version(store, first)
    with pytest.raises(AliasMoved):
        store.registry.set_alias(PRODUCTION, first, expect=second)
    with pytest.raises(AliasNotFound):
        store.registry.get_alias(PRODUCTION)
    store.registry.set_alias(PRODUCTION, first)
    with pytest.raises(AliasMoved):
        store.registry.set_alias(PRODUCTION, second, expect=second)
    moved = store.registry.set_alias(PRODUCTION, second, expect=first)
    assert (moved.version, moved.previous) == (second, first)
    assert store.registry.list_aliases() == [moved]


def test_an_alias_points_at_a_version_of_its_own_model(store: Store) -> None:
    first = make_version(store)
    with pytest.raises(VersionNotFound):
        store.registry.set_alias(PRODUCTION, VersionName("desk", "9"))
    with pytest.raises(InvalidSpec):
        store.registry.set_alias(AliasName("chair", "production"), first)


def test_rollbacks_go_back_and_never_forward_again(store: Store) -> None:
    first = make_version(store)
    second = make_version(store, first)
    third = make_version(store, second)
    with pytest.raises(AliasNotFound):
        store.registry.rollback(PRODUCTION)
    for version in (first, second, first, third):
        store.registry.set_alias(PRODUCTION, version)
    for version in (first, second, first):
        assert store.registry.rollback(PRODUCTION, who="ada", why="errors").version == version
    with pytest.raises(NoIncumbent):
        store.registry.rollback(PRODUCTION)


def test_of_two_rollbacks_at_once_one_can_be_told_that_it_is_late(store: Store) -> None:
    first = make_version(store)
    second = make_version(store, first)
    for version in (first, second):
        store.registry.set_alias(PRODUCTION, version)
    store.registry.rollback(PRODUCTION, expect=second)
    with pytest.raises(AliasMoved):
        store.registry.rollback(PRODUCTION, expect=second)


def test_a_rollback_passes_over_versions_that_were_deleted(store: Store) -> None:
    root = make_version(store)
    one, two, three = (make_version(store, root) for _ in range(3))
    for version in (root, one, two, three):
        store.registry.set_alias(PRODUCTION, version)
    store.registry.delete_version(one)
    back = store.registry.rollback(PRODUCTION)
    assert (back.version, back.previous) == (two, root)


def test_every_move_is_recorded_and_a_replica_hears_of_it_once(store: Store) -> None:
    first = make_version(store)
    second = make_version(store, first)
    store.registry.set_alias(PRODUCTION, first, who="ada", why="start")
    moved, seen = store.registry.aliases_moved(None)
    assert moved == [PRODUCTION]
    store.registry.set_alias(PRODUCTION, first, who="ada", why="again")  # moves nothing
    assert store.registry.aliases_moved(seen) == ([], seen)
    store.registry.set_alias(PRODUCTION, second, who="bob", why="better")
    store.registry.delete_alias(PRODUCTION, who="eve", why="closed")
    moved, last = store.registry.aliases_moved(seen)
    assert moved == [PRODUCTION]
    assert store.registry.aliases_moved(last) == ([], last)
    assert store.registry.aliases_moved(None) == ([], last)  # what is gone need not be heard of
    told = store.registry.alias_history(PRODUCTION)
    assert [(move.version, move.who, move.why) for move in told] == [
        (None, "eve", "closed"),
        (second, "bob", "better"),
        (first, "ada", "start"),
    ]
    with pytest.raises(AliasNotFound):
        store.registry.delete_alias(PRODUCTION)
    assert store.registry.set_alias(PRODUCTION, second).previous is None


# ── who did what ─────────────────────────────────────────────────────────────


def test_the_audit_log_is_read_newest_first(store: Store) -> None:
    for number in range(3):
        store.audit.record(
            who="ada", action="SetAlias", subject=f"s{number % 2}", why="x", origin="127.0.0.1"
        )
    hers = AuditFilter(who="ada")
    first = store.audit.list(hers, page_size=2)
    second = store.audit.list(hers, page_size=2, page_token=first.next_token)
    numbers = [entry.number for entry in first.items + second.items]
    assert numbers == sorted(numbers, reverse=True)
    assert [entry.subject for entry in first.items + second.items] == ["s0", "s1", "s0"]
    assert first.items[0].origin == "127.0.0.1"


def test_the_audit_log_is_read_by_who_what_where_and_when(store: Store) -> None:
    for who, action, subject in (
        ("ada", "SetAlias", "models/a/aliases/x"),
        ("bob", "SetAlias", "models/ab"),
        ("ada", "DeleteAlias", "models/a"),
    ):
        store.audit.record(who=who, action=action, subject=subject)

    def found(**wanted: Any) -> list[str]:
        return [entry.subject for entry in store.audit.list(AuditFilter(**wanted)).items]

    assert found(who="ada") == ["models/a", "models/a/aliases/x"]
    assert found(action="SetAlias") == ["models/ab", "models/a/aliases/x"]
    assert found(subject="models/a") == ["models/a", "models/a/aliases/x"]
    moment = store.audit.list().items[0].at + dt.timedelta(seconds=1)
    assert found(who="ada", since=moment) == []
    assert found(who="ada", until=moment) == ["models/a", "models/a/aliases/x"]


@pytest.mark.parametrize("change", ["UPDATE audit SET who = 'eve'", "DELETE FROM audit"])
def test_the_database_itself_refuses_to_change_the_audit_log(store: Store, change: str) -> None:
    import sqlalchemy as sa

    store.audit.record(who="ada", action="SetAlias", subject="s")
    with store.database.engine.connect() as connection, pytest.raises(sa.exc.DBAPIError):
        connection.execute(sa.text(change))
    assert store.audit.list().items[0].who == "ada"
