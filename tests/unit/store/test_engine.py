from __future__ import annotations

import contextlib
import datetime as dt
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st

from acclimate_service.domain.errors import StoreFull, StoreUnavailable
from acclimate_service.domain.examples import Split
from acclimate_service.domain.names import DomainName, JobName, ModelName
from acclimate_service.store import Store, open_store
from acclimate_service.store.engine import TRIES, Database, Transaction, line, open_engine, plain
from acclimate_service.store.ids import new_id
from acclimate_service.store.schema import EPOCH, Instant

NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
WEBCAM = DomainName("webcam")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    open_store(f"sqlite:///{tmp_path}/store.db", tmp_path / "blobs").close()
    return Database(open_engine(f"sqlite:///{tmp_path}/store.db"), lambda: NOON)


def test_sqlite_is_set_to_lose_nothing_that_was_committed(database: Database) -> None:
    def pragma(tx: Transaction, name: str) -> object:
        return tx.scalar(sa.text(f"PRAGMA {name}"))

    assert database.read(pragma, "journal_mode") == "wal"
    assert database.read(pragma, "synchronous") == 2  # FULL
    assert database.read(pragma, "foreign_keys") == 1
    database.close()


def test_a_writing_transaction_holds_the_lock_from_its_beginning(database: Database) -> None:
    def other_writes(_tx: Transaction) -> None:
        other = sqlite3.connect(str(database.engine.url.database), timeout=0)
        try:
            other.execute("BEGIN IMMEDIATE")
        finally:
            other.close()

    database.read(other_writes)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        database.write(other_writes)
    database.close()


def test_a_database_file_that_is_gone_is_not_made_anew_and_loses_nothing(
    database: Database, tmp_path: Path
) -> None:
    """SQLite deletes the log of an empty file, and in it all that was committed last."""
    path, away = tmp_path / "store.db", tmp_path / "away.db"
    database.write(Transaction.run, sa.text("CREATE TABLE kept (number INTEGER)"))
    database.write(Transaction.run, sa.text("INSERT INTO kept VALUES (1)"))
    path.rename(away)
    fresh = Database(open_engine(f"sqlite:///{path}"))
    for one in (database, fresh):
        with pytest.raises(StoreUnavailable):
            one.read(Transaction.scalar, sa.text("SELECT number FROM kept"))
        with pytest.raises(StoreUnavailable):
            one.write(Transaction.run, sa.text("INSERT INTO kept VALUES (2)"))
    assert not path.exists()
    away.rename(path)
    for one in (database, fresh):
        assert one.read(Transaction.scalar, sa.text("SELECT count(*) FROM kept")) == 1
        one.close()


