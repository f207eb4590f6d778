"""Copies of blobs that lie far away, in a bounded folder on this machine.

What is read again is read from here, by every process of the machine, and so a server
that starts while the object store is away still finds the versions that it served. A
copy is compared with its digest whenever it is read, so nothing here needs to be durable:
what a crash spoilt is forgotten.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO, cast

import structlog

from acclimate_service.domain.errors import BlobCorrupt
from acclimate_service.store.blobs import is_digest, translated_os_errors, verified

LARGEST = 0.5  # of the budget: what one copy may take of it
SLACK = 1 / 16  # of the budget: written between two looks at what all copies take


class Nearby:
    """The copies in *folder*, the longest unread of which go when they exceed *budget* bytes.

    Thread-safe, and safe between processes: each keeps to the budget by itself. A disk
    that refuses costs the copy, and a line in the log.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = folder
        self._budget = budget
        self._written = budget  # since the last look at the folder: the first write looks
        self._lock = threading.Lock()

    @property
    def budget(self) -> int:
        """Bytes that all copies together may take."""
        return self._budget

    def scratch(self, memory: int) -> BinaryIO:
        """A file without a name on the copies' disk; in memory up to so many bytes.

        Raises:
            StoreUnavailable: the disk refuses.
        """
        with translated_os_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
        return cast("BinaryIO", tempfile.SpooledTemporaryFile(memory, dir=str(self._folder)))

    def __contains__(self, digest: str) -> bool:
        return self._path(digest).is_file()

    def any(self) -> bool:
        """Whether there is a copy of anything."""
        return self._folder.is_dir() and any(
            is_digest(path.name) for path in self._folder.iterdir()
        )

    def get(self, digest: str) -> bytes | None:
        """The verified content, if there is a copy."""
        path = self._path(digest)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() != digest:
            self.forget(digest)
            return None
        return content

    def open(self, digest: str) -> BinaryIO | None:
        """A copy's file, verified, if there is one."""
        path = self._path(digest)
        try:
            file = verified(digest, path.open("rb"))
            os.utime(path)
        except OSError:
            return None
        except BlobCorrupt:
            self.forget(digest)
            return None
        return file

    def keep(self, content: bytes) -> None:
        """Make a copy of *content*, if it is not too large a part of the budget."""
        if len(content) > LARGEST * self._budget:
            return
        path = self._path(hashlib.sha256(content).hexdigest())
        temporary = path.with_name(f"{secrets.token_hex(16)}.part")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self._make_room(len(content))
        except OSError as error:
            structlog.get_logger(__name__).warning("no copy kept at hand", why=error.strerror)

    def forget(self, digest: str) -> None:
        """Remove a copy, if there is one."""
        with contextlib.suppress(OSError):
            self._path(digest).unlink()

    def _path(self, digest: str) -> Path:
        return self._folder / digest

    def _make_room(self, size: int) -> None:
        """Count what was written, and remove the copies read longest ago where it is too much."""
        with self._lock:
            self._written += size
            if self._written < SLACK * self._budget:
                return
            self._written = 0
            found = []
            for path in self._folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    stat = path.stat()
                    found.append((stat.st_mtime, stat.st_size, path))
            surplus = sum(size for _, size, _ in found) - (1 - SLACK) * self._budget
            for _, taken, path in sorted(found):
                if surplus <= 0:
                    break
                path.unlink(missing_ok=True)
                surplus -= taken
