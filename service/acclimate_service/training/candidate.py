"""What one strategy makes of a network, and how much effort it may spend on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import pydantic

from acclimate_service.training.diagnosis import Epoch, Finding
from acclimate_service.training.optimiser import State


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long, in what portions and how fast to train.

    ``rate`` multiplies every rate of a strategy; theirs suit pretrained networks.
    """

    epochs: int = 15
    batch_size: int = 32
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What one strategy made of the network.

    ``state`` holds the tensors of the trained stages and the head, and no others;
    ``best_epoch`` counts from 1 the epoch that they come from.
    """

    __pydantic_config__: ClassVar = pydantic.ConfigDict(arbitrary_types_allowed=True)  # tensors

    strategy: str
    stages: tuple[str, ...]
    boundary: int
    state: State
    history: tuple[Epoch, ...]
    findings: tuple[Finding, ...]
    best_epoch: int
    micro_batch: int
    seconds: float

    def summary(self) -> dict[str, pydantic.JsonValue]:
        """For a checkpoint or a report: everything but the tensors."""
        return {
            "strategy": self.strategy,
            "stages": list(self.stages),
            "boundary": self.boundary,
            "best_epoch": self.best_epoch,
            "micro_batch": self.micro_batch,
            "seconds": self.seconds,
            "history": [asdict(epoch) for epoch in self.history],
            "findings": [
                {**asdict(finding), "failure": finding.failure.value} for finding in self.findings
            ],
        }

    @classmethod
    def resumed(cls, summary: dict[str, pydantic.JsonValue], state: State) -> Candidate:
        """The candidate whose :meth:`summary` and state were kept in a checkpoint."""
        return pydantic.TypeAdapter(cls).validate_python({**summary, "state": state})
