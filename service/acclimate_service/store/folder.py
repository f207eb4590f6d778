"""Blobs in a folder.

    ROOT/sha256/ab/abcd…   the files; the name is the digest of the content
    ROOT/tmp/              what is being written
    ROOT/lock, ROOT/held   see ``_locked`` and ``held``

A file appears under its name whole and durable or not at all: temporary name, fsync,
rename, fsync of the folder.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from acclimate_service.domain.errors import BlobCorrupt, BlobNotFound, StoreUnavailable
from acclimate_service.store.blobs import (
    Blobs,
    BlobWriter,
    checked,
    digest_of,
    is_digest,
    translated_os_errors,
    verified,
)

SYNCS = 8  # files that are synced side by side


class FolderBlobs(Blobs):
    """The blob store of one file system, which several machines may share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = root / "sha256"
        self._temporary = root / "tmp"
        with translated_os_errors():
            # What we make is for this account alone; what is there keeps its rights.
            for folder in (root.parent, root):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._files.mkdir(exist_ok=True)
            self._temporary.mkdir(exist_ok=True)
            (root / "lock").touch()
            (root / "held").touch()
            # All of them beforehand, so that no writer has to wait for another's new
            # folder to be durable.
            for prefix in range(256):
                (self._files / f"{prefix:02x}").mkdir(exist_ok=True)
            sync_folder(self._files)
            sync_folder(root)
        self.threads = concurrent.futures.ThreadPoolExecutor(SYNCS, "blobs")

    def ping(self) -> None:
        """Say whether the folder is there and ours to write."""
        if not os.access(self._temporary, os.R_OK | os.W_OK | os.X_OK):
            raise StoreUnavailable("the blob folder is gone or cannot be written")

    # ── writing ──────────────────────────────────────────────────────────────

    def put_many(self, contents: Sequence[bytes]) -> list[str]:
        """Store several contents, with one fsync of each folder; their digests, in order.

        Files are synced side by side, since the file system then writes its journal
        once for many of them: measured, 64 images took a fifteenth of the time.
        """
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        each = dict(zip(digests, contents, strict=True))
        folders = {self.path(digest).parent for digest in each}
        with translated_os_errors():
            self._at_once(self._put_unsynced, each.items())
            self._at_once(sync_folder, folders)
        return digests

    @contextlib.contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """A writer whose blob becomes visible when the block ends without an error."""
        with contextlib.ExitStack() as stack:
            with translated_os_errors():
                file, path = stack.enter_context(self._temporary_file())
            writer = BlobWriter(file)
            yield writer  # what the block itself raises is its own
            with translated_os_errors():
                _sync(file)
                digest = writer.written()
                if not self._keep(digest):
                    self._name(path, digest)
                sync_folder(self.path(digest).parent)
            writer.digest = digest

    # ── reading ──────────────────────────────────────────────────────────────

    def get(self, digest: str) -> bytes:
        """The content, verified."""
        with self._open(digest) as file, translated_os_errors():
            content = file.read()
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise BlobCorrupt(digest, found)
        return content

    def open(self, digest: str) -> BinaryIO:
        """The file itself, read once to verify it."""
        with translated_os_errors():
            return verified(digest, self._open(digest))

    def size(self, digest: str) -> int:
        """The size in bytes."""
        with translated_os_errors(), self._missing_is(digest):
            return self.path(digest).stat().st_size

    def exists(self, digest: str) -> bool:
        """Whether there is such a blob."""
        path = self.path(digest)
        try:
            with translated_os_errors(), self._missing_is(digest):
                path.stat()
        except BlobNotFound:
            return False
        return True

    def path(self, digest: str) -> Path:
        """Where the blob lies, or would lie. Only a store in a folder has this.

        Raises:
            BlobNotFound: *digest* is not a hex sha256, so nothing can be stored under it.
        """
        return self.root / checked(digest)

    # ── taking away ──────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have no blob removed, by any process, while the block runs: a backup copies them."""
        with self._locked(fcntl.LOCK_SH, "held"):
            yield

    def delete(self, digest: str) -> bool:
        """Remove the blob; whether it was there."""
        with translated_os_errors():
            try:
                with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB, "held"):
                    self.path(digest).unlink()
            except BlockingIOError as error:
                raise StoreUnavailable("a backup is being made; try again after it") from error
            except FileNotFoundError:
                return False
        return True

    def delete_older(self, digest: str, moment: float) -> int | None:
        """Remove the blob unless it was stored, or stored again, after *moment*; the bytes freed.

        Storing what exists renews its age under the same lock, so a blob that an
        upload is about to name is never taken from under it.
        """
        path = self.path(digest)
        with translated_os_errors():
            try:
                with (
                    self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB, "held"),
                    self._locked(fcntl.LOCK_EX),
                ):
                    stat = path.stat()
                    if stat.st_mtime > moment:
                        return None
                    path.unlink()
            except (FileNotFoundError, BlockingIOError):
                return None
            return stat.st_size

    def digests(self) -> Iterator[str]:
        """Every blob there is, folder by folder; other files are passed over."""
        with translated_os_errors():
            for folder in sorted(self._files.iterdir()):
                if folder.is_dir():
                    names = sorted(path.name for path in folder.iterdir())
                    yield from filter(is_digest, names)

    def delete_unfinished(self, moment: float) -> int:
        """Remove what writers that died before *moment* (Unix seconds) left; how many files."""
        removed = 0
        with translated_os_errors():
            for path in self._temporary.iterdir():
                with contextlib.suppress(FileNotFoundError):  # its writer ended just now
                    if path.stat().st_mtime <= moment:
                        path.unlink()
                        removed += 1
        return removed

    # ── inside ───────────────────────────────────────────────────────────────

    def _open(self, digest: str) -> BinaryIO:
        with translated_os_errors(), self._missing_is(digest):
            return self.path(digest).open("rb")

    def _put_unsynced(self, item: tuple[str, bytes]) -> None:
        """Store one content under its digest; its folder is still to be synced."""
        digest, content = item
        if self._keep(digest):
            return
        with self._temporary_file() as (file, path):
            file.write(content)
            _sync(file)
            self._name(path, digest)

    def _keep(self, digest: str) -> bool:
        """Whether the blob is there, whole; if so, it counts as stored just now.

        One that rotted is not kept: the caller holds its true bytes and writes them.
        """
        path = self.path(digest)
        with self._locked(fcntl.LOCK_SH):
            try:
                with path.open("rb") as file:
                    whole = digest_of(file) == digest
                if whole:
                    os.utime(path)
            except FileNotFoundError:
                return False
        return whole

    @contextlib.contextmanager
    def _temporary_file(self) -> Iterator[tuple[BinaryIO, Path]]:
        """A file that is gone when the block ends, unless it was given a name."""
        path = self._temporary / secrets.token_hex(16)
        file = path.open("xb")
        try:
            yield file, path
        finally:
            with contextlib.suppress(OSError):
                file.close()  # what is not synced by now is not wanted either
            path.unlink(missing_ok=True)

    def _name(self, path: Path, digest: str) -> None:
        """Give a synced temporary file its name."""
        path.rename(self.path(digest))

    @contextlib.contextmanager
    def _missing_is(self, digest: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            self.ping()  # the one file is missing only if the folder is there
            raise BlobNotFound(digest) from error

    @contextlib.contextmanager
    def _locked(self, kind: int, file: str = "lock") -> Iterator[None]:
        # A descriptor of its own: flock is held by the open file, not by the thread.
        lock = os.open(self.root / file, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, kind)
            yield
        finally:
            os.close(lock)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in *folder* survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
