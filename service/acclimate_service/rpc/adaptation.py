"""``AdaptationService``: domains, uploads, jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, ParamSpec, TypeVar

import grpc.aio
import structlog
from google.protobuf import empty_pb2

from acclimate.v1 import adaptation_pb2 as pb
from acclimate.v1 import adaptation_pb2_grpc as pb_grpc
from acclimate_service import tracing
from acclimate_service.domain import strategy_form
from acclimate_service.domain.errors import (
    AliasNotFound,
    InvalidSpec,
    NoIncumbent,
    NotEnoughExamples,
    NotReady,
    RequestIdReused,
)
from acclimate_service.domain.examples import Domain, Split
from acclimate_service.domain.job import Job, JobDraft, JobKind, JobState
from acclimate_service.domain.model import PRODUCTION, Model
from acclimate_service.domain.names import (
    AliasName,
    BatchName,
    DomainName,
    JobName,
    ModelName,
    VersionName,
)
from acclimate_service.rpc import convert_jobs as convert
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.caller import caller
from acclimate_service.rpc.chunks import blob_chunks
from acclimate_service.rpc.upload import Uploads
from acclimate_service.rpc.watch import Watchers
from acclimate_service.store import Store

P = ParamSpec("P")
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

_NAMED: Final = 5  # labels that an error names before it only counts


class AdaptationServicer(pb_grpc.AdaptationServiceServicer):
    """Converts, acts on the store in *lane* (on whole files in *files*), converts back."""

    def __init__(
        self,
        store: Store,
        *,
        lane: Lane,
        files: Lane,
        uploads: Uploads,
        watchers: Watchers,
        max_queued_jobs: int,
    ) -> None:
        self._store = store
        self._lane = lane
        self._files = files
        self._uploads = uploads
        self._watchers = watchers
        self._max_queued_jobs = max_queued_jobs

    # ── domains ──────────────────────────────────────────────────────────────

    async def CreateDomain(self, request: pb.CreateDomainRequest, context: Context) -> pb.Domain:
        new = convert.new_domain(request)
        await self._run(
            self._store.domains.create, new.name, new.labels, new.description, new.request_id
        )
        return await self._run(self._domain, new.name)

    async def GetDomain(self, request: pb.GetDomainRequest, context: Context) -> pb.Domain:
        return await self._run(self._domain, DomainName.parse(request.name))

    async def ListDomains(
        self, request: pb.ListDomainsRequest, context: Context
    ) -> pb.ListDomainsResponse:
        page = await self._run(
            self._store.domains.list,
            request.page_size,
            request.page_token,
            within=caller().domains,
        )
        # Without counts: a list must not read every example there is.
        return pb.ListDomainsResponse(
            domains=[convert.domain(item, None) for item in page.items],
            next_page_token=page.next_token,
        )

    async def DeleteDomain(
        self, request: pb.DeleteDomainRequest, context: Context
    ) -> empty_pb2.Empty:
        await self._run(self._store.domains.delete, DomainName.parse(request.name))
        return empty_pb2.Empty()

    def _domain(self, name: DomainName) -> pb.Domain:
        return convert.domain(self._store.domains.get(name), self._store.domains.counts(name))

    # ── uploads ──────────────────────────────────────────────────────────────

    async def UploadBatch(
        self, request_iterator: AsyncIterator[pb.UploadBatchRequest], context: Context
    ) -> AsyncIterator[pb.UploadBatchResponse]:
        async for response in self._uploads.take(request_iterator):
            yield response

    async def GetLabeledBatch(
        self, request: pb.GetLabeledBatchRequest, context: Context
    ) -> pb.LabeledBatch:
        name = BatchName.parse(request.name)
        return convert.batch(await self._run(self._store.domains.get_batch, name))

    async def ListLabeledBatches(
        self, request: pb.ListLabeledBatchesRequest, context: Context
    ) -> pb.ListLabeledBatchesResponse:
        page = await self._run(
            self._store.domains.list_batches,
            DomainName.parse(request.parent),
            request.page_size,
            request.page_token,
        )
        return pb.ListLabeledBatchesResponse(
            batches=[convert.batch(item) for item in page.items], next_page_token=page.next_token
        )

    async def DeleteLabeledBatch(
        self, request: pb.DeleteLabeledBatchRequest, context: Context
    ) -> empty_pb2.Empty:
        await self._run(self._store.domains.delete_batch, BatchName.parse(request.name))
        return empty_pb2.Empty()

    # ── jobs ─────────────────────────────────────────────────────────────────

    async def CreateAdaptationJob(
        self, request: pb.CreateAdaptationJobRequest, context: Context
    ) -> pb.AdaptationJob:
        new = convert.new_job(request)
        return await self._run(self._create, new)

    def _create(self, new: convert.NewJob) -> pb.AdaptationJob:
        # Written at once, on this thread: what was done must not be refused by a full lane.
        job = self._accept(new)
        structlog.get_logger(__name__).info(
            "job accepted", job=str(job.name), kind=job.draft.kind.value, model=str(new.model)
        )
        return convert.job(job)

    def _accept(self, new: convert.NewJob) -> Job:
        # Before anything is decided: what the repeated request would be decided to be
        # may have changed since, but it is the same request.
        if new.request_id and (known := self._store.jobs.by_request(new.request_id)) is not None:
            if not _asks_for(new, known.draft):
                raise RequestIdReused(new.request_id)
            return known
        return self._store.jobs.enqueue(
            draft_of(self._store, new),
            request_id=new.request_id,
            limit=self._max_queued_jobs,
            facts=tracing.facts(),
        )

    async def GetAdaptationJob(
        self, request: pb.GetAdaptationJobRequest, context: Context
    ) -> pb.AdaptationJob:
        name = JobName.parse(request.name)
        return await self._run(lambda: convert.job(self._store.jobs.get(name)))

    async def ListAdaptationJobs(
        self, request: pb.ListAdaptationJobsRequest, context: Context
    ) -> pb.ListAdaptationJobsResponse:
        return await self._run(self._list_jobs, request)

    def _list_jobs(self, request: pb.ListAdaptationJobsRequest) -> pb.ListAdaptationJobsResponse:
        # Written here, too: a judged job's summary takes milliseconds, and there may be a
        # thousand on a page.
        page = self._store.jobs.list(
            model=ModelName.parse(request.model) if request.model else None,
            domain=DomainName.parse(request.domain) if request.domain else None,
            within=caller().models,
            states=convert.job_states(request.state),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListAdaptationJobsResponse(
            jobs=[convert.job(item) for item in page.items], next_page_token=page.next_token
        )

    async def CancelAdaptationJob(
        self, request: pb.CancelAdaptationJobRequest, context: Context
    ) -> pb.AdaptationJob:
        name = JobName.parse(request.name)
        return await self._run(lambda: convert.job(self._store.jobs.request_cancel(name)))

    async def WatchAdaptationJob(
        self, request: pb.WatchAdaptationJobRequest, context: Context
    ) -> AsyncIterator[pb.JobEvent]:
        name = JobName.parse(request.name)
        if not 0 <= request.after_sequence < 2**62:
            raise InvalidSpec("after_sequence must not be negative", field="after_sequence")
        async for event, state in self._watchers.follow(name, request.after_sequence):
            yield convert.event(event, state)

    async def GetReport(
        self, request: pb.GetReportRequest, context: Context
    ) -> AsyncIterator[pb.GetReportResponse]:
        if request.format not in ("", "html", "json"):
            raise InvalidSpec('format must be "html" or "json"', field="format")
        job = await self._run(self._store.jobs.get, JobName.parse(request.name))
        digest = job.report_json if request.format == "json" else job.report_html
        if not digest:
            way = "WatchAdaptationJob tells its story" if job.state.ended else "it will have one"
            raise NotReady(
                f"{job.name} is {job.state.value} and has no report, which the guard's verdict "
                f"brings; {way}",
                state=job.state.value,
            )
        async for chunk in blob_chunks(self._store.blobs, digest, lane=self._files):
            yield pb.GetReportResponse(chunk=chunk)

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._lane.run(call, *args, **kwargs)


def draft_of(store: Store, new: convert.NewJob) -> JobDraft:
    """What a job will do, decided and pinned from the store as it stands now.

    A bare backbone is bootstrapped on the domain; any other model is adapted to it
    from the version that ``base`` names or points at.

    Raises:
        NotFound: the model or the domain does not exist.
        VersionNotFound: ``base`` names no version.
        NoIncumbent: ``base`` points at nothing, or at another model's version.
        NotEnoughExamples: the domain has no image to train on.
        NotReady: the model's first version is being made.
        InvalidSpec: the domain's labels are not the model's, there is no such strategy, or the
            guard refuses a limit.
    """
    model = store.registry.get_model(new.model)
    domain = store.domains.get(new.domain)
    counts = store.domains.counts(new.domain)
    if not any(splits[Split.TRAIN] for splits in counts.values()):
        raise NotEnoughExamples(
            f"{domain.name} has no committed image to train on; upload some in the role TRAIN or "
            "AUTO",
            domain=domain.name,
        )
    spec = new.spec_under(model.guard)
    if spec.strategy != strategy_form.AUTO:
        strategy_form.parts(spec.strategy)
    if not model.labels:
        if new.base:
            raise NoIncumbent(
                f"{model.name} is a backbone without a version to adapt from; leave `base` empty, "
                "and this job makes its first one"
            )
        _check_first(store, model, domain)
        return JobDraft(
            kind=JobKind.BOOTSTRAP,
            model=model.name,
            source=domain.name,
            target=None,
            incumbent=None,
            spec=spec,
        )
    _check_labels(model, domain, extend=new.spec.extend_labels)
    return JobDraft(
        kind=JobKind.ADAPT,
        model=model.name,
        source=model.source_domain,
        target=domain.name,
        incumbent=_incumbent(store, model, new.base),
        spec=spec,
    )


def _asks_for(new: convert.NewJob, draft: JobDraft) -> bool:
    """Whether a request says what *draft* was made from."""
    domain = draft.source if draft.kind is JobKind.BOOTSTRAP else draft.target
    return (new.model, new.domain) == (draft.model, domain) and new.asks_for(draft.spec)


def _check_first(store: Store, model: Model, domain: Domain) -> None:
    """A backbone's first version is made once: a second bootstrap would know nothing of it."""
    unended = [state for state in JobState if not state.ended]
    for job in store.jobs.list(model=model.name, states=unended, page_size=1).items:
        raise NotReady(
            f"{job.name} makes the first version of {model.name}, from {job.draft.source}; once it "
            f"has ended, adapt that to {domain.name}. See WatchAdaptationJob, CancelAdaptationJob"
        )


def _check_labels(model: Model, domain: Domain, *, extend: bool) -> None:
    missing = [label for label in domain.labels if label not in model.labels]
    if missing and not extend:
        named = ", ".join(repr(label) for label in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise InvalidSpec(
            f"{domain.name} has labels that {model.name} lacks: {named}{more}; set "
            "spec.extend_labels to grow the model's head",
            field="spec.extend_labels",
        )


def _incumbent(store: Store, model: Model, base: str) -> VersionName:
    if "/versions/" in base:
        name = VersionName.parse(base)
        _check_model(name.model, model)
        return store.registry.get_version(name).name
    alias = AliasName.parse(base) if base else AliasName(model.name.model, PRODUCTION)
    _check_model(alias.model, model)
    try:
        return store.registry.get_alias(alias).version
    except AliasNotFound:
        raise NoIncumbent(
            f"{alias} points at no version, so there is nothing to adapt from; set it with "
            "SetAlias, or name a version in `base`",
            alias=alias,
        ) from None


def _check_model(owner: str, model: Model) -> None:
    if owner != model.name.model:
        raise NoIncumbent(f"`base` is of models/{owner}, the job is for {model.name}")
