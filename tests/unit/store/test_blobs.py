from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from acclimate_service.domain.errors import BlobCorrupt, BlobNotFound, StoreUnavailable
from acclimate_service.store.blobs import CHUNK, Blobs


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def temporary_files(blobs: Blobs) -> list[Path]:
    return list((blobs.root / "tmp").iterdir())


@pytest.mark.parametrize("content", [b"", b"one", b"long" * CHUNK])
def test_what_was_put_is_got_under_its_sha256(blobs: Blobs, content: bytes) -> None:
    digest = blobs.put(content)
    assert digest == sha256(content)
    assert blobs.get(digest) == content
    assert blobs.size(digest) == len(content)
    assert blobs.exists(digest)
    assert temporary_files(blobs) == []
    blobs.verify(digest)
    with blobs.open(digest) as file:
        assert file.read() == content


def test_several_are_put_at_once_in_their_order_and_the_same_one_once(blobs: Blobs) -> None:
    contents = [b"one", b"two", b"one"]
    assert blobs.put_many(contents) == [sha256(content) for content in contents]
    assert len(list(blobs.digests())) == 2
    assert blobs.put_many([]) == []


def test_a_file_is_put_as_a_copy(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    assert blobs.put_file(path) == sha256(b"weights")
    assert path.exists()
    with pytest.raises(StoreUnavailable):
        blobs.put_file(tmp_path / "nothing")


def test_a_written_blob_appears_when_its_block_ends_and_not_before(blobs: Blobs) -> None:
    with blobs.writer() as writer:
        writer.write(b"one ")
        writer.write(b"two")
        assert not blobs.exists(sha256(b"one two"))
        assert writer.digest == ""
    assert (writer.digest, writer.size) == (sha256(b"one two"), 7)
    assert blobs.get(writer.digest) == b"one two"


def test_a_written_blob_whose_block_fails_never_was(blobs: Blobs) -> None:
    def half() -> None:
        with blobs.writer() as writer:
            writer.write(b"half")
            raise ConnectionResetError  # an OSError of the block's own, and passed on as such

    with pytest.raises(ConnectionResetError):
        half()
    assert list(blobs.digests()) == []
    assert temporary_files(blobs) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda _: b"x" * 9,
        lambda _: b"",
    ],
)
def test_bytes_that_changed_on_disk_are_found_and_healed_by_the_true_ones(
    blobs: Blobs, damage: object
) -> None:
    digest = blobs.put(b"the truth")
    blobs.path(digest).write_bytes(damage(b"the truth"))  # type: ignore[operator]
    for read in (blobs.get, blobs.verify):
        with pytest.raises(BlobCorrupt):
            read(digest)
    assert blobs.put(b"the truth") == digest
    assert blobs.get(digest) == b"the truth"


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "0" * 64, "../../etc/passwd", "A" * 64, "0" * 64 + "\n", "é" * 64]
)
def test_what_is_no_digest_or_not_there_is_not_found(blobs: Blobs, digest: str) -> None:
    for use in (blobs.get, blobs.open, blobs.size, blobs.verify):
        with pytest.raises(BlobNotFound):
            use(digest)


def test_a_deleted_blob_is_gone_and_deleting_it_again_is_no_error(blobs: Blobs) -> None:
    digest = blobs.put(b"one")
    blobs.delete(digest)
    blobs.delete(digest)
    assert not blobs.exists(digest)


def test_only_a_blob_that_nobody_stored_since_is_deleted_for_its_age(blobs: Blobs) -> None:
    digest = blobs.put(b"one")
    os.utime(blobs.path(digest), (1000, 1000))
    assert blobs.delete_older(digest, 999) is None
    blobs.put(b"one")
    assert blobs.delete_older(digest, 1000) is None
    os.utime(blobs.path(digest), (1000, 1000))
    assert blobs.delete_older(digest, 1000) == 3
    assert blobs.delete_older(digest, 1000) is None


def test_a_blob_that_is_stored_while_it_is_collected_is_there_afterwards(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector has looked, and found it old, when a writer stores it again."""
    digest = blobs.put(b"one")
    os.utime(blobs.path(digest), (1000, 1000))
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


def test_strangers_in_the_folder_are_passed_over(blobs: Blobs) -> None:
    digest = blobs.put(b"one")
    (blobs.root / "sha256" / "README").write_text("hello")
    (blobs.path(digest).parent / "notes.txt").write_text("hello")
    assert list(blobs.digests()) == [digest]


def test_many_threads_store_the_same_content_without_harm(blobs: Blobs) -> None:
    contents = [f"content {number % 5}".encode() for number in range(40)]
    threads = [threading.Thread(target=blobs.put, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(blobs.digests())) == 5
    for digest in blobs.digests():
        blobs.verify(digest)
    assert temporary_files(blobs) == []


def test_a_folder_that_cannot_be_made_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable):
        Blobs(tmp_path / "file" / "blobs")
