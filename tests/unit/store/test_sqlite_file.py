"""A commit is seen without a transaction, and what nobody has changed is read once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.store import open_store
from acclimate_service.store.engine import Database, Transaction, open_engine
from acclimate_service.store.sqlite_file import Commits


@pytest.fixture
def file(tmp_path: Path) -> Path:
    open_store(f"sqlite:///{tmp_path}/store.db", tmp_path / "blobs").close()
    return tmp_path / "store.db"


@pytest.fixture
def other(file: Path) -> Iterator[sqlite3.Connection]:
    """Another process's connection, as far as SQLite can tell."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("CREATE TABLE notes (text TEXT)")
    yield connection
    connection.close()


def test_a_mark_changes_with_what_is_committed_and_with_nothing_else(
    file: Path, other: sqlite3.Connection
) -> None:
    commits = Commits(file)
    before = commits.mark()
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO notes VALUES ('taken back')")
    assert commits.mark() == before
    other.execute("ROLLBACK")
    other.execute("SELECT * FROM notes").fetchall()
    assert commits.mark() == before
    other.execute("INSERT INTO notes VALUES ('kept')")
    after = commits.mark()
    assert after != before
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log is brought in, nothing is new
    other.execute("INSERT INTO notes VALUES ('kept, too')")
    assert commits.mark() not in (before, after)
    commits.close()


def test_a_file_that_is_gone_is_an_outage_and_one_in_its_place_is_no_old_acquaintance(
    file: Path,
) -> None:
    commits = Commits(file)
    before = commits.mark()
    away = file.rename(file.with_name("away.db"))
    with pytest.raises(StoreUnavailable):
        commits.mark()
    file.write_bytes(away.read_bytes())
    assert commits.mark() != before
    commits.close()


def test_what_is_followed_is_read_again_only_when_somebody_has_committed(
    file: Path, other: sqlite3.Connection
) -> None:
    database, read = Database(open_engine(f"sqlite:///{file}")), []

    def notes(tx: Transaction, beyond: int) -> int:
        read.append(beyond)
        return int(tx.scalar(sa.text("SELECT count(*) FROM notes"))) - beyond

    assert [database.follow(notes, 0) for _ in range(3)] == [0, 0, 0]
    assert read == [0]
    other.execute("INSERT INTO notes VALUES ('by somebody else')")
    assert [database.follow(notes, 0) for _ in range(3)] == [1, 1, 1]
    database.write(lambda tx: tx.run(sa.text("INSERT INTO notes VALUES ('by this process')")))
    assert database.follow(notes, 0) == 2
    assert database.follow(notes, 1) == 1  # another question
    assert read == [0, 0, 0, 1]
    database.close()


def test_what_was_followed_is_not_told_while_the_database_is_gone(file: Path) -> None:
    database = Database(open_engine(f"sqlite:///{file}"))

    def one(tx: Transaction) -> int:
        return int(tx.scalar(sa.select(1)))

    assert database.follow(one) == 1
    file.rename(file.with_name("away.db"))
    with pytest.raises(StoreUnavailable):
        database.follow(one)
    database.close()
