from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from tests.contract.builders import MODEL, PRODUCTION, furnish, make_version

from acclimate_service.domain.errors import InvalidSpec, NotFound, RolloutRunning, VersionInUse
from acclimate_service.domain.names import RolloutName, VersionName
from acclimate_service.domain.rollout import (
    Counts,
    RolloutDraft,
    RolloutLimits,
    RolloutMode,
    RolloutState,
)
from acclimate_service.store import Store, schema

BY = {"who": "ann", "why": "a new camera"}


@pytest.fixture
def versions(store: Store) -> tuple[VersionName, VersionName]:
    furnish(store)
    first = make_version(store, promote=PRODUCTION)
    return first, make_version(store, first)


def draft(candidate: VersionName, *, promote: bool = False) -> RolloutDraft:
    return RolloutDraft(
        alias=PRODUCTION,
        candidate=candidate,
        mode=RolloutMode.CANARY,
        share=0.25,
        limits=RolloutLimits(minimum=10),
        promote=promote,
    )


def seen(images: int, errors: int = 0) -> Counts:
    return Counts(
        requests=images + errors,
        errors=errors,
        images=images,
        confidence=0.9 * images,
        seconds=0.1,
        incumbent_requests=images,
        incumbent_images=images,
        incumbent_confidence=0.9 * images,
        incumbent_seconds=0.1,
    )


def test_a_rollout_is_what_was_asked_for(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    begun = store.rollouts.start(draft(versions[1]), **BY)
    assert begun == store.rollouts.get(begun.name)
    assert (begun.incumbent, begun.state) == (versions[0], RolloutState.RUNNING)
    assert begun.draft == draft(versions[1])
    assert store.rollouts.running() == [begun]
    assert store.rollouts.list(MODEL).items == (begun,)


def test_an_alias_has_one_at_a_time(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    begun = store.rollouts.start(draft(versions[1]), **BY)
    with pytest.raises(RolloutRunning):
        store.rollouts.start(draft(versions[1]), **BY)
    store.rollouts.stop(begun.name, **BY)
    store.rollouts.start(draft(versions[1]), **BY)


def test_what_the_alias_points_at_is_no_candidate(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    with pytest.raises(InvalidSpec, match="already"):
        store.rollouts.start(draft(versions[0]), **BY)


def test_servers_that_count_at_once_lose_nothing(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    begun = store.rollouts.start(draft(versions[1]), **BY)
    servers = [
        threading.Thread(
            target=lambda: [store.rollouts.count(begun.name, seen(1)) for _ in "12345"]
        )
        for _ in range(4)
    ]
    for server in servers:
        server.start()
    for server in servers:
        server.join()
    assert store.rollouts.get(begun.name).counts.images == 20


def test_a_broken_candidate_ends_the_rollout_and_leaves_the_alias(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    begun = store.rollouts.start(draft(versions[1]), **BY)
    ended = store.rollouts.count(begun.name, seen(0, errors=10))
    assert (ended.state, ended.ended_at is None) == (RolloutState.ROLLED_BACK, False)
    assert "10 of 10 requests failed" in ended.reason
    assert store.registry.get_alias(PRODUCTION).version == versions[0]
    assert store.rollouts.running() == []
    late = store.rollouts.count(begun.name, seen(5))  # of a server that had not heard of it
    assert (late.state, late.counts.images) == (RolloutState.ROLLED_BACK, 5)


def test_a_good_candidate_is_promoted_in_the_same_transaction(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    begun = store.rollouts.start(draft(versions[1], promote=True), **BY)
    assert store.rollouts.count(begun.name, seen(10)).state is RolloutState.PROMOTED
    alias = store.registry.get_alias(PRODUCTION)
    assert (alias.version, alias.previous) == (versions[1], versions[0])
    assert store.registry.alias_history(PRODUCTION)[0].who == str(begun.name)


def test_an_alias_that_moved_meanwhile_ends_the_rollout(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    begun = store.rollouts.start(draft(versions[1], promote=True), **BY)
    other = make_version(store)
    store.registry.set_alias(PRODUCTION, other)
    ended = store.rollouts.count(begun.name, seen(10))
    assert (ended.state, "moved" in ended.reason) == (RolloutState.STOPPED, True)
    assert store.registry.get_alias(PRODUCTION).version == other


def move_away_and_back(store: Store, home: VersionName) -> None:
    store.registry.set_alias(PRODUCTION, make_version(store))
    store.registry.set_alias(PRODUCTION, home)


def test_an_alias_that_moved_away_and_back_ends_the_rollout(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    begun = store.rollouts.start(draft(versions[1], promote=True), **BY)
    move_away_and_back(store, versions[0])
    ended = store.rollouts.count(begun.name, seen(10))
    assert (ended.state, "moved" in ended.reason) == (RolloutState.STOPPED, True)
    assert store.registry.get_alias(PRODUCTION).version == versions[0]


def test_an_alias_that_moved_ends_the_rollout_without_any_traffic(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    begun = store.rollouts.start(draft(versions[1]), **BY)
    store.registry.set_alias(PRODUCTION, versions[0])  # where it is: no move
    assert store.rollouts.running() == [begun]
    move_away_and_back(store, versions[0])
    assert store.rollouts.running() == []
    assert store.rollouts.get(begun.name).state is RolloutState.STOPPED


def test_a_rollout_that_the_alias_left_does_not_keep_another_from_beginning(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    left = store.rollouts.start(draft(versions[1]), **BY)
    move_away_and_back(store, versions[0])
    begun = store.rollouts.start(draft(versions[1]), **BY)
    assert store.rollouts.running() == [begun]
    assert store.rollouts.get(left.name).state is RolloutState.STOPPED


def test_a_rollout_that_an_older_acclimate_began_ends_when_the_alias_is_elsewhere(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    begun = store.rollouts.start(draft(versions[1]), **BY)
    with store.database.engine.begin() as connection:
        connection.execute(sa.update(schema.rollouts).values(move=None))
    assert store.rollouts.running() == [begun]
    store.registry.set_alias(PRODUCTION, make_version(store))
    assert store.rollouts.running() == []
    assert store.rollouts.get(begun.name).state is RolloutState.STOPPED


def test_a_version_on_trial_is_not_deleted(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    begun = store.rollouts.start(draft(versions[1]), **BY)
    with pytest.raises(VersionInUse, match="rollouts"):
        store.registry.delete_version(versions[1])
    store.rollouts.stop(begun.name, **BY)
    store.registry.delete_version(versions[1])


def test_beginnings_and_ends_are_in_the_audit_log(
    store: Store, versions: tuple[VersionName, VersionName]
) -> None:
    begun = store.rollouts.start(draft(versions[1]), **BY)
    store.rollouts.stop(begun.name, who="bob", why="seen enough")
    told = [
        (entry.who, entry.action)
        for entry in store.audit.list().items
        if entry.subject == str(begun.name)
    ]
    assert told == [("bob", "end of a rollout"), ("ann", "start of a rollout")]


def test_a_rollout_that_there_is_not_is_not_found(store: Store) -> None:
    for ask in (store.rollouts.get, lambda name: store.rollouts.count(name, seen(1))):
        with pytest.raises(NotFound):
            ask(RolloutName("desk", "none"))
