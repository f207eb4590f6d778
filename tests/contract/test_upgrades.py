"""A store that processes of an older and of a newer Acclimate share while they are upgraded."""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import replace
from typing import Any

import pydantic
import pytest
import sqlalchemy as sa
from tests.contract.builders import (
    MODEL,
    PRODUCTION,
    SOURCE,
    TARGET,
    FakeClock,
    claimed,
    draft,
    furnish,
    make_version,
)

from acclimate.v1 import adaptation_pb2 as pb
from acclimate_service.domain.access import TokenDraft, principal_of
from acclimate_service.domain.errors import StoreUnavailable, VersionUnloadable
from acclimate_service.domain.job import EventKind, JobSpec, JobState, Lease
from acclimate_service.domain.model import Manifest, Preprocessing, manifest_format
from acclimate_service.domain.names import JobName, ModelName, VersionName
from acclimate_service.domain.rollout import (
    Counts,
    RolloutDraft,
    RolloutLimits,
    RolloutMode,
    RolloutState,
)
from acclimate_service.domain.stored import known
from acclimate_service.rpc import convert_jobs
from acclimate_service.store import Look, Store, schema

NEWER = b"a file of a kind that only a newer Acclimate makes"
DIGEST = hashlib.sha256(NEWER).hexdigest()


def rewrite(
    store: Store, table: sa.Table, column: str, row: sa.ColumnElement[bool], **to: Any
) -> None:
    """Change the JSON in one row as a newer Acclimate would have written it."""
    with store.database.engine.begin() as connection:
        found = dict(connection.execute(sa.select(table.c[column]).where(row)).scalar_one())
        connection.execute(sa.update(table).where(row).values({column: found | to}))


def rewrite_manifest(store: Store, name: VersionName, **to: Any) -> None:
    versions = schema.versions
    rewrite(store, versions, "manifest", versions.c.id == name.version, **to)


def end_as_an_older_worker(store: Store, lease: Lease) -> None:
    """It wrote down what it had looked at when it ended the job, and knew of no numbers."""
    with store.database.engine.begin() as connection:
        for domain in (SOURCE, TARGET):
            row = {"job": lease.job.job, "domain": domain.domain, "model": MODEL.model}
            connection.execute(sa.insert(schema.looks), row)
    store.jobs.finish(lease, state=JobState.REJECTED, summary={})


def artifacts_of(store: Store, name: VersionName) -> dict[str, Any]:
    return store.registry.get_version(name).manifest.artifacts.model_dump(mode="json")


def reconciled_late(store: Store) -> tuple[str, ...]:
    """What is missing after everything without a name was collected."""
    return store.reconcile(grace=-dt.timedelta(hours=1)).missing


def test_a_version_with_fields_that_are_not_known_is_what_the_known_ones_say(store: Store) -> None:
    furnish(store)
    name = make_version(store, promote=PRODUCTION)
    before = store.registry.get_version(name)
    assert store.blobs.put(NEWER) == DIGEST
    int4 = {"onnx": DIGEST, "onnx_bytes": 7, "agreement": 1.0, "verdict": "ACCEPTED", "bits": 4}
    newer = artifacts_of(store, name) | {"profile": DIGEST, "variants": {"int4": int4}}
    rewrite_manifest(store, name, artifacts=newer, carbon={"grams": 7})
    assert store.registry.get_version(name) == before
    assert store.registry.list_versions(MODEL).items == (before,)
    assert reconciled_late(store) == ()
    assert store.blobs.get(DIGEST) == NEWER  # collected by nobody who does not know it


def test_a_manifest_of_a_newer_format_is_refused_by_name_and_its_files_stay(store: Store) -> None:
    furnish(store)
    first = make_version(store, promote=PRODUCTION)
    second = make_version(store)
    assert store.blobs.put(NEWER) == DIGEST
    newer = artifacts_of(store, second) | {"graph": DIGEST}
    rewrite_manifest(store, second, format=3, artifacts=newer, preprocessing="elsewhere")
    with pytest.raises(VersionUnloadable, match=rf"{second} is of format 3.*upgrade"):
        store.registry.get_version(second)
    assert store.registry.get_version(first).name == first
    page = store.registry.list_versions(MODEL)
    assert [one.name for one in page.items] == [first]
    assert page.unreadable == (str(second),)
    newest = store.registry.list_versions(MODEL, 1)
    assert (newest.items, newest.unreadable, bool(newest.next_token)) == ((), (str(second),), True)
    assert store.registry.list_versions(MODEL, 1, newest.next_token).items[0].name == first
    assert reconciled_late(store) == ()
    assert store.blobs.get(DIGEST) == NEWER


