"""Rows of activations kept within a budget of bytes, in memory or memory-mapped in a folder.

A *shelf* holds rows of one shape. Its key says everything that the rows depend on
but the picture; a row's key names the picture. In a folder, a shelf is a set of
immutable shards, each a file of raw rows and its index, so that a later job over
the same trunk, in any process, finds them again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float16] | NDArray[np.uint8]
RowType = type[np.float16] | type[np.uint8]

FOLDER = "trunk-cache"  # in a worker's home

# A part grows with every chunk; one that has not for so long was left by a killed trainer.
ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Rows that were written together; ``index`` is their file of keys, if they have one."""

    rows: Rows
    index: Path | None = None


class Shelf:
    """Rows of one shape and type, found by key. Written once, then read any number of times."""

    def __init__(self, cache: Cache, key: str, shape: tuple[int, ...], dtype: RowType) -> None:
        self.key = key
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._cache = cache
        self._places: dict[str, tuple[Shard, int]] = {}
        self._open: list[tuple[list[str], Rows]] = []
        if cache.folder is not None:
            for index in sorted((cache.folder / key).glob("*.json")):
                self._load(index)

    @property
    def row_bytes(self) -> int:
        """The size of one row."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __contains__(self, key: str) -> bool:
        if key not in self._places:
            return False
        self._cache.want(self._places[key][0])
        return True

    def reserve(self, rows: int) -> bool:
        """Whether so many more rows fit into the budget; if so they are counted from now on."""
        return self._cache.reserve(rows * self.row_bytes)

    def write(self, keys: Sequence[str], rows: Rows) -> None:
        """Add rows [len(keys), *shape] for which there is room; readable after :meth:`seal`.

        Raises:
            OSError: the disk is full.
        """
        self._open.append((list(keys), rows))
        if self._cache.folder is not None:
            self._spill()

    def seal(self) -> None:
        """Make everything written readable, and on disk findable by later jobs."""
        if self._cache.folder is not None:
            self._publish()
            return
        for keys, rows in self._open:
            self._place(keys, Shard(rows=rows))
        self._open.clear()

    def abandon(self) -> None:
        """Forget what was written since the last :meth:`seal`."""
        self._open.clear()
        if self._cache.folder is not None:
            (self._folder() / self._part()).unlink(missing_ok=True)

    def read(self, keys: Sequence[str]) -> Rows:
        """A copy of the rows of these keys, [len(keys), *shape].

        Raises:
            KeyError: one of them was never written.
        """
        out = np.empty((len(keys), *self.shape), self.dtype)
        for i, key in enumerate(keys):
            shard, row = self._places[key]
            out[i] = shard.rows[row]
        return out

    def _place(self, keys: Sequence[str], shard: Shard) -> None:
        self._places.update({key: (shard, row) for row, key in enumerate(keys)})

    def _spill(self) -> None:
        # Appended, not written through a mapping: dirty mapped pages would count
        # as the worker's own memory until the kernel writes them back.
        folder = self._folder()
        with (folder / self._part()).open("ab") as file:
            for position, (keys, rows) in enumerate(self._open):
                if rows.size:
                    file.write(np.ascontiguousarray(rows).tobytes())
                    # Not rows[:0]: an empty view would keep all the rows in memory.
                    self._open[position] = (keys, np.empty(0, self.dtype))

    def _publish(self) -> None:
        keys = [key for some, _ in self._open for key in some]
        self._open.clear()
        if not keys:
            return
        folder, part = self._folder(), self._part()
        name = uuid.uuid4().hex
        (folder / part).replace(folder / f"{name}.rows")
        index = folder / f"{name}.json"
        temporary = index.with_suffix(".tmp")
        temporary.write_text(json.dumps({"rows": keys}))
        temporary.replace(index)  # only now does the shard exist for others
        self._load(index, ours=True)

    def _load(self, index: Path, *, ours: bool = False) -> None:
        path = index.with_suffix(".rows")
        try:
            keys = json.loads(index.read_text())["rows"]
            if path.stat().st_size != len(keys) * self.row_bytes:
                return  # cut short by a crash or a full disk: computed again
            rows = np.memmap(path, self.dtype, mode="r", shape=(len(keys), *self.shape))
        except (FileNotFoundError, ValueError):
            return  # another trainer has just removed it, or its index is damaged
        shard = Shard(rows=rows, index=index)
        self._place(keys, shard)
        if ours:
            self._cache.want(shard, size=0)  # which was reserved before it was written

    def _folder(self) -> Path:
        assert self._cache.folder is not None
        folder = self._cache.folder / self.key
        self._cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        return folder

    def _part(self) -> str:
        return f"{os.getpid()}-{id(self)}.part"


class Cache:
    """Shelves that share one budget, in bytes.

    Without a folder the rows live in memory and end with the cache. With one they
    are memory-mapped files, and the budget bounds the folder: the longest unused
    shards make way for new ones, whatever job or trunk they were of.
    """

    def __init__(self, *, budget: int, folder: Path | None = None) -> None:
        self.budget = budget
        self.folder = folder
        self.used = 0  # by this job: what it has written and what it has found
        self._shelves: dict[str, Shelf] = {}
        self._wanted: set[Path] = set()
        if folder is not None:
            _sweep(folder)

    def shelf(self, key: str, shape: tuple[int, ...], dtype: RowType) -> Shelf:
        """The shelf of this key, with the rows that earlier jobs left in the folder."""
        if key not in self._shelves:
            self._shelves[key] = Shelf(self, key, shape, dtype)
        return self._shelves[key]

    def want(self, shard: Shard, *, size: int | None = None) -> None:
        """Note that this job uses a shard: it stays, and *size* (its own) counts."""
        if shard.index is None or shard.index in self._wanted:
            return
        self._wanted.add(shard.index)
        self.used += shard.rows.nbytes if size is None else size
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile; the mapping remains
            os.utime(shard.index)

    def reserve(self, size: int) -> bool:
        """Whether *size* more bytes fit; other jobs' shards are removed if that makes room."""
        if self.used + size > self.budget:
            return False
        self.used += size
        if self.folder is not None:
            self._evict(self.budget - self.used)
        return True

    def _evict(self, allowed: int) -> None:
        """Remove the longest unused shards that this job does not want."""
        assert self.folder is not None
        shards = []
        for index in self.folder.glob("*/*.json"):
            rows = index.with_suffix(".rows")
            with contextlib.suppress(FileNotFoundError):
                if index not in self._wanted:
                    shards.append((index.stat().st_mtime, rows.stat().st_size, index, rows))
        total = sum(size for _, size, _, _ in shards)
        for _, size, index, rows in sorted(shards):
            if total <= allowed:
                return
            index.unlink(missing_ok=True)
            rows.unlink(missing_ok=True)
            total -= size


def _sweep(folder: Path) -> None:
    """Remove what killed trainers left half written, which no index will ever name."""
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            orphan = path.suffix in (".part", ".tmp") or (
                path.suffix == ".rows" and not path.with_suffix(".json").exists()
            )
            if orphan and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def forget(folder: Path, content: str) -> int:
    """Remove every shard in a cache's folder that holds rows of an image; how many.

    A shard is one file, so other images' rows go with it and are computed again.
    """
    removed = 0
    for index in folder.glob("*/*.json"):
        if f'"{content}:' in index.read_text():
            index.unlink(missing_ok=True)
            index.with_suffix(".rows").unlink(missing_ok=True)
            removed += 1
    return removed