def test_what_is_committed_after_the_file_was_replaced_is_in_the_new_file(
    database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "store.db"
    database.write(Transaction.run, sa.text("CREATE TABLE kept (number INTEGER)"))
    database.write(Transaction.run, sa.text("PRAGMA user_version"))
    copy = sqlite3.connect(tmp_path / "copy.db")
    with sqlite3.connect(path) as original:
        original.backup(copy)
    original.close()
    copy.close()
    for left in (path, tmp_path / "store.db-wal", tmp_path / "store.db-shm"):
        left.unlink(missing_ok=True)
    (tmp_path / "copy.db").rename(path)
    database.write(Transaction.run, sa.text("INSERT INTO kept VALUES (1)"))
    with sqlite3.connect(path) as found:
        assert found.execute("SELECT number FROM kept").fetchall() == [(1,)]
    found.close()
    database.close()


def test_a_database_without_room_says_so_and_keeps_what_it_has(database: Database) -> None:
    def fill(tx: Transaction) -> None:
        tx.run(sa.text("CREATE TABLE large (bytes BLOB)"))
        tx.run(sa.text("PRAGMA max_page_count = 1"))  # the least that it grants: what there is
        tx.run(sa.text("INSERT INTO large VALUES (zeroblob(1000000))"))

    with pytest.raises(StoreFull, match="database is full"):
        database.write(fill)
    tables = sa.text("SELECT count(*) FROM sqlite_master WHERE name IN ('large', 'jobs')")
    assert database.read(Transaction.scalar, tables) == 1
    database.close()


def test_a_lease_is_measured_by_a_clock_that_nobody_can_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db", tmp_path / "blobs")
    before = store.database.read(lambda tx: tx.pulse)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    monkeypatch.setattr("acclimate_service.store.engine.utc_now", lambda: later)
    assert store.database.read(lambda tx: tx.now) == later
    assert dt.timedelta(0) <= store.database.read(lambda tx: tx.pulse) - before < dt.timedelta(1)
    store.close()


def test_work_that_loses_a_race_is_run_again_a_bounded_number_of_times(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate_service.store.engine.time.sleep", lambda _seconds: None)
    runs: list[int] = []

    def lose(_tx: Transaction, times: int) -> str:
        runs.append(1)
        if len(runs) <= times:
            raise sa.exc.IntegrityError("INSERT", {}, Exception("UNIQUE"))
        return "won"

    assert database.write(lose, TRIES - 1) == "won"
    runs.clear()
    with pytest.raises(StoreUnavailable):
        database.write(lose, TRIES)
    assert len(runs) == TRIES
    database.close()


def test_our_own_mistakes_are_not_called_outages(database: Database) -> None:
    def wrong(_tx: Transaction) -> None:
        raise sa.exc.ProgrammingError("SELECT", {}, Exception("no such column"))

    with pytest.raises(sa.exc.ProgrammingError):
        database.read(wrong)
    database.close()


def test_a_transaction_happens_at_one_moment(tmp_path: Path) -> None:
    (tmp_path / "x.db").touch()
    ticks = iter(NOON + dt.timedelta(seconds=number) for number in range(9))
    database = Database(open_engine(f"sqlite:///{tmp_path}/x.db"), lambda: next(ticks))
    assert database.read(lambda tx: (tx.now, tx.now)) == (NOON, NOON)
    assert database.read(lambda tx: tx.now) == NOON + dt.timedelta(seconds=1)
    database.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@hypothesis.given(JSON)
def test_plain_json_is_json_and_plain_already(value: object) -> None:
    import json

    once = plain(value)
    assert json.loads(json.dumps(once, allow_nan=False)) == once
    assert plain(once) == once


def test_tuples_become_lists_and_no_numbers_nothing() -> None:
    assert plain({"a": (1, math.nan, [-math.inf])}) == {"a": [1, None, [None]]}


@hypothesis.given(st.text(st.characters()))
def test_a_line_is_text_that_every_database_holds(text: str) -> None:
    found = line(text, 50)
    assert "\0" not in found
    assert len(found) <= 50
    found.encode()


@hypothesis.given(
    st.datetimes(timezones=st.just(dt.UTC), min_value=dt.datetime(1900, 1, 1))  # noqa: DTZ001 - hypothesis adds the zone
)
def test_a_moment_is_kept_to_the_microsecond(moment: dt.datetime) -> None:
    instant, dialect = Instant(), sa.create_engine("sqlite://").dialect
    bound = instant.process_bind_param(moment, dialect)
    assert isinstance(bound, int)
    assert instant.process_result_value(bound, dialect) == moment
    assert instant.process_bind_param(EPOCH, dialect) == 0
    assert instant.process_bind_param(None, dialect) is None


def test_ids_are_slugs_that_sort_by_time() -> None:
    ids = [new_id(NOON + dt.timedelta(seconds=number)) for number in range(3)]
    assert ids == sorted(ids)
    assert [JobName(text).job for text in ids] == ids
    assert new_id(NOON) != new_id(NOON)


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.domains.examples(WEBCAM, splits=tuple(Split)),
        lambda store: store.domains.counts(WEBCAM),
        lambda store: store.jobs.claim("worker", lease_seconds=30, max_attempts=3),
        lambda store: store.jobs.census(),
        lambda store: store.jobs.looks(ModelName("shop"), WEBCAM),
    ],
    ids=["examples", "counts", "claim", "census", "looks"],
)
def test_what_is_asked_all_the_time_reads_no_table_from_end_to_end(
    tmp_path: Path, read: Callable[[Store], object]
) -> None:
    with contextlib.closing(open_store(f"sqlite:///{tmp_path}/s.db", tmp_path / "blobs")) as store:
        store.domains.create(WEBCAM, ("mug", "pen"))
        engine, asked = store.database.engine, []

        @sa.event.listens_for(engine, "before_cursor_execute")
        def _note(_c: object, _cursor: object, statement: str, given: Any, *_: object) -> None:
            asked.append((statement, given))

        read(store)
        with contextlib.closing(engine.raw_connection()) as connection:
            plans = [
                step[3]
                for statement, given in asked
                for step in connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", given)
            ]
    assert plans
    # Not by all looks of the model, of which every job takes one at every domain it knows.
    assert not any("ix_looks_model" in step for step in plans)
    assert [step for step in plans if step.startswith("SCAN") and "COVERING" not in step] == []
