"""Where and how the sessions of a process run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

Provider = Literal["cpu", "cuda", "tensorrt"]

# Three, as each costs a session of its own: see inference/sessions.py.
GPU_SIZES = (1, 8, 32)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how a session runs.

    ``threads`` is how many threads call one session at once, ``intra_op`` how many
    it uses within a call. ``chunk`` is how many images go through the graph together,
    0 for all of a call: one by one is fastest on a CPU (bigger batches leave its
    caches), needs the least memory, and makes an image's answer the same to the bit
    whatever came beside it. ``sizes`` are the only batches that a graph on a GPU ever
    sees, rising to ``chunk``: what is smaller is padded to the next. ``most_bytes`` is what
    one session may take of a GPU's memory, 0 for as much as there is.
    """

    provider: Provider = "cpu"
    device: int = 0
    threads: int = 1
    intra_op: int = 1
    chunk: int = 1
    sizes: tuple[int, ...] = ()
    most_bytes: int = 0

    @classmethod
    def for_throughput(cls, cores: int) -> Self:
        """On a CPU, the most images a second: a thread for each core, each on its own image."""
        return cls(threads=cores)

    @classmethod
    def for_latency(cls, cores: int) -> Self:
        """On a CPU, the soonest answer to one request at a time: all cores on one image."""
        return cls(intra_op=cores)

    @classmethod
    def for_gpu(cls, *, device: int = 0, tensorrt: bool = False) -> Self:
        """On a GPU: two threads, so that one copies while the other computes."""
        provider: Provider = "tensorrt" if tensorrt else "cuda"
        return cls(
            provider=provider, device=device, threads=2, chunk=GPU_SIZES[-1], sizes=GPU_SIZES
        )

    def size_for(self, images: int) -> int:
        """The size of the run that so many images, at most ``chunk``, are padded to."""
        return next((size for size in self.sizes if size >= images), images)
