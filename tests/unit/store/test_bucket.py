"""What is particular to blobs in an object store: it is slow, it fails, and it is far away."""

from __future__ import annotations

import datetime as dt
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.objectstore import FaultProxy
from tests.unit.store.places import BUDGET, opened

from acclimate_service.domain.errors import BlobNotFound, InvalidSpec, StoreUnavailable
from acclimate_service.store import Bucket, objects, open_store
from acclimate_service.store.bucket import TOGETHER, BucketBlobs
from acclimate_service.store.nearby import LARGEST, Nearby


def hurry(monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    """As in operation, but no answer is waited for longer than *patience* seconds."""
    wait, moment = dt.timedelta(seconds=patience), dt.timedelta(seconds=0.02)
    client = {"connect_timeout": wait, "read_timeout": wait, "timeout": 10 * wait}
    backoff = {"init_backoff": moment, "max_backoff": 5 * moment, "base": 2}
    retry = {"max_retries": 3, "retry_timeout": wait, "backoff": backoff}
    for name, value in (("CLIENT", client), ("RETRY", retry), ("PING_CLIENT", client)):
        monkeypatch.setattr(objects, name, value)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch, 10)


@pytest.fixture
def url(faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket behind the proxy."""
    for name, value in faulty.store.environment.items():
        monkeypatch.setenv(name, value)
    return faulty.store.bucket()


@pytest.fixture
def blobs(url: str, tmp_path: Path) -> Iterator[BucketBlobs]:
    found = opened(url, tmp_path / "one")
    yield found
    found.close()


def near(tmp_path: Path) -> Path:
    return tmp_path / "one" / "near"


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def asked(faulty: FaultProxy, work: Callable[[], object]) -> list[str]:
    """The methods of the requests that *work* makes."""
    before = len(faulty.faults.asked)
    work()
    return faulty.faults.asked[before:]


# ── what it costs ────────────────────────────────────────────────────────────


def test_each_blob_costs_one_request_and_they_are_made_side_by_side(
    blobs: BucketBlobs, faulty: FaultProxy
) -> None:
    contents = [b"%d" % n for n in range(TOGETHER)]
    faulty.faults.delay = 0.25
    began = time.monotonic()
    assert asked(faulty, lambda: blobs.put_many(contents)) == ["PUT"] * TOGETHER
    assert time.monotonic() - began < TOGETHER * 0.25 / 2


def test_what_was_read_is_read_again_without_a_request(
    blobs: BucketBlobs, faulty: FaultProxy
) -> None:
    digest = blobs.put(b"a version")
    assert asked(faulty, lambda: blobs.get(digest)) == ["GET"]
    assert asked(faulty, lambda: blobs.get(digest)) == []
    assert asked(faulty, lambda: blobs.open(digest).close()) == []
    assert asked(faulty, lambda: blobs.fetch([digest])) == []


def test_what_is_missing_is_found_by_listing_and_not_one_by_one(
    blobs: BucketBlobs, faulty: FaultProxy
) -> None:
    digests = sorted(blobs.put_many([b"%d" % n for n in range(50)]))
    assert asked(faulty, lambda: blobs.absent(digests)) == ["GET"]


def test_whether_it_answers_is_asked_now_and_then(blobs: BucketBlobs, faulty: FaultProxy) -> None:
    blobs.ping()
    assert asked(faulty, blobs.ping) == []


def test_no_more_is_fetched_than_stays_at_hand_until_it_is_read(
    url: str, tmp_path: Path, faulty: FaultProxy
) -> None:
    blobs = opened(url, tmp_path / "one")
    size = BUDGET // TOGETHER // 2
    digests = blobs.put_many([b"%5d" % n * (size // 5) for n in range(3 * TOGETHER)])
    blobs.fetch(digests[:TOGETHER])
    assert asked(faulty, lambda: blobs.fetch(digests)) == ["GET"] * TOGETHER
    assert asked(faulty, lambda: blobs.fetch(digests)) == []
    blobs.close()


# ── it fails ─────────────────────────────────────────────────────────────────


def test_a_store_that_says_not_now_is_asked_again(blobs: BucketBlobs, faulty: FaultProxy) -> None:
    faulty.faults.busy = 2
    assert asked(faulty, lambda: blobs.put(b"content")) == ["PUT"] * 3
    faulty.faults.busy = 2
    assert blobs.get(digest_of(b"content")) == b"content"


def test_a_connection_that_breaks_off_in_the_middle_gives_the_whole_content(
    blobs: BucketBlobs, faulty: FaultProxy
) -> None:
    content = bytes(range(256)) * 400
    digest = blobs.put(content)
    faulty.faults.cut, faulty.faults.cuts = 50_000, 1
    assert asked(faulty, lambda: blobs.get(digest)) == ["GET", "GET"]
    assert blobs.get(digest) == content


@pytest.mark.parametrize("fault", ["gone", "silent"])
def test_a_store_that_is_away_is_an_outage_that_ends_in_time_and_passes(
    url: str, tmp_path: Path, faulty: FaultProxy, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = opened(url, tmp_path / "one")
    digest = blobs.put(b"content")
    hurry(monkeypatch, 0.3)
    hurried = opened(url, tmp_path / "one")
    setattr(faulty.faults, fault, True)
    for use in (
        lambda: hurried.get(digest),
        lambda: hurried.open(digest),
        lambda: hurried.put(b"more"),
        lambda: hurried.exists(digest),
        lambda: hurried.delete(digest),
        lambda: hurried.delete_older(digest, float("inf")),
        lambda: list(hurried.digests()),
        hurried.ping,
    ):
        with pytest.raises(StoreUnavailable, match="does not answer"):
            use()
    setattr(faulty.faults, fault, False)
    blobs.ping()
    assert blobs.get(digest) == b"content"
    assert not blobs.exists(digest_of(b"more"))
    hurried.close()
    blobs.close()


def test_several_of_which_one_is_refused_are_an_outage_and_none_is_half_there(
    blobs: BucketBlobs, faulty: FaultProxy
) -> None:
    faulty.faults.busy = 61  # three of four tries for each of twenty, and one
    contents = [b"%d" % n for n in range(20)]
    with pytest.raises(StoreUnavailable):
        blobs.put_many(contents)
    faulty.faults.busy = 0
    for digest in blobs.digests():
        blobs.verify(digest)
    assert set(blobs.put_many(contents)) == set(blobs.digests())


@pytest.mark.usefixtures("url")
def test_a_bucket_that_is_gone_is_an_outage_and_not_a_missing_file(tmp_path: Path) -> None:
    blobs = opened("s3://nobody-made-this/here", tmp_path / "one")
    for use in (blobs.get, blobs.open, blobs.size):
        with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
            use(digest_of(b"x"))
    with pytest.raises(StoreUnavailable):
        blobs.ping()
    blobs.close()


def test_a_blob_that_is_stored_between_the_look_and_the_removal_is_there_afterwards(
    blobs: BucketBlobs, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = blobs.put(b"one")
    other = opened(url, tmp_path / "two")
    looked = threading.Event()
    delete = objects.Objects.delete

    def slow_delete(self: objects.Objects, key: str) -> None:
        looked.set()
        time.sleep(0.5)
        delete(self, key)

    monkeypatch.setattr(objects.Objects, "delete", slow_delete)
    collector = threading.Thread(target=other.delete_older, args=(digest, float("inf")))
    collector.start()
    assert looked.wait(10)
    blobs.put(b"one")
    collector.join()
    assert blobs.exists(digest)
    other.close()


def test_a_removal_beside_another_is_done_after_it(
    blobs: BucketBlobs, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = blobs.put(b"one")
    other = opened(url, tmp_path / "two")
    looked = threading.Event()
    delete = objects.Objects.delete

    def slow_delete(self: objects.Objects, key: str) -> None:
        if not looked.is_set():
            looked.set()
            time.sleep(0.5)
        delete(self, key)

    monkeypatch.setattr(objects.Objects, "delete", slow_delete)
    collector = threading.Thread(target=other.delete_older, args=(digest, float("inf")))
    collector.start()
    assert looked.wait(10)
    assert not blobs.delete(digest)  # the collector was first
    collector.join()
    other.close()


def test_a_collector_leaves_what_somebody_is_storing(
    blobs: BucketBlobs, url: str, tmp_path: Path, faulty: FaultProxy
) -> None:
    digest = blobs.put(b"one")
    other = opened(url, tmp_path / "two")
    faulty.faults.delay = 0.5
    writer = threading.Thread(target=blobs.put, args=(b"one",))
    writer.start()
    while faulty.faults.asked.count("PUT") < 3:  # the bucket's, the first, and this one
        time.sleep(0.01)
    assert other.delete_older(digest, float("inf")) is None
    writer.join()
    assert other.delete_older(digest, float("inf")) == 3
    other.close()


# ── it is opened ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("deny", "code", "told"),
    [
        ("PUT", "AccessDenied", "refuses to write: AccessDenied; allow .*s3:PutObject"),
        ("GET", "AccessDenied", "refuses to read: AccessDenied; allow"),
        ("POST", "AccessDenied", "refuses to delete: AccessDenied; allow"),
        ("PUT GET", "InvalidAccessKeyId", "check AWS_ACCESS_KEY_ID"),
        ("PUT GET", "SignatureDoesNotMatch", "check AWS_ACCESS_KEY_ID"),
        ("PUT GET", "RequestTimeTooSkewed", "clock"),
        ("PUT GET", "AuthorizationHeaderMalformed", "AWS_REGION"),
    ],
)
def test_a_store_that_refuses_us_is_refused_with_what_to_do(
    blobs: BucketBlobs, faulty: FaultProxy, deny: str, code: str, told: str
) -> None:
    blobs.get(blobs.put(b"something is at hand"))
    faulty.faults.deny, faulty.faults.code = deny, code
    with pytest.raises(InvalidSpec, match=told):
        blobs.begin()


@pytest.mark.usefixtures("url")
def test_a_bucket_that_nobody_made_is_refused_with_what_to_do(tmp_path: Path) -> None:
    blobs = opened("s3://nobody-made-this/here", tmp_path / "one")
    with pytest.raises(InvalidSpec, match="NoSuchBucket; make the bucket"):
        blobs.begin()
    blobs.close()


def test_a_store_that_does_not_answer_is_gone_on_without_only_with_something_at_hand(
    blobs: BucketBlobs, faulty: FaultProxy
) -> None:
    digest, other = blobs.put_many([b"served before", b"never read"])
    faulty.faults.gone = True
    with pytest.raises(StoreUnavailable, match="AWS_ENDPOINT_URL"):
        blobs.begin()
    faulty.faults.gone = False
    blobs.get(digest)
    faulty.faults.gone = True
    blobs.begin()
    assert blobs.get(digest) == b"served before"
    with pytest.raises(StoreUnavailable):
        blobs.get(other)


def test_beginning_leaves_nothing_behind_and_what_a_dead_one_left_is_removed(
    blobs: BucketBlobs, url: str
) -> None:
    blobs.begin()
    place = objects.Objects(url)
    assert list(place.keys("tried")) == []
    place.put("tried/left", b"acclimate")
    assert blobs.delete_unfinished(time.time() - 86400) == 0
    assert blobs.delete_unfinished(time.time() + 60) == 1
    assert list(place.keys("tried")) == []


@pytest.mark.parametrize(
    "bad", ["s3://", "s3:///x", "ftp://host/x", "s3://key:secret@bucket/x", "az://", "s3://a b/c"]
)
def test_a_url_of_another_kind_is_refused(bad: str, tmp_path: Path) -> None:
    place = Bucket(url=bad, cache=tmp_path / "near", cache_bytes=BUDGET)
    with pytest.raises(InvalidSpec) as refused:
        open_store(f"sqlite:///{tmp_path / 'store.db'}", place)
    assert "secret" not in str(refused.value)


def test_without_its_library_it_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("obstore", "acclimate_service.store.bucket", "acclimate_service.store.objects"):
        monkeypatch.setitem(sys.modules, name, None)
    place = Bucket(url="s3://bucket", cache=tmp_path / "near", cache_bytes=BUDGET)
    with pytest.raises(InvalidSpec, match=r"pip install 'acclimate\[bucket\]'"):
        open_store(f"sqlite:///{tmp_path / 'store.db'}", place)


# ── what is at hand ──────────────────────────────────────────────────────────


def test_a_copy_that_rotted_is_forgotten_and_fetched_anew(
    blobs: BucketBlobs, tmp_path: Path
) -> None:
    digest = blobs.put(b"the truth")
    blobs.get(digest)
    (near(tmp_path) / digest).write_bytes(b"something")
    assert blobs.get(digest) == b"the truth"
    (near(tmp_path) / digest).write_bytes(b"something else")
    with blobs.open(digest) as file:
        assert file.read() == b"the truth"


def test_what_is_deleted_is_gone_from_at_hand_too(blobs: BucketBlobs, tmp_path: Path) -> None:
    digest = blobs.put(b"erased")
    blobs.get(digest)
    blobs.delete(digest)
    assert list(near(tmp_path).iterdir()) == []
    with pytest.raises(BlobNotFound):
        blobs.get(digest)


def test_copies_keep_to_their_budget_and_what_was_read_last_stays(tmp_path: Path) -> None:
    copies = Nearby(tmp_path / "near", 100_000)
    contents = [b"%5d" % n * 1000 for n in range(100)]
    copies.keep(contents[0])
    for content in contents[1:]:
        copies.keep(content)
        assert copies.get(digest_of(contents[0])) == contents[0]
    assert sum(path.stat().st_size for path in (tmp_path / "near").iterdir()) <= 100_000
    assert copies.get(digest_of(contents[-1])) == contents[-1]
    assert copies.get(digest_of(contents[1])) is None


def test_what_would_take_most_of_the_budget_is_not_copied(tmp_path: Path) -> None:
    copies = Nearby(tmp_path / "near", 1000)
    copies.keep(b"x" * int(1000 * LARGEST + 1))
    assert not copies.any()


def test_a_disk_that_refuses_costs_the_copy_and_nothing_else(
    blobs: BucketBlobs, tmp_path: Path
) -> None:
    near(tmp_path).write_text("in the way")
    digest = blobs.put(b"content")
    assert blobs.get(digest) == b"content"
    assert blobs.get(digest) == b"content"
