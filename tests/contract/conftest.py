"""Every test here runs over SQLite and over PostgreSQL: one contract, two engines.

What concerns files runs a third time, as many replicas do: PostgreSQL and a bucket.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.contract.builders import FakeClock
from tests.contract.postgres import CannotStart, postgresql
from tests.objectstore import ObjectStore

from acclimate_service.store import Bucket, Store, open_store, schema

Opener = Callable[..., Store]
ABOUT_FILES = {"test_backup", "test_erasure", "test_reconcile", "test_retention"}


@dataclass(frozen=True)
class Place:
    """Where a store lies."""

    url: str
    blobs: Path | Bucket

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
    with contextlib.ExitStack() as stack:
        # Out of pytest's folders: of those, a third run beside this one removes the oldest.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postgres-")))
        (folder / "data").mkdir()
        try:
            server = stack.enter_context(postgresql(folder / "data"))
        except CannotStart as error:
            pytest.skip(str(error))
        open_store(server.url, tmp_path_factory.mktemp("template")).close()
        yield server.url


@pytest.fixture(scope="session")
def emptied(postgres: str) -> Iterator[Callable[[], None]]:
    """Empties that database, and lets all numbers begin anew.

    Row by row: ``TRUNCATE`` makes the files of every table and index anew, which takes ten
    times as long, and longer than most tests.
    """
    # Some tests end every connection to it.
    engine = sa.create_engine(postgres, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    with engine.connect() as connection:
        numbers = connection.scalars(sa.text("SELECT sequencename FROM pg_sequences")).all()
    everything = "; ".join(
        [
            # As a replica, which runs no triggers: the audit log refuses it otherwise.
            "SET session_replication_role = replica",
            *(str(sa.delete(table)) for table in schema.metadata.sorted_tables),
            *(f"ALTER SEQUENCE {name} RESTART" for name in numbers),
        ]
    )

    def empty() -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(everything)

    yield empty
    engine.dispose()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        kinds = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
        if metafunc.module.__name__.rpartition(".")[2] in ABOUT_FILES:
            kinds.append(pytest.param("replicas", marks=pytest.mark.postgres))
        metafunc.parametrize("place", kinds, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A new, empty store, migrated."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), folder / "store.db")
        return Place(f"sqlite:///{folder / 'store.db'}", folder / "blobs")
    url = request.getfixturevalue("postgres")
    request.getfixturevalue("emptied")()
    if request.param == "postgresql":
        return Place(url, folder / "blobs")
    objects: ObjectStore = request.getfixturevalue("object_store")
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(url=objects.bucket(), cache=folder / "near", cache_bytes=2**20)
    return Place(url, bucket)


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
