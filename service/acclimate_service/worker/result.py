"""What a recipe hands over when its work is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from acclimate_service.domain.job import JobState
from acclimate_service.domain.model import Origin
from acclimate_service.domain.names import VersionName
from acclimate_service.domain.verdict import Decision
from acclimate_service.training.auto import Outcome
from acclimate_service.worker.judgement import Judgement
from acclimate_service.worker.overlap import NearCopy
from acclimate_service.worker.publish import Candidate
from acclimate_service.worker.suspects import Screened
from acclimate_service.worker.variants import TriedVariant

STATE_OF = {
    Decision.ACCEPT: JobState.SUCCEEDED,
    Decision.REJECT: JobState.REJECTED,
    Decision.INCONCLUSIVE: JobState.INCONCLUSIVE,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A candidate, how it came about, and how it was judged."""

    candidate: Candidate
    judged: Judgement
    outcome: Outcome | None = None  # of training; a registration has none
    screened: Screened | None = None  # as its labels were, before training
    variants: tuple[TriedVariant, ...] = ()  # those asked for, of an accepted candidate
    near_copies: tuple[NearCopy, ...] = ()  # left out, as they show what is held out
    parent: VersionName | None = None
    digests: Mapping[str, str] = field(default_factory=dict)  # of the data, by domain

    @property
    def state(self) -> JobState:
        """The end that follows. Without a verdict nobody was to decide: taken as it came."""
        verdict = self.judged.verdict
        return JobState.SUCCEEDED if verdict is None else STATE_OF[verdict.decision]

    @property
    def origin(self) -> Origin:
        """Why the version exists, if it does."""
        return Origin.REGISTERED if self.judged.verdict is None else Origin.ACCEPTED
