"""What is particular to blobs in a folder."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tests.unit.store.places import age

from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.store.folder import FolderBlobs


def test_a_blob_that_is_stored_between_the_look_and_the_removal_is_there_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector has looked, and found it old, when a writer stores it again."""
    blobs = FolderBlobs(tmp_path / "blobs")
    digest = blobs.put(b"one")
    age(blobs.path(digest))
    looked = threading.Event()
    unlink = Path.unlink

    def slow_unlink(path: Path, missing_ok: bool = False) -> None:
        if path == blobs.path(digest):
            looked.set()
            time.sleep(0.3)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", slow_unlink)
    collector = threading.Thread(target=blobs.delete_older, args=(digest, 2000))
    collector.start()
    assert looked.wait(10)
    blobs.put(b"one")
    collector.join()
    assert blobs.get(digest) == b"one"


def test_what_a_dead_writer_left_is_removed_and_what_a_living_one_writes_stays(
    tmp_path: Path,
) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    left = blobs.root / "tmp" / "left"
    left.write_bytes(b"half")
    age(left)
    with blobs.writer() as writer:
        writer.write(b"whole")
        assert blobs.delete_unfinished(2000) == 1
    assert blobs.get(writer.digest) == b"whole"
    assert not left.exists()


def test_a_folder_that_cannot_be_made_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable):
        FolderBlobs(tmp_path / "file" / "blobs")
