"""The loss of a step and its gradients, in parts that fit the memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from acclimate_service.domain.job import EventKind
from acclimate_service.training.forward import Forward
from acclimate_service.training.network import Network
from acclimate_service.training.run import Run
from acclimate_service.training.strategies import Strategy

TEMPERATURE = 2.0  # of the distilled answers


class Objective:
    """What a strategy minimises over a batch of activations at the trunk's boundary.

    ``teacher`` is the incumbent, where its answers on new images are distilled.
    ``micro_batch`` halves each time that memory runs out. With BatchNorm frozen, parts
    add up to exactly the whole. With *compiling*, whole parts of it are.
    """

    def __init__(
        self,
        network: Network,
        strategy: Strategy,
        *,
        teacher: Network | None,
        boundary: int,
        micro_batch: int,
        run: Run,
        compiling: bool = False,
    ) -> None:
        self.network = network
        self.strategy = strategy
        self.boundary = boundary
        self.micro_batch = micro_batch
        self.run = run
        self.teacher = teacher
        self.forward = Forward(network, boundary, compiling=compiling, run=run)

    def gradients(
        self, x: Tensor, labels: Tensor, *, new: int, remembered: Tensor | None = None
    ) -> tuple[float, int]:
        """Leave the gradients of one step's mean loss in the network.

        Args:
            x: activations at the boundary, the *new* images' before the replayed ones'.
            labels: int64 [N].
            remembered: the incumbent's logits [N - new, C] for the replayed images,
                where those are distilled.

        Returns:
            The loss in nats, and how many of the new images were answered right.

        Raises:
            torch.OutOfMemoryError: not even one image fits.
        """
        while True:
            try:
                return self.forward.take(
                    lambda: self._accumulate(x, labels, new=new, remembered=remembered)
                )
            except torch.OutOfMemoryError:
                if self.micro_batch <= 1:
                    raise
                self._halve()

    def _accumulate(
        self, x: Tensor, labels: Tensor, *, new: int, remembered: Tensor | None
    ) -> tuple[float, int]:
        self.network.zero_grad(set_to_none=True)
        total = torch.zeros((), device=x.device)
        right = torch.zeros((), dtype=torch.long, device=x.device)
        for start in range(0, len(x), self.micro_batch):
            part = slice(start, start + self.micro_batch)
            fresh = max(0, min(new - start, len(labels[part])))
            wanted = None
            if remembered is not None:
                before = max(0, start - new)
                wanted = remembered[before : before + len(labels[part]) - fresh]
            logits, loss = self._loss(x[part], labels[part], fresh=fresh, remembered=wanted)
            share = len(logits) / len(x)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * share
            right += (logits[:fresh].argmax(dim=1) == labels[part][:fresh]).sum()
        return float(total), int(right)

    def _loss(
        self, x: Tensor, labels: Tensor, *, fresh: int, remembered: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with self._half():
            logits = self.forward(x).float()
        smoothing = self.strategy.label_smoothing
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        if self.teacher is not None and fresh:
            with torch.no_grad(), self._half():
                wanted = self.teacher.forward_from(self.boundary, x[:fresh]).float()
            held = _divergence(logits[:fresh], wanted, known=self.network.known)
            loss = loss + self.strategy.distil * held.sum() / len(x)
        if remembered is not None and len(remembered):
            held = _divergence(logits[fresh:], remembered, known=self.network.known)
            loss = loss + self.strategy.distil_replay * held.sum() / len(x)
        return logits, loss

    def _half(self) -> torch.autocast:
        return torch.autocast("cuda", torch.bfloat16, enabled=self.run.on_cuda)

    def _halve(self) -> None:
        self.micro_batch = max(1, self.micro_batch // 2)
        self.forward.refit()
        if self.run.on_cuda:
            torch.cuda.empty_cache()
        self.run.tell(
            EventKind.WARNING,
            f"out of memory: each step now goes through in parts of {self.micro_batch} images",
            micro_batch=self.micro_batch,
        )


def _divergence(logits: Tensor, wanted: Tensor, *, known: int) -> Tensor:
    """LwF (Li and Hoiem, arXiv:1606.09282): T^2 KL(incumbent || candidate), for each image [N].

    Over the *known* labels only: of those that are new the incumbent has no opinion.
    """
    divergence = functional.kl_div(
        functional.log_softmax(logits[:, :known] / TEMPERATURE, dim=1),
        functional.log_softmax(wanted[:, :known] / TEMPERATURE, dim=1),
        reduction="none",
        log_target=True,
    )
    return TEMPERATURE**2 * divergence.sum(dim=1)
