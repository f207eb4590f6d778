"""The file of an SQLite database: opened, known from another in its place, asked for commits."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Final

from acclimate_service.domain.errors import StoreUnavailable

BUSY_SECONDS: Final = 10.0  # how long a statement waits for another's lock before it gives up

Mark = tuple[sqlite3.Connection, int]


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the file, which must be there; any thread may use it.

    Never made anew in passing: beside an empty file in the place of one that is gone for a
    moment, SQLite takes the log with all that was committed last for a left-over, and deletes
    it.

    Raises:
        sqlite3.OperationalError: there is no such file.
    """
    return sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS, check_same_thread=False
    )


def file_at(path: Path) -> tuple[int, int]:
    """Which file it is: its device and inode.

    Raises:
        sqlite3.OperationalError: there is none, or it is out of reach.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise sqlite3.OperationalError(f"the database file: {error.strerror}") from error
    return found.st_dev, found.st_ino


class Commits:
    """Whether anybody has committed to the file at *path*, told without a transaction. Thread-safe.

    SQLite counts for each connection what others commit. To ask for that costs a small part of
    what it costs to read anew, and most who ask find that nothing has happened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None  # it never writes: see ``mark``
        self._file = (0, 0)
        self._lock = threading.Lock()

    def mark(self) -> Mark:
        """What is equal to an earlier mark only if nobody has committed in between.

        Who reads after it was taken reads at least all that it stands for.

        Raises:
            StoreUnavailable: the file is gone, locked or refuses.
        """
        with self._lock:
            try:
                connection = self._connected()
                # All of its rows: a statement that is not read to its end keeps its moment.
                # What the connection itself commits would not be counted.
                ((version,),) = connection.execute("PRAGMA data_version").fetchall()
            except sqlite3.Error as error:
                self._disconnect()
                raise StoreUnavailable(
                    "the database is out of reach or refuses; the log says more", detail=str(error)
                ) from error
            return connection, version  # another connection has another count

    def close(self) -> None:
        """Give the connection back."""
        with self._lock:
            self._disconnect()

    def _connected(self) -> sqlite3.Connection:
        file = file_at(self._path)
        if self._connection is None or file != self._file:
            self._disconnect()
            self._connection, self._file = connect(self._path), file
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
