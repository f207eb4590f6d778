"""Blobs in an object store.

    PREFIX/sha256/ab/abcd…   the objects; the same layout as in a folder
    PREFIX/tried/            what was written to see whether that is allowed

An object appears whole or not at all by the store's own promise, and storing it again
replaces it in one step: that heals one that rotted, and renews its age, with no question
asked before. So every blob costs one request, and many are under way side by side.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import itertools
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import BinaryIO, Final

import structlog

from acclimate_service.domain.errors import BlobCorrupt, BlobNotFound, StoreUnavailable
from acclimate_service.store.blobs import (
    Blobs,
    BlobWriter,
    checked,
    is_digest,
    translated_os_errors,
    verified,
)
from acclimate_service.store.fence import Fence, Taken
from acclimate_service.store.nearby import Nearby
from acclimate_service.store.objects import PART, Absent, Objects

REQUESTS = 32  # under way at once, of one process
TOGETHER = 64  # blobs that are stored, or fetched, side by side
PING_SECONDS = 5.0  # how long an answer to a ping is believed
# In the fence. A backup holds all of them together; who removes a blob has the one of its
# digest alone, so that two who remove different ones seldom meet.
HELD: Final = tuple(f"held {prefix:02x}" for prefix in range(256))
REMOVAL_TRIES, REMOVAL_SECONDS = 20, 0.1  # of a removal beside another of the same kind


class BucketBlobs(Blobs):
    """The blob store of any number of machines.

    *fence* is that of everyone who uses it; *nearby* keeps copies of what is read.
    """

    def __init__(self, objects: Objects, *, fence: Fence, nearby: Nearby) -> None:
        self._objects = objects
        self._fence = fence
        self._nearby = nearby
        self._fetched = 0  # bytes
        self._pinged_at = -PING_SECONDS
        self._pinging = threading.Lock()
        self.threads = concurrent.futures.ThreadPoolExecutor(REQUESTS, "blobs")

    def begin(self) -> None:
        """Find out whether the store lets us do our work.

        Raises:
            InvalidSpec: it refuses, for a reason that will not pass.
            StoreUnavailable: it does not answer, and nothing is at hand to go on with.
        """
        try:
            self._objects.examine()
        except StoreUnavailable as error:
            if not self._nearby.any():
                raise
            structlog.get_logger(__name__).warning("going on with what is at hand", why=str(error))

    def ping(self) -> None:
        """Say whether the store answers, or did so a moment ago: every question costs money."""
        with self._pinging:
            if time.monotonic() - self._pinged_at >= PING_SECONDS:
                self._objects.ping()
                self._pinged_at = time.monotonic()

    # ── writing ──────────────────────────────────────────────────────────────

    def put_many(self, contents: Sequence[bytes]) -> list[str]:
        """Store several contents, one request each, side by side; their digests, in order."""
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        each = dict(zip(digests, contents, strict=True))
        for group in _groups(each, TOGETHER):
            # So that nobody who found one of them old removes it after it became young.
            with self._fence.together(group):
                self._at_once(lambda name: self._objects.put(checked(name), each[name]), group)
        return digests

    @contextlib.contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """A writer into a temporary file, since the digest that will name it comes last."""
        with self._nearby.scratch(PART) as file:
            writer = BlobWriter(file)
            yield writer
            digest = writer.written()
            with translated_os_errors():
                file.seek(0)
                content = file.read() if writer.size <= PART else file
            with self._fence.together([digest]):
                self._objects.put(checked(digest), content)
            writer.digest = digest

    # ── reading ──────────────────────────────────────────────────────────────

    def get(self, digest: str) -> bytes:
        """The content, verified; from at hand, if it is there."""
        key = checked(digest)
        content = self._nearby.get(digest)
        if content is None:
            with self._missing_is(digest):
                content = self._objects.get(key)
            found = hashlib.sha256(content).hexdigest()
            if found != digest:
                raise BlobCorrupt(digest, found)
            self._nearby.keep(content)
        return content

    def open(self, digest: str) -> BinaryIO:
        """A temporary file of the content, or the copy that is at hand."""
        key = checked(digest)
        file = self._nearby.open(digest)
        if file is None:
            file = self._nearby.scratch(PART)
            try:
                with translated_os_errors(), self._missing_is(digest):
                    self._objects.copy(key, file)
                file.seek(0)
            except BaseException:
                file.close()
                raise
            file = verified(digest, file)
        return file

    def fetch(self, digests: Iterable[str]) -> None:
        """Read those that are not at hand, side by side, and keep them there.

        No more than half of what may be kept, in the life of this process: those fetched
        last would put out those fetched first before anyone has read them.
        """
        far = [digest for digest in dict.fromkeys(digests) if digest not in self._nearby]
        for group in _groups(far, TOGETHER):
            if self._fetched >= self._nearby.budget / 2:
                return
            self._fetched += sum(self._at_once(self._fetch, group))

    def size(self, digest: str) -> int:
        """The size in bytes."""
        with self._missing_is(digest):
            return self._objects.find(checked(digest)).size

    def exists(self, digest: str) -> bool:
        """Whether there is such a blob."""
        try:
            self._objects.find(checked(digest))
        except Absent:
            return False
        return True

    def absent(self, digests: Sequence[str]) -> list[str]:
        """Those of *digests*, which are sorted, that a listing does not show."""
        if not digests:
            return []
        # The key itself would be left out by a listing that begins after it.
        listed = self._objects.keys("sha256", after=checked(digests[0])[:-1])
        last = checked(digests[-1])
        there = {key.rpartition("/")[2] for key in itertools.takewhile(lambda k: k <= last, listed)}
        return [digest for digest in digests if digest not in there]

    # ── taking away ──────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have no blob removed, by any process, while the block runs: a backup copies them."""
        with self._fence.together(HELD):
            yield

    def delete(self, digest: str) -> bool:
        """Remove the blob, here and from at hand; whether it was there."""
        key = checked(digest)
        self._nearby.forget(digest)
        for _ in range(REMOVAL_TRIES):
            try:
                with self._fence.alone([_held(digest)]):
                    there = self.exists(digest)
                    self._objects.delete(key)
            except Taken:
                time.sleep(REMOVAL_SECONDS)
            else:
                return there
        raise StoreUnavailable("a backup is being made; try again after it")

    def delete_older(self, digest: str, moment: float) -> int | None:
        """Remove the blob unless it was stored, or stored again, after *moment*; the bytes freed.

        Between the look and the removal nobody stores it; one that somebody is storing
        now is young.
        """
        key = checked(digest)
        try:
            with self._fence.alone([_held(digest), digest]):
                found = self._objects.find(key)
                if found.stored_at > moment:
                    return None
                self._objects.delete(key)
        except (Absent, Taken):
            return None
        self._nearby.forget(digest)
        return found.size

    def digests(self) -> Iterator[str]:
        """Every blob there is, sorted; other objects are passed over."""
        return filter(is_digest, (key.rpartition("/")[2] for key in self._objects.keys("sha256")))

    def delete_unfinished(self, moment: float) -> int:
        """Remove what was written to see whether that is allowed, by processes that died of it.

        The parts of large objects that were never completed are the bucket's own to
        expire: its rule for incomplete uploads (docs/operations.md).
        """
        removed = 0
        for key in list(self._objects.keys("tried")):
            with contextlib.suppress(Absent):
                if self._objects.find(key).stored_at <= moment:
                    self._objects.delete(key)
                    removed += 1
        return removed

    # ── inside ───────────────────────────────────────────────────────────────

    def _fetch(self, digest: str) -> int:
        """Have it at hand; its bytes. One that is not good is for its reader to hear of."""
        try:
            return len(self.get(digest))
        except (BlobNotFound, BlobCorrupt):
            return 0

    @contextlib.contextmanager
    def _missing_is(self, digest: str) -> Iterator[None]:
        try:
            yield
        except Absent as error:
            self._objects.ping()  # the one object is missing only if the bucket is there
            raise BlobNotFound(digest) from error


def _held(digest: str) -> str:
    return HELD[int(digest[:2], 16)]


def _groups(digests: Collection[str], size: int) -> Iterator[list[str]]:
    some = iter(digests)
    while group := list(itertools.islice(some, size)):
        yield group