def test_a_job_that_asks_for_what_a_worker_does_not_know_waits_for_a_newer_one(
    store: Store,
) -> None:
    furnish(store)
    version = make_version(store)
    newer = store.jobs.enqueue(draft(version), request_id="newer")
    known_one = store.jobs.enqueue(draft(version), request_id="known")
    jobs = schema.jobs
    guard = newer.draft.spec.guard.model_dump(mode="json") | {"energy_limit": 3}
    rewrite(store, jobs, "spec", jobs.c.id == newer.name.job, distil_from="x", guard=guard)
    assert store.jobs.get(newer.name) == newer  # whoever only shows it, shows what is known

    def claimed(worker: str) -> JobName | None:
        found = store.jobs.claim(worker, lease_seconds=60, max_attempts=3)
        return None if found is None else found[0].name

    assert claimed("older-1") == known_one.name
    assert claimed("older-1") is None
    assert claimed("older-2") is None
    waiting = store.jobs.get(newer.name)
    assert (waiting.state, waiting.attempt) == (JobState.QUEUED, 0)
    warned = [one for one in store.jobs.events(newer.name) if one.kind is EventKind.WARNING]
    assert [one.message for one in warned] == [
        "waits for a newer worker: it asks for distil_from, guard.energy_limit"
    ]
    assert store.jobs.request_cancel(newer.name).state is JobState.CANCELLED


def test_a_phase_that_is_not_known_is_none(store: Store) -> None:
    furnish(store)
    job = store.jobs.enqueue(draft(make_version(store)), request_id="j")
    with store.database.engine.begin() as connection:
        for table in (schema.jobs, schema.events):
            connection.execute(sa.update(table).values(phase="DREAMING"))
    assert store.jobs.get(job.name).phase is None
    assert [event.phase for event in store.jobs.events(job.name)] == [None]


def test_an_event_of_a_kind_that_is_not_known_is_told_without_one(store: Store) -> None:
    furnish(store)
    job = store.jobs.enqueue(draft(make_version(store)), request_id="j")
    with store.database.engine.begin() as connection:
        connection.execute(sa.update(schema.events).values(kind="DREAM"))
    (event,) = store.jobs.events(job.name)
    assert event.kind is None
    assert convert_jobs.event(event, JobState.QUEUED).kind == pb.JobEvent.KIND_UNSPECIFIED
    assert convert_jobs.event(event, JobState.QUEUED).message == event.message


def test_a_rollout_with_limits_that_are_not_known_is_shown_and_left_to_newer_servers(
    store: Store,
) -> None:
    furnish(store)
    make_version(store, promote=PRODUCTION)
    limits = RolloutLimits(minimum=1)
    asked = RolloutDraft(
        alias=PRODUCTION,
        candidate=make_version(store),
        mode=RolloutMode.CANARY,
        share=0.5,
        limits=limits,
        promote=True,
    )
    begun = store.rollouts.start(asked, who="ada", why="")
    assert store.rollouts.running() == [begun]
    table = schema.rollouts
    rewrite(store, table, "limits", table.c.id == begun.name.rollout, joules=3)
    assert store.rollouts.running() == []
    assert store.rollouts.get(begun.name) == begun
    assert store.rollouts.list(MODEL).items == (begun,)
    # What a server had seen before is kept, and ends nothing: it knows too little.
    good = Counts(
        requests=9, images=9, confidence=9, seconds=1, incumbent_requests=9, incumbent_images=9,
        incumbent_confidence=9, incumbent_seconds=1,
    )  # fmt: skip
    counted = store.rollouts.count(begun.name, good)
    assert (counted.state, counted.counts) == (RolloutState.RUNNING, good)
    assert store.rollouts.stop(begun.name, who="ada", why="").state is RolloutState.STOPPED


