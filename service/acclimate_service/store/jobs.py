"""Jobs as the rest of the service sees them: a durable queue with leases and a story."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Iterable, Mapping

import pydantic

from acclimate_service.domain.access import EVERYTHING, Scope
from acclimate_service.domain.errors import BlobNotFound
from acclimate_service.domain.job import (
    EventKind,
    Failure,
    Job,
    JobDraft,
    JobEvent,
    JobState,
    Lease,
    Phase,
)
from acclimate_service.domain.model import Manifest, Reduced
from acclimate_service.domain.names import AliasName, DomainName, JobName, ModelName, VersionName
from acclimate_service.store import endings, events, leases, looks, queue
from acclimate_service.store.blobs import Blobs
from acclimate_service.store.endings import Ending
from acclimate_service.store.engine import Database
from acclimate_service.store.leases import Checkpoint
from acclimate_service.store.looks import Look
from acclimate_service.store.pages import Page
from acclimate_service.store.queue import Census
from acclimate_service.store.versions import NewVersion


class Jobs:
    """The jobs of a store. Every method is one transaction."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    # ── for whoever asks for jobs ────────────────────────────────────────────

    def enqueue(
        self,
        draft: JobDraft,
        *,
        request_id: str,
        limit: int | None = None,
        facts: Mapping[str, pydantic.JsonValue] | None = None,
    ) -> Job:
        """See :func:`~acclimate_service.store.queue.enqueue`."""
        return self._database.write(queue.enqueue, draft, request_id, limit, facts or {})

    def get(self, name: JobName) -> Job:
        """See :func:`~acclimate_service.store.queue.get`."""
        return self._database.read(queue.get, name)

    def by_request(self, request_id: str) -> Job | None:
        """See :func:`~acclimate_service.store.queue.by_request`."""
        return self._database.read(queue.by_request, request_id)

    def list(
        self,
        *,
        model: ModelName | None = None,
        domain: DomainName | None = None,
        within: Scope = EVERYTHING,
        states: Collection[JobState] = (),
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Job]:
        """See :func:`~acclimate_service.store.queue.page`."""
        return self._database.read(
            queue.page, model, domain, within, states, page_size=page_size, token=page_token
        )

    def depth(self) -> dict[JobState, int]:
        """See :func:`~acclimate_service.store.queue.depth`."""
        return self._database.read(queue.depth)

    def census(self) -> Census:
        """See :func:`~acclimate_service.store.queue.census`."""
        return self._database.read(queue.census)

    def request_cancel(self, name: JobName) -> Job:
        """See :func:`~acclimate_service.store.queue.request_cancel`."""
        return self._database.write(queue.request_cancel, name)

    def events(self, name: JobName, after: int = 0, limit: int = 1000) -> builtins.list[JobEvent]:
        """See :func:`~acclimate_service.store.events.after`."""
        return self._database.read(events.after, name, after, limit)

    def looks(self, model: ModelName, target: DomainName | None) -> int:
        """See :func:`~acclimate_service.store.looks.looks`."""
        return self._database.read(looks.looks, model, target)

    def variant_looks(
        self, model: ModelName, target: DomainName | None, variant: Reduced, *, before: int
    ) -> int:
        """See :func:`~acclimate_service.store.looks.variant_looks`."""
        return self._database.read(looks.variant_looks, model, target, variant, before)

    # ── for workers ──────────────────────────────────────────────────────────

    def claim(
        self, worker: str, *, lease_seconds: float, max_attempts: int
    ) -> tuple[Job, Lease] | None:
        """See :func:`~acclimate_service.store.leases.claim`."""
        return self._database.write(leases.claim, worker, lease_seconds, max_attempts)

    def heartbeat(self, lease: Lease, lease_seconds: float) -> Job:
        """See :func:`~acclimate_service.store.leases.heartbeat`."""
        return self._database.write(leases.heartbeat, lease, lease_seconds)

    def release(self, lease: Lease, *, spent: bool = False, why: str = "") -> None:
        """See :func:`~acclimate_service.store.leases.release`."""
        self._database.write(leases.release, lease, spent=spent, why=why)

    def event(
        self,
        lease: Lease,
        kind: EventKind,
        phase: Phase | None,
        message: str,
        facts: Mapping[str, pydantic.JsonValue] | None = None,
    ) -> JobEvent:
        """See :func:`~acclimate_service.store.leases.record_event`."""
        return self._database.write(
            leases.record_event,
            lease,
            kind=kind,
            phase=phase,
            message=message,
            facts=facts or {},
        )

    def enter(self, lease: Lease, phase: Phase) -> None:
        """See :func:`~acclimate_service.store.leases.enter`."""
        self._database.write(leases.enter, lease, phase)

    def checkpoint(
        self,
        lease: Lease,
        phase: Phase | str,
        record: Mapping[str, pydantic.JsonValue],
        blobs: Mapping[str, str] | None = None,
    ) -> None:
        """See :func:`~acclimate_service.store.leases.checkpoint`.

        Raises:
            BlobNotFound: one of *blobs* is not in the blob store: rows follow files.
        """
        key = phase.value if isinstance(phase, Phase) else phase
        self._check_blobs((blobs or {}).values())
        self._database.write(leases.checkpoint, lease, key, record, blobs or {})

    def checkpoints(self, name: JobName) -> dict[str, Checkpoint]:
        """See :func:`~acclimate_service.store.leases.checkpoints`."""
        return self._database.read(leases.checkpoints, name)

    def look(self, lease: Lease, domains: Collection[DomainName], *, asked: str) -> Look:
        """See :func:`~acclimate_service.store.looks.take`."""
        return self._database.write(looks.take, lease, domains, asked)

    def finish(
        self,
        lease: Lease,
        *,
        state: JobState,
        summary: Mapping[str, pydantic.JsonValue],
        failure: Failure | None = None,
        report_html: str = "",
        report_json: str = "",
        version: NewVersion | None = None,
        promote: AliasName | None = None,
    ) -> Job:
        """See :func:`~acclimate_service.store.endings.finish`.

        Raises:
            BlobNotFound: a report or an artifact is not in the blob store.
        """
        self._check_blobs(digest for digest in (report_html, report_json) if digest)
        ending = Ending(
            state=state,
            summary=summary,
            failure=failure,
            report_html=report_html,
            report_json=report_json,
            version=None if version is None else self._with_files(version),
            promote=promote,
        )
        return self._database.write(endings.finish, lease, ending)

    def _with_files(self, version: NewVersion) -> NewVersion:
        """*version*, whose manifest is only taken if the files it names are there."""

        def manifest(name: VersionName) -> Manifest:
            built = version.manifest(name)
            self._check_blobs(built.artifacts.digests)
            return built

        return NewVersion(parent=version.parent, origin=version.origin, manifest=manifest)

    def _check_blobs(self, digests: Iterable[str]) -> None:
        for digest in digests:
            if not self._blobs.exists(digest):
                raise BlobNotFound(digest)
