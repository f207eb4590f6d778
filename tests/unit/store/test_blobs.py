"""What every place of blobs promises."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.objectstore import ObjectStore
from tests.unit.store.places import BucketPlace, FolderPlace, opened

from acclimate_service.domain.errors import BlobCorrupt, BlobNotFound, StoreUnavailable
from acclimate_service.store.blobs import CHUNK, Blobs
from acclimate_service.store.folder import FolderBlobs
from acclimate_service.store.objects import PART

Place = FolderPlace | BucketPlace


@pytest.fixture(params=["folder", "bucket"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    if request.param == "folder":
        folder = FolderPlace(FolderBlobs(tmp_path / "blobs"))
        yield folder
        folder.blobs.close()
        return
    store: ObjectStore = request.getfixturevalue("object_store")
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    url = store.bucket()
    bucket = BucketPlace(store, url, tmp_path, opened(url, tmp_path / "one"))
    yield bucket
    bucket.blobs.close()


@pytest.fixture
def blobs(place: Place) -> Blobs:
    return place.blobs


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * (CHUNK // 100)])
def test_what_was_put_is_got_under_its_sha256(place: Place, content: bytes) -> None:
    blobs = place.blobs
    digest = blobs.put(content)
    assert digest == sha256(content)
    assert blobs.get(digest) == content
    assert blobs.size(digest) == len(content)
    assert blobs.exists(digest)
    assert place.unfinished() == []
    blobs.verify(digest)
    with blobs.open(digest) as file:
        assert file.read() == content


def test_what_one_put_another_gets(place: Place) -> None:
    digest = place.blobs.put(b"for everyone")
    other = place.again()
    assert other.get(digest) == b"for everyone"
    other.close()


def test_several_are_put_at_once_in_their_order_and_the_same_one_once(blobs: Blobs) -> None:
    contents = [b"one", b"two", b"one", b"three", *(b"%d" % n for n in range(100))]
    assert blobs.put_many(contents) == [sha256(content) for content in contents]
    assert list(blobs.digests()) == sorted({sha256(content) for content in contents})
    assert blobs.put_many([]) == []


def test_a_written_blob_appears_when_its_block_ends_and_not_before(blobs: Blobs) -> None:
    with blobs.writer() as writer:
        writer.write(b"one ")
        writer.write(b"two")
        assert not blobs.exists(sha256(b"one two"))
        assert writer.digest == ""
    assert (writer.digest, writer.size) == (sha256(b"one two"), 7)
    assert blobs.get(writer.digest) == b"one two"


def test_a_blob_of_several_parts_is_whole(blobs: Blobs) -> None:
    content = random.Random(1).randbytes(2 * PART + 17)
    with blobs.writer() as writer:
        for start in range(0, len(content), CHUNK):
            writer.write(content[start : start + CHUNK])
    assert writer.digest == sha256(content)
    assert blobs.get(writer.digest) == content
    with blobs.open(writer.digest) as file:
        assert sha256(file.read()) == writer.digest
    assert blobs.put(content) == writer.digest
    blobs.verify(writer.digest)


def test_a_written_blob_whose_block_fails_never_was(place: Place) -> None:
    def half() -> None:
        with place.blobs.writer() as writer:
            writer.write(b"half")
            raise ConnectionResetError  # an OSError of the block's own, and passed on as such

    with pytest.raises(ConnectionResetError):
        half()
    assert list(place.blobs.digests()) == []
    assert place.unfinished() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda _: b"x" * 9,
        lambda _: b"",
    ],
)
def test_bytes_that_changed_in_their_place_are_found_and_healed_by_the_true_ones(
    place: Place, damage: Callable[[bytes], bytes]
) -> None:
    digest = place.blobs.put(b"the truth")
    place.spoil(digest, damage(b"the truth"))
    for read in (place.blobs.get, place.blobs.verify, place.blobs.open):
        with pytest.raises(BlobCorrupt):
            read(digest)
    assert place.blobs.put(b"the truth") == digest
    assert place.blobs.get(digest) == b"the truth"


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "0" * 64, "../../etc/passwd", "A" * 64, "0" * 64 + "\n", "é" * 64]
)
def test_what_is_no_digest_or_not_there_is_not_found(blobs: Blobs, digest: str) -> None:
    for use in (blobs.get, blobs.open, blobs.size, blobs.verify):
        with pytest.raises(BlobNotFound):
            use(digest)


def test_those_that_are_not_there_are_told_from_those_that_are(blobs: Blobs) -> None:
    digests = sorted(blobs.put_many([b"%d" % n for n in range(20)]))
    for digest in digests[::3]:
        blobs.delete(digest)
    assert blobs.absent(digests) == digests[::3]
    assert blobs.absent(digests[1:2]) == []
    assert blobs.absent(digests[:1]) == digests[:1]
    assert blobs.absent([]) == []
    assert [digest for digest in digests if not blobs.exists(digest)] == digests[::3]


def test_what_is_fetched_is_read_as_before_and_what_is_missing_is_told_to_its_reader(
    blobs: Blobs,
) -> None:
    digests = blobs.put_many([b"%d" % n for n in range(20)])
    blobs.delete(digests[7])
    blobs.fetch(digests)
    assert [blobs.get(digest) for digest in digests[:7]] == [b"%d" % n for n in range(7)]
    with pytest.raises(BlobNotFound):
        blobs.get(digests[7])


def test_a_deleted_blob_is_gone_and_deleting_it_again_is_no_error(blobs: Blobs) -> None:
    digest = blobs.put(b"one")
    assert blobs.get(digest) == b"one"
    assert blobs.delete(digest)
    assert not blobs.delete(digest)
    assert not blobs.exists(digest)
    with pytest.raises(BlobNotFound):
        blobs.get(digest)


def test_only_a_blob_that_nobody_stored_since_is_deleted_for_its_age(place: Place) -> None:
    digest = place.blobs.put(b"one")
    first = place.stored_at(digest)
    assert place.blobs.delete_older(digest, first - 1) is None
    place.grow_older()
    place.blobs.put(b"one")
    assert place.blobs.delete_older(digest, first) is None
    assert place.blobs.delete_older(digest, place.stored_at(digest)) == 3
    assert place.blobs.delete_older(digest, float("inf")) is None


def test_nothing_is_deleted_while_somebody_holds_all(place: Place) -> None:
    digest = place.blobs.put(b"one")
    other = place.again()
    with place.blobs.held(), other.held():
        assert place.blobs.delete_older(digest, float("inf")) is None
        with pytest.raises(StoreUnavailable, match="backup"):
            other.delete(digest)
        assert place.blobs.put(b"two") == sha256(b"two")  # storing goes on
    assert other.delete(digest)
    other.close()


def test_strangers_are_passed_over(place: Place) -> None:
    digest = place.blobs.put(b"one")
    place.add_stranger("sha256/README")
    place.add_stranger(f"sha256/{digest[:2]}/notes.txt")
    assert list(place.blobs.digests()) == [digest]


def test_many_threads_store_the_same_content_without_harm(place: Place) -> None:
    contents = [b"content %d" % (i % 5) for i in range(40)]
    threads = [threading.Thread(target=place.blobs.put, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(place.blobs.digests())) == 5
    for digest in place.blobs.digests():
        place.blobs.verify(digest)
    assert place.unfinished() == []


def test_a_blob_that_is_stored_while_it_is_collected_is_there_afterwards(place: Place) -> None:
    """However the two fall: who stores it last has it, since it is young then."""
    other = place.again()
    ended = threading.Event()

    def collect() -> None:
        while not ended.is_set():
            other.delete_older(digest, first)

    digest = place.blobs.put(b"one")
    first = place.stored_at(digest)
    place.grow_older()
    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for _ in itertools.repeat(None, 30):
            place.blobs.put(b"one")
            assert place.blobs.exists(digest)
    finally:
        ended.set()
        collector.join()
        other.close()
