"""The pass of a network in training, from a boundary to its logits, compiled or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from acclimate_service.domain.job import EventKind
from acclimate_service.training.compiling import Backend
from acclimate_service.training.network import Network
from acclimate_service.training.run import Run

T = TypeVar("T")
SAID = 300  # characters of what went wrong
Way = Callable[[Tensor], Tensor]


def compiled(network: Network, boundary: int, *, backend: Backend) -> Way:
    """The same pass through torch.compile, for one number of images; compiled when first called.

    The function is compiled, not the network: that keeps its class and its tensors' names.
    Whole or not at all (*fullgraph*), so that none is slow in parts without a word.
    """
    # Kernels chosen by trying would sum in another order from run to run.
    known = backend == "inductor" and "deterministic" in torch._inductor.list_options()  # noqa: SLF001 -- as torch.compile's own documentation names it
    options: dict[str, Any] | None = {"deterministic": True} if known else None
    way: Way = torch.compile(
        lambda x: network.forward_from(boundary, x),
        fullgraph=True, dynamic=False, backend=backend, options=options,
    )  # fmt: skip
    return way


class Forward:
    """One network's training pass, compiled from the second step on where that is wanted.

    The first step goes as ever, and shows how many images fit; the next one is compiled for
    so many. Parts of another size, such as an epoch's last, still go as ever, as each would
    be compiled for anew. A first compiled step that fails is taken again as if it had never
    been tried, and so are all later ones.
    """

    def __init__(self, network: Network, boundary: int, *, compiling: bool, run: Run) -> None:
        self._network = network
        self._boundary = boundary
        self._run = run
        self._images = 0  # of a whole part
        self._wanted = compiling
        self._fits = self._proven = self._used = False
        self._way: Way | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [N, C] of activations at the boundary."""
        if not self._fits:
            self._images = max(self._images, len(x))
        if not (self._wanted and self._fits and len(x) == self._images):
            return self._network.forward_from(self._boundary, x)
        self._used = True
        if self._way is None:
            backend = self._run.compiling.backend
            self._way = compiled(self._network, self._boundary, backend=backend)
        return self._way(x)

    def refit(self) -> None:
        """Let the next step show anew how many images fit."""
        self._images = 0
        self._fits = self._proven = False

    def take(self, step: Callable[[], T]) -> T:
        """Take a step of passes forward and backward; once more if compiling it failed.

        Raises:
            torch.OutOfMemoryError: it does not fit, compiled or not.
        """
        if not self._wanted or not self._fits or self._proven:
            found = step()
            self._fits = True
            return found
        before, began, self._used = _Moment(self._network, self._run), self._run.clock(), False
        try:
            found = step()
        except Exception as error:  # noqa: BLE001 -- whatever it is, training can go on without
            self._give_up(error)
        else:
            if self._used:
                self._proven = True
                self._tell(EventKind.DECISION, "is compiled", self._run.clock() - began)
            return found
        # Outside of the handler, whose traceback holds on to what the step had allocated.
        if self._run.on_cuda:
            torch.cuda.empty_cache()
        before.restore()
        return step()

    def _tell(self, kind: EventKind, what: str, seconds: float) -> None:
        self._run.tell(
            kind,
            f"the pass of {self._images} images {what}: the first step took {seconds:.1f} s",
            images=self._images,
            seconds=seconds,
        )

    def _give_up(self, error: Exception) -> None:
        self._wanted, self._way = False, None
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:SAID]
        self._run.tell(
            EventKind.WARNING,
            f"training goes on uncompiled, from the same weights, as torch.compile failed ({why})",
            error=why,
        )


class _Moment:
    """What a step changes besides gradients: BatchNorm that follows it, and random numbers."""

    def __init__(self, network: Network, run: Run) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        self._device = run.device if run.on_cuda else None
        self._drawn = torch.get_rng_state()
        self._drawn_there = torch.cuda.get_rng_state(run.device) if run.on_cuda else None

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to it."""
        for buffer, kept in self._buffers:
            buffer.copy_(kept)
        torch.set_rng_state(self._drawn)
        if self._device is not None and self._drawn_there is not None:
            torch.cuda.set_rng_state(self._drawn_there, self._device)
