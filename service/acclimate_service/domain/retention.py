"""How long what nobody needs is kept."""

from __future__ import annotations

from dataclasses import dataclass

import pydantic

from acclimate_service.domain.names import BatchName, JobName, VersionName

LONGEST = 100_000  # days


class RetentionPolicy(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What may go. None: kept for ever.

    Whatever these say, nothing goes that is still needed: a version that an alias
    points at or would roll back to, that a job adapts or another version descends
    from; an image of a domain that a model came from or any version was made for.
    """

    versions: int | None = pydantic.Field(default=20, ge=1)  # newest ones kept of each model
    candidate_days: float | None = pydantic.Field(default=30, ge=0, le=LONGEST)  # to be forced
    report_days: float | None = pydantic.Field(default=None, ge=0, le=LONGEST)
    batch_days: float | None = pydantic.Field(default=None, ge=0, le=LONGEST)


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What a retention policy let go, or would."""

    versions: tuple[VersionName, ...]
    candidates: tuple[JobName, ...]  # jobs whose refused candidate can no longer be forced
    reports: tuple[JobName, ...]
    batches: tuple[BatchName, ...]
