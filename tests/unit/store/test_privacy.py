"""What is stored is for the account that stores it: whatever the umask of who started it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from acclimate_service.store import open_store


@pytest.fixture(autouse=True)
def _open_handed() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def rights(path: Path) -> int:
    return path.stat().st_mode & 0o777


def stored(home: Path) -> Path:
    """A home with a store that was written to; its database file."""
    store = open_store(f"sqlite:///{home / 'acclimate.db'}", home / "blobs")
    store.blobs.put(b"a face")
    store.audit.record(who="ada", action="Act", subject="models/m")
    assert {rights(path) for path in home.glob("acclimate.db*")} == {0o600}
    assert len(list(home.glob("acclimate.db*"))) > 2  # its log too, while it is open
    store.close()
    return home / "acclimate.db"


def test_a_home_that_is_made_is_for_its_account_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    stored(home)
    assert (rights(home), rights(home / "blobs")) == (0o700, 0o700)


def test_a_home_that_is_there_keeps_its_rights(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(0o750)
    stored(home)
    assert (rights(home), rights(home / "blobs")) == (0o750, 0o700)


def test_a_backup_is_for_its_account_alone_and_follows_no_link(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    stored(home)
    elsewhere.write_text("somebody's")
    (tmp_path / "backup.tar.part").symlink_to(elsewhere)
    store = open_store(f"sqlite:///{home / 'acclimate.db'}", home / "blobs")
    store.save(tmp_path / "backup.tar")
    store.close()
    assert rights(tmp_path / "backup.tar") == 0o600
    assert elsewhere.read_text() == "somebody's"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "backup.tar",
        "backup.tar.part",
        "elsewhere",
        "home",
    ]
