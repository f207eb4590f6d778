from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from tests.contract.builders import (
    MODEL,
    PRODUCTION,
    TARGET,
    FakeClock,
    claimed,
    draft,
    furnish,
    make_version,
    pictures,
    upload,
)
from tests.contract.conftest import Opener

from acclimate_service.domain.access import Token, TokenDraft, principal_of
from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.domain.examples import Role, Split
from acclimate_service.domain.job import JobState
from acclimate_service.domain.names import TokenName
from acclimate_service.store import Store, migrations, schema


@contextmanager
def at(store: Store, revision: str) -> Iterator[None]:
    """The store taken back to *revision*, and brought to the newest again afterwards."""
    try:
        with store.database.engine.begin() as connection:
            migrations.downgrade(connection, revision)
        yield
    finally:
        with store.database.engine.begin() as connection:
            migrations.upgrade(connection)


def test_the_migrations_make_the_tables_that_the_code_speaks_of(store: Store) -> None:
    with store.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_the_newest_revision_is_the_one_that_is_asked_for(store: Store) -> None:
    with store.database.engine.connect() as connection:
        scripts = ScriptDirectory.from_config(migrations._config(connection))
        assert scripts.get_heads() == [migrations.HEAD]
        assert migrations.current(connection) == migrations.HEAD


def test_rows_survive_the_way_back_and_forth(store: Store, opener: Opener) -> None:
    furnish(store)
    upload(store, pictures(3), Role.TRAIN, request="r")
    version = make_version(store, promote=PRODUCTION)
    job = store.jobs.enqueue(draft(version), request_id="j")
    with at(store, "0001"):
        assert "audit" not in sa.inspect(store.database.engine).get_table_names()
    again = opener()
    assert len(again.domains.examples(TARGET, splits=[Split.TRAIN])) == 3
    assert again.registry.get_alias(PRODUCTION).version == version
    assert again.jobs.get(job.name) == job
    again.audit.record(who="ada", action="x", subject="y")


def test_tokens_get_their_order_from_their_dates_and_later_ones_come_after(
    store: Store, clock: FakeClock
) -> None:
    def token(name: str) -> Token:
        principal = principal_of(name, roles=["predict"], models=(), domains=())
        return store.tokens.create(TokenDraft(principal=principal), by="ada").token

    made = []
    for name in ("c", "a", "b"):
        made.append(token(name))
        clock.advance(60)
    store.tokens.revoke(TokenName(made[0].id))
    with at(store, "0006"):
        columns = sa.inspect(store.database.engine).get_columns("tokens")
        assert "number" not in {column["name"] for column in columns}
    again = {found.principal.name: found.number for found in store.tokens.list().items}
    assert again == {"c": 1, "a": 2, "b": 3}
    clock.advance(-3600)
    assert token("d").number > 3


def test_looks_survive_the_way_back_and_forth_however_often_they_were_told(store: Store) -> None:
    furnish(store)
    base, looks = make_version(store), schema.looks
    for request, numbers in (("both", (0, None)), ("newer", (1,)), ("older", (None,))):
        store.jobs.enqueue(draft(base), request_id=request)
        job, lease = claimed(store)
        store.jobs.finish(lease, state=JobState.REJECTED, summary={})
        with store.database.engine.begin() as connection:
            for number in numbers:
                row = {"job": job.name.job, "domain": TARGET.domain, "model": MODEL.model}
                connection.execute(sa.insert(looks), row | {"number": number})
    assert store.jobs.looks(MODEL, TARGET) == 3
    with at(store, "0012"):
        assert store.jobs.looks(MODEL, TARGET) == 3
        with store.database.engine.connect() as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(looks)) == 3
    assert store.jobs.looks(MODEL, TARGET) == 3
    with at(store, "0010"):
        pass
    assert store.jobs.looks(MODEL, TARGET) == 3


def test_the_way_back_to_nothing_leaves_nothing(store: Store) -> None:
    with at(store, "base"):
        assert sa.inspect(store.database.engine).get_table_names() == ["alembic_version"]
    furnish(store)
    assert store.registry.list_versions(MODEL).items == ()
    assert store.jobs.depth()[JobState.QUEUED] == 0


def test_a_store_of_a_newer_acclimate_is_not_touched(store: Store, opener: Opener) -> None:
    def say(revision: str) -> None:
        with store.database.engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE alembic_version SET version_num = :to"), {"to": revision}
            )

    say("9999")
    try:
        with pytest.raises(StoreUnavailable, match="9999"):
            opener()
    finally:
        say(migrations.HEAD)
