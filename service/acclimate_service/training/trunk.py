"""The frozen early stages, run once per image and view, their activations kept.

Notation used for tensor shapes: N images, S pixels a side.

What lies under the first trainable stage never changes during a job, so its
activations at that *boundary* are computed once and epochs train only the tail.
They are kept as float16. Whether a row is kept or computed again when it is
needed (because the budget is spent) makes no difference to what is read.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acclimate_service.domain.job import EventKind
from acclimate_service.imaging import prepare
from acclimate_service.training import augment
from acclimate_service.training.augment import Augmentation
from acclimate_service.training.cache import Cache, Rows, Shelf
from acclimate_service.training.dataset import PLAIN, Indices, Listed
from acclimate_service.training.network import Network, normalise
from acclimate_service.training.run import Run

CHUNK = 32  # images that pass the trunk together
Pixels = NDArray[np.uint8]

# Of weights and activations, on every device: see benchmarks/layout.py.
LAYOUT = torch.channels_last
TOLD_EACH = 10.0  # seconds in which filling a cache says how far it is
AHEAD = 2  # chunks that are decoded ahead of the device, beside one for each further reader
_LARGEST = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Some images of a source, each as one of its views."""

    source: Listed
    indices: Indices
    views: Indices

    @classmethod
    def plain(cls, source: Listed) -> Shown:
        """All images, unaugmented."""
        return cls.all(source, [PLAIN])

    @classmethod
    def all(cls, source: Listed, views: Sequence[int]) -> Shown:
        """All images in each of these views."""
        everything = np.arange(len(source), dtype=np.int64)
        return cls(
            source=source,
            indices=np.tile(everything, len(views)),
            views=np.repeat(np.asarray(views, dtype=np.int64), len(source)),
        )

    def __len__(self) -> int:
        return len(self.indices)

    def chunks(self, size: int) -> Iterator[Shown]:
        """Runs of at most *size* of them."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Shown(source=self.source, indices=self.indices[part], views=self.views[part])

    def only(self, keep: Indices) -> Shown:
        """Those at these positions."""
        return Shown(source=self.source, indices=self.indices[keep], views=self.views[keep])

    def labels(self) -> Tensor:
        """Their labels, int64 [N]."""
        return torch.from_numpy(self.source.targets[self.indices])


class Trunk:
    """Reads the activations of images at any stage boundary of one network.

    The network's weights below a boundary must be the same at each reading; a
    boundary's fingerprint is taken when it is first used.
    """

    def __init__(
        self, network: Network, cache: Cache, *, augmentation: Augmentation, views: int, run: Run
    ) -> None:
        self.network = network
        self.augmentation = augmentation
        self.views = views
        self._cache = cache
        self._run = run
        self._shelves: dict[int, Shelf] = {}
        self._chunk = CHUNK
        # Each chunk is decoded by one reader: fewer chunks than readers would leave some idle.
        self._ahead_of_device = AHEAD + run.readers - 1

    # ── keeping ──────────────────────────────────────────────────────────────

    def fill(self, shown: Shown, boundaries: Sequence[int]) -> bool:
        """Compute and keep the activations at each of these boundaries, in one pass.

        Returns:
            Whether they fit. What does not fit is kept nowhere and will be computed
            at each reading.

        Raises:
            Cancelled: the job was asked to stop.
        """
        boundaries = sorted(set(boundaries))
        keys = self._keys(shown)
        shelves = [self.shelf(boundary) for boundary in boundaries]
        lacking = [i for i, key in enumerate(keys) if any(key not in s for s in shelves)]
        lacking = list({keys[i]: i for i in lacking}.values())
        kept = [
            (boundary, shelf)
            for boundary, shelf in zip(boundaries, shelves, strict=True)
            if shelf.reserve(sum(keys[i] not in shelf for i in lacking))
        ]
        if len(kept) < len(boundaries):
            self._run.tell(
                EventKind.DECISION,
                f"{len(lacking)} views do not fit the trunk cache of "
                f"{self._cache.budget >> 20} MiB: each is computed again whenever it is shown",
                views=len(lacking),
                budget_bytes=self._cache.budget,
            )
        if kept and lacking:
            self._compute_and_keep(shown.only(np.asarray(lacking)), kept)
        return len(kept) == len(boundaries)

    def _compute_and_keep(self, shown: Shown, kept: list[tuple[int, Shelf]]) -> None:
        """Fill shelves in one pass; those that the disk has no room for leave the list."""
        done, told = 0, self._run.clock()
        for chunk, pixels in self._decoded(shown.chunks(self._chunk)):
            if (now := self._run.clock()) - told >= TOLD_EACH:
                told = now
                self._tell_progress(done, len(shown))
            done += len(chunk)
            keys = self._keys(chunk)
            below, x = 0, torch.empty(0)
            for boundary, shelf in tuple(kept):
                if boundary == 0:
                    rows: Rows = pixels
                else:
                    x = self._forward(below, boundary, x if below else self._input(chunk, pixels))
                    rows, below = _half(x).cpu().numpy(), boundary
                new = [i for i, key in enumerate(keys) if key not in shelf]
                try:
                    shelf.write([keys[i] for i in new], rows[new])
                except OSError as error:
                    kept.remove((boundary, shelf))
                    self._give_up(shelf, error)
            if not kept:
                return
            self._run.check()
        for boundary, shelf in tuple(kept):
            try:
                shelf.seal()
            except OSError as error:
                kept.remove((boundary, shelf))
                self._give_up(shelf, error)

    def _tell_progress(self, done: int, views: int) -> None:
        told = f"trunk: {done:,} of {views:,} views are computed"
        self._run.tell(EventKind.PHASE, told, done=done, of=views)

    def _give_up(self, shelf: Shelf, error: OSError) -> None:
        shelf.abandon()
        self._run.tell(
            EventKind.WARNING,
            f"the trunk cache cannot be written ({error.strerror}): each view is computed again "
            "whenever it is shown; make room on that disk to train faster",
            error=error.strerror,
        )

    def shelf(self, boundary: int) -> Shelf:
        """Where the activations at a boundary are kept."""
        if boundary not in self._shelves:
            size = self.network.preprocessing.size
            key = fingerprint(self.network, boundary)
            if boundary == 0:
                shelf = self._cache.shelf(key, (size, size, 3), np.uint8)
            else:
                blank = torch.zeros(1, 3, size, size, device=self._run.device)
                row = self._passed(0, boundary, blank)
                assert row is not None, "where one image does not fit, it raises"
                shelf = self._cache.shelf(key, tuple(row.shape[1:]), np.float16)
            self._shelves[boundary] = shelf
        return self._shelves[boundary]

    def _keys(self, shown: Shown) -> list[str]:
        contents = shown.source.contents
        drawn = f"{self.augmentation!r}:{self._run.seed}"
        tag = hashlib.blake2b(drawn.encode(), digest_size=8).hexdigest()
        return [
            f"{contents[i]}:plain" if view == PLAIN else f"{contents[i]}:{tag}:{view}"
            for i, view in zip(shown.indices.tolist(), shown.views.tolist(), strict=True)
        ]

    # ── reading ──────────────────────────────────────────────────────────────

    def read(self, boundary: int, batches: Iterable[Sequence[Shown]]) -> Iterator[Tensor]:
        """The activations at a boundary, batch by batch, in float32 on the device.

        Each batch is one tensor of its parts' images in order. What must be decoded
        is decoded ahead by the reader threads.
        """
        shelf = self.shelf(boundary)
        with ThreadPoolExecutor(self._run.readers) as pool:
            waiting: deque[list[tuple[Shown, Future[Pixels] | None]]] = deque()
            for batch in batches:
                waiting.append([(part, self._ahead(pool, shelf, part)) for part in batch])
                if len(waiting) > self._ahead_of_device:
                    yield self._assemble(boundary, shelf, waiting.popleft())
            while waiting:
                yield self._assemble(boundary, shelf, waiting.popleft())

    def _ahead(self, pool: ThreadPoolExecutor, shelf: Shelf, part: Shown) -> Future[Pixels] | None:
        if all(key in shelf for key in self._keys(part)):
            return None
        return pool.submit(self._pixels, part)

    def _assemble(
        self,
        boundary: int,
        shelf: Shelf,
        parts: list[tuple[Shown, Future[Pixels] | None]],
    ) -> Tensor:
        tensors: list[Tensor] = []
        computed: list[int] = []  # which of them are pixels yet, to pass the trunk together
        for part, decoding in parts:
            if not len(part):
                continue
            rows = shelf.read(self._keys(part)) if decoding is None else decoding.result()
            if boundary == 0:
                tensors.append(self._input(part, rows))
            elif decoding is None:
                tensors.append(self._to_device(torch.from_numpy(rows)).float())
            else:
                computed.append(len(tensors))
                tensors.append(self._input(part, rows))
        if computed:
            x = self._forward(0, boundary, torch.cat([tensors[i] for i in computed]))
            # Rounded as a kept row would be: keeping must change nothing.
            sizes = [len(tensors[i]) for i in computed]
            for i, own in zip(computed, torch.split(_half(x).float(), sizes), strict=True):
                tensors[i] = own
        return self._laid_out(torch.cat(tensors))

    def _laid_out(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            return x.contiguous()
        return x.contiguous(memory_format=LAYOUT)

    # ── computing ────────────────────────────────────────────────────────────

    def _decoded(self, chunks: Iterable[Shown]) -> Iterator[tuple[Shown, Pixels]]:
        with ThreadPoolExecutor(self._run.readers) as pool:
            waiting: deque[tuple[Shown, Future[Pixels]]] = deque()
            for chunk in chunks:
                waiting.append((chunk, pool.submit(self._pixels, chunk)))
                if len(waiting) > self._ahead_of_device:
                    done, pixels = waiting.popleft()
                    yield done, pixels.result()
            while waiting:
                done, pixels = waiting.popleft()
                yield done, pixels.result()

    def _pixels(self, shown: Shown) -> Pixels:
        """The views' pixels [N, S, S, 3], before any change of colour."""
        preprocessing = self.network.preprocessing
        out = np.empty((len(shown), preprocessing.size, preprocessing.size, 3), np.uint8)
        for row, (index, view) in enumerate(zip(shown.indices, shown.views, strict=True)):
            image = shown.source.read(int(index))
            if view == PLAIN:
                out[row] = prepare(image, preprocessing)
            else:
                out[row] = augment.crop(
                    image,
                    self.augmentation,
                    preprocessing,
                    content=shown.source.contents[int(index)],
                    view=int(view),
                    seed=self._run.seed,
                )
        return out

    def _input(self, shown: Shown, pixels: Rows) -> Tensor:
        """Network input [N, 3, S, S] of the views' pixels, colours changed on the device."""
        x = self._to_device(torch.from_numpy(pixels))
        augmented = np.flatnonzero(shown.views != PLAIN)
        if len(augmented):
            changes = [
                augment.recolouring(
                    self.augmentation,
                    content=shown.source.contents[int(index)],
                    view=int(view),
                    seed=self._run.seed,
                )
                for index, view in zip(
                    shown.indices[augmented], shown.views[augmented], strict=True
                )
            ]
            x = x.float()
            where = torch.from_numpy(augmented).to(x.device)
            x[where] = augment.recolour(x[where], changes)
        return self._laid_out(normalise(x, self.network.preprocessing))

    def _forward(self, below: int, boundary: int, x: Tensor) -> Tensor:
        """The activations at *boundary* from those at *below*, so many images at a time.

        Always so many, as a short rest is filled up: libraries choose the order of their
        sums by the number of images, and what one gives must not hang on the others.

        Raises:
            torch.OutOfMemoryError: not even one image fits.
        """
        passed: list[Tensor] = []
        begin = 0
        while begin < len(x):
            part = x[begin : begin + self._chunk]
            rows = self._passed(below, boundary, self._filled_up(part))
            if rows is None:
                self._halve()
                continue
            passed.append(rows[: len(part)])
            begin += len(part)
        return passed[0] if len(passed) == 1 else torch.cat(passed)

    def _passed(self, below: int, boundary: int, x: Tensor) -> Tensor | None:
        """All of *x* at once; None where that takes more memory than there is."""
        stages = self.network.stages[below:boundary]
        for stage in stages:
            stage.eval()
        try:
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=self._run.on_cuda):
                for stage in stages:
                    x = stage(x)
                return x
        except torch.OutOfMemoryError:
            if len(x) == 1:
                raise
            return None

    def _filled_up(self, part: Tensor) -> Tensor:
        missing = self._chunk - len(part)
        if not missing:
            return part
        return self._laid_out(torch.cat([part, part.new_zeros(missing, *part.shape[1:])]))

    def _halve(self) -> None:
        self._chunk //= 2
        if self._run.on_cuda:
            torch.cuda.empty_cache()
        self._run.tell(
            EventKind.WARNING,
            f"out of memory: images now pass the trunk in parts of {self._chunk}",
            chunk=self._chunk,
        )

    def _to_device(self, x: Tensor) -> Tensor:
        if not self._run.on_cuda:
            return x
        return x.pin_memory().to(self._run.device, non_blocking=True)


def fingerprint(network: Network, boundary: int) -> str:
    """The sha256 of all that activations at a boundary depend on, but the picture."""
    digest = hashlib.sha256(network.preprocessing.model_dump_json().encode())
    # How they are computed counts: another device, another order of sums rounds otherwise.
    device = next(network.parameters()).device.type
    way = f"{network.architecture} {boundary} folded on {device}"
    digest.update(way.encode() if boundary else b"pixels")
    depths = network.depths()
    for name, tensor in sorted(network.state_dict().items()):
        if depths[name] < boundary:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _half(x: Tensor) -> Tensor:
    """float16, saturating: an overflow to infinity would poison every later step."""
    return x.float().clamp(-_LARGEST, _LARGEST).half()
