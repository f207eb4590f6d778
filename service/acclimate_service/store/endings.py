"""How a job ends: state, version, verdict and alias, in one transaction or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic
import sqlalchemy as sa

from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.job import EventKind, Failure, Job, JobState, Lease
from acclimate_service.domain.model import Manifest, ModelVersion, Origin
from acclimate_service.domain.names import AliasName, JobName, VersionName
from acclimate_service.store import aliases, events, leases, queue, schema, versions
from acclimate_service.store.engine import Transaction
from acclimate_service.store.versions import NewVersion


@dataclass(frozen=True, kw_only=True)
class Ending:
    """All that a job ends with."""

    state: JobState
    summary: Mapping[str, pydantic.JsonValue]
    failure: Failure | None = None
    report_html: str = ""
    report_json: str = ""
    version: NewVersion | None = None
    promote: AliasName | None = None

    def __post_init__(self) -> None:
        if not self.state.ended:
            raise ValueError(f"{self.state} is not an end")
        if (self.state is JobState.SUCCEEDED) != (self.version is not None):
            raise ValueError("a job has SUCCEEDED if, and only if, it made a version")
        if (self.state is JobState.FAILED) != (self.failure is not None):
            raise ValueError("a job has FAILED if, and only if, it says why")


def finish(tx: Transaction, lease: Lease, ending: Ending) -> Job:
    """End the job. A wish to cancel wins over any other end; repeating changes nothing.

    Raises:
        LeaseLost: another worker holds the job, or it ended otherwise.
    """
    row = queue.find(tx, lease.job, lock=True)
    if _is_repeated(row, lease):
        return queue.job_of(row)
    if tx.row(sa.select(schema.jobs.c.id).where(leases.held(lease))) is None:
        raise leases.lost(lease)
    reports: dict[str, Any] = {
        "summary": dict(ending.summary),
        "report_html": ending.report_html,
        "report_json": ending.report_json,
    }
    if row.cancel_requested or ending.state is JobState.CANCELLED:
        message = "cancelled"
        return queue.conclude(tx, row.id, JobState.CANCELLED, message, **reports)
    if ending.version is None:
        return queue.conclude(
            tx, row.id, ending.state, ending.state.value.lower(), failure=ending.failure, **reports
        )
    draft = queue.job_of(row).draft
    version = versions.create(tx, draft.model, lease.job, ending.version)
    if ending.promote is not None:
        _promote(tx, lease, ending.promote, version)
    return queue.conclude(
        tx, row.id, ending.state, f"made {version.name}", version=version.name.version, **reports
    )


def _is_repeated(row: Any, lease: Lease) -> bool:
    """Whether the job was ended by this very lease: the answer to that call got lost."""
    ended = JobState(row.state).ended
    return ended and (row.worker, row.attempt) == (lease.worker, lease.attempt)


def _promote(tx: Transaction, lease: Lease, alias: AliasName, version: ModelVersion) -> None:
    """Point *alias* at the new version, if it still points at what that was weighed against."""
    found = aliases.find(tx, alias)
    parent = None if version.parent is None else version.parent.version
    if found is None or found.version == parent:
        aliases.set_to(
            tx, alias, version.name, who=str(lease.job), why="the guard accepted this version"
        )
        return
    events.append(
        tx,
        leases.held(lease),
        kind=EventKind.WARNING,
        phase=None,
        message=f"{alias} moved while the job ran, so it was left where it is;"
        f" {version.name} was weighed against {version.parent or 'nothing'}",
        facts={"alias": str(alias), "points_at": found.version, "version": str(version.name)},
    )


def force(tx: Transaction, name: JobName, who: str, why: str) -> ModelVersion:
    """Make a version of what the guard did not accept; repeated, the same one.

    The job's state stays: the guard's answer is not rewritten.

    Raises:
        NotFound: there is no such job.
        InvalidSpec: *who* or *why* is empty, the job did not end REJECTED or
            INCONCLUSIVE, or it kept no candidate.
    """
    if not (who.strip() and why.strip()):
        raise InvalidSpec("overruling the guard needs a name and a reason")
    row = queue.find(tx, name, lock=True)
    made = versions.of_job(tx, name)
    if made is not None and made.origin is Origin.FORCED:
        return made
    job = queue.job_of(row)
    if job.state not in (JobState.REJECTED, JobState.INCONCLUSIVE):
        raise InvalidSpec(f"{name} is {job.state.value}; only what the guard refused is forced")
    try:
        draft = versions.manifest_of(job.summary.get("manifest"), of=f"what {name} made")
    except pydantic.ValidationError as error:
        raise InvalidSpec(f"{name} kept no candidate that could be forced") from error

    def manifest(version: VersionName) -> Manifest:
        return draft.model_copy(
            update={"version": str(version), "job": str(name), "origin": Origin.FORCED}
        )

    new = NewVersion(
        parent=None if draft.parent is None else VersionName.parse(draft.parent),
        origin=Origin.FORCED,
        manifest=manifest,
    )
    return versions.create(tx, job.draft.model, name, new, forced_by=who, forced_reason=why)