def test_no_job_is_judged_by_less_than_the_guard_that_a_newer_server_set(store: Store) -> None:
    furnish(store)
    version = make_version(store)
    policy = draft(version).spec.guard
    store.registry.set_guard(MODEL, policy, who="ada", why="stricter")
    assert store.jobs.enqueue(draft(version), request_id="before").draft.spec.guard == policy
    models = schema.models
    rewrite(store, models, "guard", models.c.id == MODEL.model, energy_limit=3)
    assert store.registry.get_model(MODEL).guard == policy
    with pytest.raises(StoreUnavailable, match=r"newer Acclimate \(energy_limit\)"):
        store.jobs.enqueue(draft(version), request_id="after")


def test_a_model_of_an_older_server_decodes_in_full_and_older_ones_read_those_of_newer(
    store: Store,
) -> None:
    furnish(store)
    models, given = schema.models, Preprocessing(size=96, decoding="scaled")
    newer = replace(
        store.registry.get_model(MODEL),
        name=ModelName("newer"),
        preprocessing=given,
        decoding="scaled",
    )
    assert store.registry.create_model(newer).preprocessing == given
    with store.database.engine.begin() as connection:
        row = connection.execute(sa.select(models).where(models.c.id == "newer")).one()
        # Whoever knows no decoding takes no such field.
        assert row.preprocessing == given.model_dump(mode="json", exclude={"decoding"})
        connection.execute(sa.update(models).where(models.c.id == "newer").values(decoding=None))
    older = store.registry.get_model(ModelName("newer"))
    assert older.decoding == "full"
    assert older.preprocessing == Preprocessing(size=96)


def test_only_a_version_whose_images_are_decoded_scaled_is_of_a_newer_format(
    store: Store,
) -> None:
    furnish(store)
    told = store.registry.get_version(make_version(store)).manifest
    stored = told.model_dump(mode="json")
    del stored["preprocessing"]["decoding"]  # as before there was a choice
    assert known(Manifest, stored).value.preprocessing == told.preprocessing
    assert manifest_format(told.preprocessing) == told.format == 1
    assert manifest_format(Preprocessing(size=96, decoding="scaled")) == 2


def test_an_older_worker_ends_a_job_that_a_newer_one_had_begun_to_judge(
    store: Store, clock: FakeClock
) -> None:
    furnish(store)
    job = store.jobs.enqueue(draft(make_version(store)), request_id="j")
    _, lost = claimed(store, "newer")
    assert store.jobs.look(lost, [SOURCE, TARGET], asked="a file") == Look(before=0)
    clock.advance(60)
    _, lease = claimed(store, "older")
    end_as_an_older_worker(store, lease)
    assert store.jobs.get(job.name).state is JobState.REJECTED
    assert store.jobs.looks(MODEL, TARGET) == 1
    store.jobs.enqueue(draft(job.draft.incumbent), request_id="k")
    _, lease = claimed(store, "newer")
    again = store.jobs.look(lease, [SOURCE, TARGET], asked="a file")
    assert again == Look(before=0, same_as=job.name)


def test_a_token_that_an_older_server_made_has_its_place_in_the_order(store: Store) -> None:
    def token(name: str) -> str:
        principal = principal_of(name, roles=["predict"], models=(), domains=())
        return store.tokens.create(TokenDraft(principal=principal), by="ada").token.id

    first, second = token("a"), token("b")
    with store.database.engine.begin() as connection:  # as who knows nothing of the column
        uncounted = sa.update(schema.tokens).where(schema.tokens.c.id == second)
        connection.execute(uncounted.values(number=0))
    third = token("c")
    numbers = {found.id: found.number for found in store.tokens.list().items}
    assert numbers[first] < numbers[second] < numbers[third]


def test_what_is_known_must_still_be_right() -> None:
    spec = JobSpec().model_dump(mode="json")
    assert known(JobSpec, spec | {"later": 1}).unknown == ("later",)
    for wrong in ({"epochs": 0}, {"epochs": 0, "later": 1}, {"guard": 7}):
        with pytest.raises(pydantic.ValidationError, match=r"epochs|guard"):
            known(JobSpec, spec | wrong)
    with pytest.raises(pydantic.ValidationError):
        known(Manifest, {"format": 1})
