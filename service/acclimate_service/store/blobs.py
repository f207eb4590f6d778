"""Files by the sha256 of their content: what every place that holds them promises.

    sha256/ab/abcd…   the files; the name is the digest of the content

A file appears under its name whole and durable or not at all, is compared with its name
when it is read, and may be stored again, which heals it and renews its age. Two writers
of the same content are harmless. The places: :mod:`.folder` and :mod:`.bucket`.
"""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import errno
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from acclimate_service.domain.errors import BlobCorrupt, BlobNotFound, StoreFull, StoreUnavailable

CHUNK = 1 << 20  # bytes read at a time
T = TypeVar("T")
R = TypeVar("R")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A place in an object store, and where and how much of it is kept at hand."""

    url: str  # s3://BUCKET/PREFIX, gs://… or az://…
    cache: Path
    cache_bytes: int


class BlobWriter:
    """A blob that is written piece by piece, in bounded memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0
        self.digest = ""  # known, and the blob visible, once the ``with`` block has ended

    def write(self, chunk: bytes) -> None:
        """Append *chunk*.

        Raises:
            StoreUnavailable: the disk is full or refuses.
        """
        with translated_os_errors():
            self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def written(self) -> str:
        """The digest of what was written so far."""
        return self._hash.hexdigest()


class Blobs(abc.ABC):
    """A blob store. Thread-safe, and safe between processes."""

    threads: concurrent.futures.ThreadPoolExecutor  # for what is done side by side

    @abc.abstractmethod
    def ping(self) -> None:
        """Say whether blobs can be reached here.

        Raises:
            StoreUnavailable: the place is gone or refuses.
        """

    def close(self) -> None:
        """End the threads."""
        self.threads.shutdown()

    # ── writing ──────────────────────────────────────────────────────────────

    def put(self, content: bytes) -> str:
        """Store *content*; its digest.

        Raises:
            StoreUnavailable: the place is full or refuses.
        """
        return self.put_many([content])[0]

    @abc.abstractmethod
    def put_many(self, contents: Sequence[bytes]) -> list[str]:
        """Store several contents side by side; their digests, in order.

        Raises:
            StoreUnavailable: the place is full or refuses. Some may be stored.
        """

    @abc.abstractmethod
    def writer(self) -> AbstractContextManager[BlobWriter]:
        """A writer whose blob becomes visible when the block ends without an error.

        Raises:
            StoreUnavailable: the place is full or refuses.
        """

    # ── reading ──────────────────────────────────────────────────────────────

    @abc.abstractmethod
    def get(self, digest: str) -> bytes:
        """The content, verified.

        Raises:
            BlobNotFound: there is no such blob.
            BlobCorrupt: the stored bytes are not what they are named by.
            StoreUnavailable: the place refuses.
        """

    @abc.abstractmethod
    def open(self, digest: str) -> BinaryIO:
        """A file of the verified content, for reading, in bounded memory.

        Raises:
            BlobNotFound: there is no such blob.
            BlobCorrupt: the stored bytes are not what they are named by.
            StoreUnavailable: the place refuses.
        """

    def verify(self, digest: str) -> None:
        """Read the whole blob once and compare, in bounded memory.

        Raises:
            BlobNotFound: there is no such blob.
            BlobCorrupt: the stored bytes are not what they are named by.
            StoreUnavailable: the place refuses.
        """
        self.open(digest).close()

    def fetch(self, digests: Iterable[str]) -> None:
        """Have these at hand, since they are about to be read one by one.

        A place that is far away gets them side by side, so that not every read waits.

        Raises:
            StoreUnavailable: the place refuses.
        """
        del digests  # where nothing is far away, all are at hand

    @abc.abstractmethod
    def size(self, digest: str) -> int:
        """The size in bytes.

        Raises:
            BlobNotFound: there is no such blob.
        """

    @abc.abstractmethod
    def exists(self, digest: str) -> bool:
        """Whether there is such a blob.

        Raises:
            StoreUnavailable: the place is gone or refuses, which says nothing of the blob.
        """

    def absent(self, digests: Sequence[str]) -> list[str]:
        """Those of *digests*, which are sorted, that are not there."""
        return [digest for digest in digests if not self.exists(digest)]

    # ── taking away ──────────────────────────────────────────────────────────

    @abc.abstractmethod
    def held(self) -> AbstractContextManager[None]:
        """Have no blob removed, by any process, while the block runs: a backup copies them."""

    @abc.abstractmethod
    def delete(self, digest: str) -> bool:
        """Remove the blob. Whoever calls this knows that nothing names it.

        Returns:
            Whether it was there.

        Raises:
            StoreUnavailable: a backup is being made, or the place refuses.
        """

    @abc.abstractmethod
    def delete_older(self, digest: str, moment: float) -> int | None:
        """Remove the blob unless it was stored, or stored again, after *moment* (Unix seconds).

        A blob that is being stored while this looks at it is never taken away.

        Returns:
            The bytes freed; None if it stays, as everything does while a backup is made.
        """

    @abc.abstractmethod
    def digests(self) -> Iterator[str]:
        """Every blob there is, sorted; other files are passed over."""

    @abc.abstractmethod
    def delete_unfinished(self, moment: float) -> int:
        """Remove what writers that died before *moment* (Unix seconds) left; how many files."""

    # ── inside ───────────────────────────────────────────────────────────────

    def _at_once(self, work: Callable[[T], R], items: Collection[T]) -> list[R]:
        """What *work* makes of every item, side by side; after an error none is begun any more.

        None is under way any more when this returns or raises.
        """
        if len(items) == 1:
            return [work(next(iter(items)))]
        done = [self.threads.submit(work, item) for item in items]
        concurrent.futures.wait(done, return_when=concurrent.futures.FIRST_EXCEPTION)
        begun = [future for future in done if not future.cancel()]
        concurrent.futures.wait(begun)
        return [future.result() for future in begun]


def checked(digest: str) -> str:
    """*digest*, as the name of a blob below its place's root.

    Raises:
        BlobNotFound: it is not a hex sha256, so nothing can be stored under it.
    """
    if not is_digest(digest):
        raise BlobNotFound(digest[:80])
    return f"sha256/{digest[:2]}/{digest}"


def is_digest(name: str) -> bool:
    """Whether a file of this name can be a blob."""
    return _DIGEST.fullmatch(name) is not None


def verified(digest: str, file: BinaryIO) -> BinaryIO:
    """*file*, at its beginning; closed if its content has another digest.

    Raises:
        BlobCorrupt: it has.
    """
    found = digest_of(file)
    if found != digest:
        file.close()
        raise BlobCorrupt(digest, found)
    file.seek(0)
    return file


def digest_of(file: BinaryIO) -> str:
    """The sha256 of the rest of *file*."""
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def translated_os_errors() -> Iterator[None]:
    """Raise what the file system says as what it means for a caller."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull("the blob folder") from error
        # The path is for the log: it means nothing to a client and tells it our folders.
        told = f"the blob folder refuses: {error.strerror}"
        raise StoreUnavailable(told, detail=error.filename or "") from error
