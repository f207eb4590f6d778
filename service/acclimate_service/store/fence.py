"""Who may do what beside whom with a blob that lies in an object store.

Such a store deletes without asking how old an object has become since one last looked.
What orders its collectors and its writers is therefore the database, which all processes
share: a lock is let go by whoever dies, and nobody's clock comes into it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.store.blobs import translated_os_errors
from acclimate_service.store.engine import translated


class Taken(Exception):
    """Somebody has one of the names."""


class Fence(Protocol):
    """Locks by name: many hold a name together, or one holds it alone."""

    def together(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Hold *names* beside others who do so; wait for whoever has one alone.

        Raises:
            StoreUnavailable: the database is gone, or was while they were held.
        """

    def alone(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Hold *names* beside nobody.

        Raises:
            Taken: somebody holds one of them now. This never waits, so nothing deadlocks.
            StoreUnavailable: the database is gone, or was while they were held.
        """


def fence_of(engine: sa.Engine) -> Fence:
    """The fence of whoever shares this database."""
    if engine.dialect.name == "postgresql":
        return PostgresFence(engine)
    assert engine.url.database is not None
    file = Path(engine.url.database)
    return FileFence(file.with_name(f"{file.name}.fence"))


class FileFence:
    """Beside an SQLite file: a name is a byte of a file, locked by the kernel."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def together(self, names: Collection[str]) -> Iterator[None]:
        """See :class:`Fence`."""
        with self._opened() as file:
            with translated_os_errors():
                for name in names:
                    _lock_byte(file, name, fcntl.F_OFD_SETLKW, fcntl.F_RDLCK)
            yield

    @contextlib.contextmanager
    def alone(self, names: Collection[str]) -> Iterator[None]:
        """See :class:`Fence`."""
        with self._opened() as file:
            for name in names:
                try:
                    _lock_byte(file, name, fcntl.F_OFD_SETLK, fcntl.F_WRLCK)
                except BlockingIOError:
                    raise Taken(name) from None
            yield

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        with translated_os_errors():
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            yield file
        finally:
            os.close(file)  # and with it, its locks


class PostgresFence:
    """In a PostgreSQL: its advisory locks, held by a session of their own."""

    def __init__(self, engine: sa.Engine) -> None:
        # Without a transaction, which would count as idle and be ended after a while.
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextlib.contextmanager
    def together(self, names: Collection[str]) -> Iterator[None]:
        """See :class:`Fence`."""
        with self._session() as session:
            _ask(session, "pg_advisory_lock_shared", names)
            yield

    @contextlib.contextmanager
    def alone(self, names: Collection[str]) -> Iterator[None]:
        """See :class:`Fence`."""
        with self._session() as session:
            got = _ask(session, "pg_try_advisory_lock", names)
            if not all(got):
                raise Taken(", ".join(names))
            yield

    @contextlib.contextmanager
    def _session(self) -> Iterator[sa.Connection]:
        with translated():
            session = self._engine.connect()
        try:
            yield session
        finally:
            try:
                # Refused if the session was lost meanwhile, and its locks with it: what
                # was done under them then does not count.
                with translated():
                    session.execute(sa.select(sa.func.pg_advisory_unlock_all()))
            except StoreUnavailable:
                session.invalidate()
                raise
            finally:
                session.close()


def _ask(session: sa.Connection, lock: str, names: Collection[str]) -> list[object]:
    """What the database answers to the function *lock* for each of the names, asked at once."""
    places = sa.func.unnest(sa.cast([_place(name) for name in names], sa.ARRAY(sa.BigInteger)))
    each: sa.Select[object] = sa.select(sa.Function(lock, places.column_valued("place")))
    with translated():
        return list(session.execute(each).scalars())


def _lock_byte(file: int, name: str, command: int, kind: int) -> None:
    # struct flock of a 64-bit Linux: kind, whence, first byte, how many, nobody's pid.
    fcntl.fcntl(file, command, struct.pack("hhqqi", kind, os.SEEK_SET, _place(name), 1, 0))


def _place(name: str) -> int:
    """A number of 63 bits for a name. That two names share one costs a wait, no more."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1
