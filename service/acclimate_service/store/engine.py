"""The SQL engine: how it is opened, what one transaction is, and whose clock counts.

Everything above works with two ideas: a :class:`Database` that runs a piece of work
in one transaction, and the :class:`Transaction` that the work is given. The database
decides what an outage is (``StoreUnavailable``) and what is worth another try.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import math
import random
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, TypeVarTuple

import sqlalchemy as sa

from acclimate_service.domain.errors import InvalidSpec, StoreFull, StoreUnavailable
from acclimate_service.store.schema import EPOCH
from acclimate_service.store.sqlite_file import BUSY_SECONDS, Commits, Mark, connect, file_at

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Clock = Callable[[], dt.datetime]

TRIES = 6  # of one transaction that lost a race (serialization, deadlock, unique key)
_DISK_FULL = "53100"  # SQLSTATE
_RACES = ("40001", "40P01")  # SQLSTATE: serialization_failure, deadlock_detected


def utc_now() -> dt.datetime:
    """The machine's clock, in UTC."""
    return dt.datetime.now(dt.UTC)


class Transaction:
    """One unit of work: a connection, and the one moment at which it happens."""

    def __init__(self, connection: sa.Connection, clock: Clock | None) -> None:
        self.connection = connection
        self._clock = clock

    @functools.cached_property
    def now(self) -> dt.datetime:
        """When this transaction happens; read once, after its locks where they come first.

        PostgreSQL's own clock where that is the store, so that workers on machines
        whose clocks disagree still agree on which lease has expired.
        """
        if self._clock is not None:
            return self._clock()
        if self.connection.dialect.name == "postgresql":
            moment: dt.datetime = self.connection.execute(
                sa.select(sa.func.clock_timestamp())
            ).scalar_one()
            return moment.astimezone(dt.UTC)
        return utc_now()

    @functools.cached_property
    def pulse(self) -> dt.datetime:
        """The same moment on the clock that leases are measured by, and nothing else.

        All who share an SQLite file are processes of one machine, so theirs is the
        kernel's monotonic clock, which nobody can set: when the time of day jumps, a
        worker that lives keeps its job. It begins anew with the machine, and a lease from
        before that lies in the future or the past, and holds nothing.
        """
        if self._clock is None and self.connection.dialect.name == "sqlite":
            return EPOCH + dt.timedelta(seconds=time.monotonic())
        return self.now

    def serialize(self, what: str) -> None:
        """Let no other transaction on *what* run beside this one, until this one ends.

        On SQLite every writing transaction is alone already (BEGIN IMMEDIATE).
        """
        if self.connection.dialect.name == "postgresql":
            key = zlib.crc32(what.encode())
            self.connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))

    def hold(self, table: sa.Table) -> None:
        """Let nobody else write, or lock, a row of *table* until this transaction ends.

        On SQLite every writing transaction is alone already.
        """
        if self.connection.dialect.name == "postgresql":
            self.connection.exec_driver_sql(f'LOCK TABLE "{table.name}" IN EXCLUSIVE MODE')

    def row(self, statement: sa.Executable) -> sa.Row[Any] | None:
        """The one row that *statement* gives, if any."""
        return self.connection.execute(statement).one_or_none()

    def rows(self, statement: sa.Executable) -> Sequence[Any]:
        """All rows that *statement* gives."""
        return self.connection.execute(statement).all()

    def scalar(self, statement: sa.Executable) -> Any:
        """The first column of the first row, or None."""
        return self.connection.execute(statement).scalar()

    def run(self, statement: sa.Executable, rows: Sequence[Mapping[str, Any]] = ()) -> int:
        """Execute a statement (once for each of *rows*, if given); how many rows it touched."""
        if rows:
            return self.connection.execute(statement, list(rows)).rowcount
        return self.connection.execute(statement).rowcount


