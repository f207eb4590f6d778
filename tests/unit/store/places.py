"""Both places of blobs, and what can be done to them behind their backs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.objectstore import ObjectStore

from acclimate_service.store.blobs import Blobs, checked
from acclimate_service.store.bucket import BucketBlobs
from acclimate_service.store.fence import FileFence
from acclimate_service.store.folder import FolderBlobs
from acclimate_service.store.nearby import Nearby
from acclimate_service.store.objects import Objects

BUDGET = 2**20


@dataclass
class FolderPlace:
    """A folder."""

    blobs: FolderBlobs

    def spoil(self, digest: str, content: bytes) -> None:
        """Let the stored bytes be others."""
        self.blobs.path(digest).write_bytes(content)

    def add_stranger(self, key: str) -> None:
        """A file that is no blob."""
        (self.blobs.root / key).write_text("hello")

    def stored_at(self, digest: str) -> float:
        """Unix seconds."""
        return self.blobs.path(digest).stat().st_mtime

    def grow_older(self) -> None:
        """Have what is stored later be younger by more than the clock's grain."""
        time.sleep(0.02)

    def unfinished(self) -> list[str]:
        """What is there of blobs that did not appear."""
        return [path.name for path in (self.blobs.root / "tmp").iterdir()]

    def again(self) -> Blobs:
        """As another process would open it."""
        return FolderBlobs(self.blobs.root)


@dataclass
class BucketPlace:
    """A bucket of *store*, with copies at hand in *home*."""

    store: ObjectStore
    url: str
    home: Path
    blobs: BucketBlobs

    def spoil(self, digest: str, content: bytes) -> None:
        """Let the stored bytes be others."""
        self.store.overwrite(self.url, checked(digest), content)

    def add_stranger(self, key: str) -> None:
        """An object that is no blob."""
        self.store.overwrite(self.url, key, b"hello")

    def stored_at(self, digest: str) -> float:
        """Unix seconds."""
        return Objects(self.url).find(checked(digest)).stored_at

    def grow_older(self) -> None:
        """Have what is stored later be younger by more than the clock's grain."""
        time.sleep(1.1)

    def unfinished(self) -> list[str]:
        """What is there of blobs that did not appear."""
        return list(Objects(self.url).keys("tried"))

    def again(self) -> Blobs:
        """As a process of another machine would open it."""
        return opened(self.url, self.home / "another")


def opened(url: str, home: Path) -> BucketBlobs:
    """The blobs of a bucket; those who share a *home*'s parent share its fence."""
    home.mkdir(exist_ok=True)
    return BucketBlobs(
        Objects(url), fence=FileFence(home.parent / "fence"), nearby=Nearby(home / "near", BUDGET)
    )


def age(path: Path) -> None:
    """Make a file look as if it were stored long ago."""
    os.utime(path, (1000, 1000))