class Database:
    """An SQL database that runs pieces of work, each in one transaction. Thread-safe."""

    def __init__(self, engine: sa.Engine, clock: Clock | None = None) -> None:
        self.engine = engine
        self._writing = engine.execution_options(begin="IMMEDIATE")  # see _open_sqlite
        self._clock = clock
        # SQLite has one writer at a time and no queue: within a process, wait here
        # rather than poll the file.
        self._writer = threading.Lock() if engine.dialect.name == "sqlite" else None
        self._commits = Commits(_path_of(engine.url)) if self._writer is not None else None
        # What was followed last: work -> its arguments, as of when, and the result.
        self._followed: dict[Any, tuple[Any, Mark, Any]] = {}

    def read(
        self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of *work*, which only reads, in one transaction.

        Raises:
            StoreUnavailable: the database is gone or refuses.
        """
        with translated(), self.engine.begin() as connection:
            return work(Transaction(connection, self._clock), *args, **kwargs)

    def ping(self) -> None:
        """Say whether the database can be used.

        Raises:
            StoreUnavailable: it is gone or refuses.
        """
        if self._commits is None:
            self.read(Transaction.scalar, sa.select(1))
        else:
            self._commits.mark()

    def follow(self, work: Callable[[Transaction, *Ts], T], *args: *Ts) -> T:
        """As :meth:`read`, for what is asked all the time: read only if anybody has committed.

        Where that cannot be known (PostgreSQL), and after other *args*, it is read. The result
        may be that of an earlier call, so it must not be changed, nor rest on the time.

        Raises:
            StoreUnavailable: the database is gone or refuses.
        """
        if self._commits is None:
            return self.read(work, *args)
        mark = self._commits.mark()  # before it is read: what comes in between is read again
        before = self._followed.get(work)
        if before is not None and before[:2] == (args, mark):
            found: T = before[2]
            return found
        found = self.read(work, *args)
        self._followed[work] = args, mark, found
        return found

    def snapshot(
        self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As :meth:`read`, and every statement of *work* sees the same moment.

        Raises:
            StoreUnavailable: the database is gone or refuses.
        """
        engine = self.engine  # SQLite's transactions are snapshots as they are
        if engine.dialect.name == "postgresql":
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        with translated(), engine.begin() as connection:
            return work(Transaction(connection, self._clock), *args, **kwargs)

    def write(
        self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of *work*, committed. Work that lost a race is run again, boundedly.

        *work* must touch nothing but its transaction, since it may run several times.

        Raises:
            StoreUnavailable: the database is gone, locked for too long, or full.
        """
        for tried in range(1, TRIES + 1):
            with translated(), self._alone(), self._writing.connect() as connection:
                try:
                    with connection.begin():
                        return work(Transaction(connection, self._clock), *args, **kwargs)
                except sa.exc.DBAPIError as error:
                    if not _lost_race(error) or tried == TRIES:
                        raise
            time.sleep(random.uniform(0, 0.01 * 2**tried))  # noqa: S311 - spreads retries
        raise AssertionError("unreachable: the last try returns or raises")

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()
        if self._commits is not None:
            self._commits.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self._writer is None:
            yield
            return
        if not self._writer.acquire(timeout=BUSY_SECONDS):
            raise StoreUnavailable("the store is busy with another write; try again")
        try:
            yield
        finally:
            self._writer.release()


def _lost_race(error: sa.exc.DBAPIError) -> bool:
    """Whether running the same work again may well succeed.

    A unique key that two transactions wrote at once counts: on the second try the
    work sees the other's row and answers accordingly.
    """
    if isinstance(error, sa.exc.IntegrityError):
        return True
    return getattr(error.orig, "sqlstate", None) in _RACES


def _is_full(error: sa.exc.DBAPIError) -> bool:
    return (
        getattr(error.orig, "sqlstate", None) == _DISK_FULL
        or getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    )


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise what the driver says as what it means for a caller."""
    try:
        yield
    except sa.exc.DataError as error:
        raise InvalidSpec(f"the database cannot hold a value: {error.orig}") from error
    except sa.exc.ProgrammingError:
        raise  # our own mistake: waiting does not mend it
    except sa.exc.DBAPIError as error:
        if _is_full(error):
            raise StoreFull("the database") from error
        raise StoreUnavailable(
            "the database is out of reach or refuses; the log says more", detail=str(error.orig)
        ) from error
    except sa.exc.TimeoutError as error:
        raise StoreUnavailable("all database connections are in use; try again") from error


def plain(value: object) -> object:
    """*value* as JSON can carry it: lists for tuples, None for NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def line(text: str, limit: int = 4000) -> str:
    """Free text as every database can hold it: no NUL, no lone surrogate, bounded."""
    return (
        text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")[:limit]
    )


def _to_json(value: object) -> str:
    return json.dumps(plain(value), allow_nan=False)


def open_engine(url: str) -> sa.Engine:
    """An engine on ``sqlite:///FILE``, which exists, or on ``postgresql+psycopg://…``.

    Raises:
        InvalidSpec: another kind of URL.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise InvalidSpec("the store's URL cannot be read; see sqlite:///FILE") from error
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return _open_sqlite(parsed)
    if parsed.get_backend_name() == "postgresql":
        return _open_postgresql(parsed)
    raise InvalidSpec("the store's URL must be sqlite:///FILE or postgresql+psycopg://…")


def _open_sqlite(url: sa.URL) -> sa.Engine:
    path = _path_of(url)
    engine = sa.create_engine(
        url,
        creator=lambda: connect(path),
        json_serializer=_to_json,
        pool_size=8,
        max_overflow=24,
        pool_timeout=BUSY_SECONDS,
    )

    @sa.event.listens_for(engine, "checkout")
    def _check_place(_connection: object, record: Any, _proxy: object) -> None:
        # An open file may be written to after it was moved away or replaced; whoever opens
        # the store later would find nothing of it.
        if file_at(path) != record.info["file"]:
            raise sa.exc.DisconnectionError("the database file is another one now")

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, record: Any) -> None:
        record.info["file"] = file_at(path)
        connection.isolation_level = None  # BEGIN is ours, see below
        # FULL: a commit that was answered survives a power cut, not only a kill.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        # What is deleted is overwritten: an erased image leaves nothing in the file.
        connection.execute("PRAGMA secure_delete=ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # IMMEDIATE takes the write lock at once. A transaction that reads first and
        # asks for it later is refused without waiting if another wrote in between.
        connection.exec_driver_sql(
            f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}"
        )

    return engine


def _path_of(url: sa.URL) -> Path:
    assert url.database is not None
    return Path(url.database).absolute()


def _open_postgresql(url: sa.URL) -> sa.Engine:
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        json_serializer=_to_json,
        isolation_level="READ COMMITTED",
        pool_size=8,
        max_overflow=24,
        pool_timeout=BUSY_SECONDS,
        pool_pre_ping=True,  # a restarted database costs a reconnect, not an error
        connect_args={
            "connect_timeout": 5,
            "tcp_user_timeout": 15_000,
            "options": f"-c lock_timeout={BUSY_SECONDS:.0f}s -c statement_timeout=60s"
            " -c idle_in_transaction_session_timeout=60s -c timezone=UTC",
        },
    )
