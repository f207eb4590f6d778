"""A small service in this process that breaks on command: what a client must survive."""

# ruff: noqa: N802, ARG001  gRPC fixes names and signatures

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field

import grpc
from google.protobuf import any_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from acclimate.v1 import (
    adaptation_pb2,
    adaptation_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)

EMPTY_CHAIN = "0" * 64
NOW = timestamp_pb2.Timestamp(seconds=1_790_000_000)


def chain(previous: str, image: bytes, label: str) -> str:
    """The digest of the protocol, written down a second time."""
    inner = hashlib.sha256(image).digest()
    return hashlib.sha256(bytes.fromhex(previous) + inner + label.encode()).hexdigest()


def refuse(
    context: grpc.ServicerContext,
    code: int,
    reason: str,
    message: str,
    *,
    metadata: dict[str, str] | None = None,
    retry_after: float | None = None,
) -> None:
    """End the call as AIP-193 says."""
    details = [any_pb2.Any()]
    details[0].Pack(
        error_details_pb2.ErrorInfo(reason=reason, domain="acclimate.dev", metadata=metadata or {})
    )
    if retry_after is not None:
        delay = duration_pb2.Duration(nanos=int(retry_after * 1e9))
        details.append(any_pb2.Any())
        details[-1].Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code, message=message, details=details)
    context.abort_with_status(rpc_status.to_status(status))


@dataclass
class Batch:
    """What an upload left behind."""

    stored: list[adaptation_pb2.Example] = field(default_factory=list)
    chain: str = EMPTY_CHAIN
    committed: bool = False
    streams: int = 0
    sent: list[int] = field(default_factory=list)  # every index that arrived, repetitions included


@dataclass
class Faults:
    """What goes wrong. Each list is used up from the front, one entry a call."""

    break_after: list[int] = field(default_factory=list)  # examples stored before the stream breaks
    hide_answers: bool = False  # the last example before a break is stored but not acknowledged
    calls: list[tuple[int, str, float | None]] = field(default_factory=list)  # code, reason, delay
    watch_after: list[int] = field(default_factory=list)  # events before the stream breaks
    watch_silent: float = 0.0  # seconds without an event before that
    predict_after: list[int] = field(default_factory=list)  # answers before the stream breaks
    refuse_openings: tuple[int, str] | None = None  # code, reason
    refuse_commits: tuple[int, str] | None = None  # the same


class Service(
    adaptation_pb2_grpc.AdaptationServiceServicer,
    registry_pb2_grpc.RegistryServiceServicer,
    inference_pb2_grpc.InferenceServiceServicer,
):
    """The three services, over dictionaries."""

    unreadable: tuple[str, ...] = ()  # versions of a newer format

    def __init__(self) -> None:
        self.faults = Faults()
        self.batches: dict[str, Batch] = {}
        self.seen: list[tuple[str, object]] = []  # every unary request, by method
        self.metadata: list[dict[str, str]] = []
        self.job = adaptation_pb2.AdaptationJob(
            name="jobs/j1",
            kind=adaptation_pb2.AdaptationJob.KIND_ADAPT,
            model="models/digits",
            target_domain="domains/pens",
            state=adaptation_pb2.AdaptationJob.STATE_RUNNING,
            phase=adaptation_pb2.AdaptationJob.PHASE_TUNING,
            create_time=NOW,
        )
        self.events: list[adaptation_pb2.JobEvent] = []
        self.export: list[registry_pb2.ExportModelVersionResponse] = []
        self.endless_jobs = 0
        self.outstanding = 0  # predictions asked for and not yet answered
        self.most_outstanding = 0
        self.lock = threading.Lock()

    def _enter(self, method: str, request: object, context: grpc.ServicerContext) -> None:
        self.seen.append((method, request))
        self.metadata.append({item[0]: str(item[1]) for item in context.invocation_metadata()})
        assert context.time_remaining() is not None, f"{method} came without a deadline"
        if self.faults.calls:
            code, reason, delay = self.faults.calls.pop(0)
            refuse(context, code, reason, f"{reason} on command", retry_after=delay)

    # ── adaptation ───────────────────────────────────────────────────────────

    def CreateDomain(
        self, request: adaptation_pb2.CreateDomainRequest, context: grpc.ServicerContext
    ) -> adaptation_pb2.Domain:
        self._enter("CreateDomain", request, context)
        return adaptation_pb2.Domain(
            name=f"domains/{request.domain_id}", labels=request.labels, create_time=NOW
        )

    def GetDomain(
        self, request: adaptation_pb2.GetDomainRequest, context: grpc.ServicerContext
    ) -> adaptation_pb2.Domain:
        self._enter("GetDomain", request, context)
        if request.name != "domains/pens":
            refuse(
                context,
                code_pb2.NOT_FOUND,
                "NOT_FOUND",
                f"there is no {request.name!r}; see ListDomains",
                metadata={"name": request.name},
            )
        counts = [adaptation_pb2.LabelCount(label="1", train=3, select=2, verify=1)]
        return adaptation_pb2.Domain(
            name=request.name, labels=["1", "2"], counts=counts, create_time=NOW
        )

    def ListDomains(
        self, request: adaptation_pb2.ListDomainsRequest, context: grpc.ServicerContext
    ) -> adaptation_pb2.ListDomainsResponse:
        self._enter("ListDomains", request, context)
        page = int(request.page_token or 0)
        return adaptation_pb2.ListDomainsResponse(
            domains=[adaptation_pb2.Domain(name=f"domains/d{page}", create_time=NOW)],
            next_page_token=str(page + 1) if page < 2 else "",
        )

    def UploadBatch(
        self,
        request_iterator: Iterator[adaptation_pb2.UploadBatchRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[adaptation_pb2.UploadBatchResponse]:
        assert context.time_remaining() is not None
        opening = next(request_iterator).open
        if self.faults.refuse_openings is not None:
            refuse(context, *self.faults.refuse_openings, "refused on command")
        batch = self.batches.setdefault(opening.request_id, Batch())
        batch.streams += 1
        if opening.parent != "domains/pens":
            refuse(context, code_pb2.NOT_FOUND, "NOT_FOUND", f"there is no {opening.parent!r}")
        limit = self.faults.break_after.pop(0) if self.faults.break_after else None
        yield adaptation_pb2.UploadBatchResponse(
            opened=adaptation_pb2.UploadBatchResponse.Opened(
                batch="domains/pens/batches/b1", next_index=len(batch.stored), chain=batch.chain
            )
        )
        for message in request_iterator:
            if message.WhichOneof("part") == "commit":
                if self.faults.refuse_commits is not None:
                    refuse(context, *self.faults.refuse_commits, "refused on command")
                commit = message.commit
                assert (commit.count, commit.chain) == (len(batch.stored), batch.chain)
                batch.committed = True
                yield adaptation_pb2.UploadBatchResponse(committed=self._batch(batch))
                return
            if limit == 0:
                refuse(context, code_pb2.UNAVAILABLE, "STORE_UNAVAILABLE", "broken on command")
            item = message.item
            batch.sent.append(item.index)
            assert item.index == len(batch.stored)
            batch.stored.append(item.example)
            batch.chain = chain(batch.chain, item.example.image, item.example.label)
            if limit is not None:
                limit -= 1
                if limit == 0 and self.faults.hide_answers:
                    refuse(context, code_pb2.UNAVAILABLE, "STORE_UNAVAILABLE", "broken on command")
            yield adaptation_pb2.UploadBatchResponse(acknowledgement=_answer(item))

    def _batch(self, batch: Batch) -> adaptation_pb2.LabeledBatch:
        rejected = sum(example.image == b"" for example in batch.stored)
        return adaptation_pb2.LabeledBatch(
            name="domains/pens/batches/b1",
            role=adaptation_pb2.ROLE_TRAIN,
            committed=True,
            accepted=len(batch.stored) - rejected,
            rejected=rejected,
            create_time=NOW,
        )

    def GetLabeledBatch(
        self, request: adaptation_pb2.GetLabeledBatchRequest, context: grpc.ServicerContext
    ) -> adaptation_pb2.LabeledBatch:
        self._enter("GetLabeledBatch", request, context)
        return self._batch(Batch())

    def DeleteDomain(
        self, request: adaptation_pb2.DeleteDomainRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        self._enter("DeleteDomain", request, context)
        return empty_pb2.Empty()

    def DeleteLabeledBatch(
        self, request: adaptation_pb2.DeleteLabeledBatchRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        self._enter("DeleteLabeledBatch", request, context)
        return empty_pb2.Empty()

    def ListLabeledBatches(
        self, request: adaptation_pb2.ListLabeledBatchesRequest, context: grpc.ServicerContext
    ) -> adaptation_pb2.ListLabeledBatchesResponse:
        self._enter("ListLabeledBatches", request, context)
        batches = [self._batch(batch) for batch in self.batches.values()]
        return adaptation_pb2.ListLabeledBatchesResponse(batches=batches)

    def CreateAdaptationJob(
        self, request: adaptation_pb2.CreateAdaptationJobRequest, context: grpc.ServicerContext
    ) -> adaptation_pb2.AdaptationJob:
        self._enter("CreateAdaptationJob", request, context)
        self.job.spec.CopyFrom(request.spec)
        return self.job

    def GetAdaptationJob(
        self, request: adaptation_pb2.GetAdaptationJobRequest, context: grpc.ServicerContext
    ) -> adaptation_pb2.AdaptationJob:
        self._enter("GetAdaptationJob", request, context)
        if request.name != self.job.name:
            refuse(context, code_pb2.NOT_FOUND, "NOT_FOUND", f"there is no {request.name!r}")
        return self.job

    def ListAdaptationJobs(
        self, request: adaptation_pb2.ListAdaptationJobsRequest, context: grpc.ServicerContext
    ) -> adaptation_pb2.ListAdaptationJobsResponse:
        self._enter("ListAdaptationJobs", request, context)
        page = self.endless_jobs  # of a list without an end
        return adaptation_pb2.ListAdaptationJobsResponse(
            jobs=[self.job] * (page or 1), next_page_token="more" if page else ""
        )

    def CancelAdaptationJob(
        self, request: adaptation_pb2.CancelAdaptationJobRequest, context: grpc.ServicerContext
    ) -> adaptation_pb2.AdaptationJob:
        self._enter("CancelAdaptationJob", request, context)
        if self.job.end_time.seconds:
            refuse(context, code_pb2.FAILED_PRECONDITION, "JOB_ENDED", "jobs/j1 has ended")
        self.job.cancel_requested = True
        return self.job

    def WatchAdaptationJob(
        self, request: adaptation_pb2.WatchAdaptationJobRequest, context: grpc.ServicerContext
    ) -> Iterator[adaptation_pb2.JobEvent]:
        self.seen.append(("WatchAdaptationJob", request))
        assert context.time_remaining() is not None
        limit = self.faults.watch_after.pop(0) if self.faults.watch_after else None
        for event in self.events[request.after_sequence :]:
            if limit == 0:
                time.sleep(self.faults.watch_silent)
                refuse(context, code_pb2.UNAVAILABLE, "STORE_UNAVAILABLE", "broken on command")
            yield event
            limit = None if limit is None else limit - 1
        self.end(adaptation_pb2.AdaptationJob.STATE_SUCCEEDED)

    def end(self, state: adaptation_pb2.AdaptationJob.State.ValueType) -> None:
        """The job reaches its end."""
        self.job.state = state
        self.job.phase = adaptation_pb2.AdaptationJob.PHASE_UNSPECIFIED
        self.job.end_time.CopyFrom(NOW)
        if state == adaptation_pb2.AdaptationJob.STATE_SUCCEEDED:
            self.job.version = "models/digits/versions/2"

    def GetReport(
        self, request: adaptation_pb2.GetReportRequest, context: grpc.ServicerContext
    ) -> Iterator[adaptation_pb2.GetReportResponse]:
        self._enter("GetReport", request, context)
        for piece in (b"<html>", b"</html>") if request.format == "html" else (b'{"a":', b"1}"):
            yield adaptation_pb2.GetReportResponse(chunk=piece)

    # ── registry ─────────────────────────────────────────────────────────────

    def RegisterModel(
        self,
        request_iterator: Iterator[registry_pb2.RegisterModelRequest],
        context: grpc.ServicerContext,
    ) -> registry_pb2.RegisterModelResponse:
        messages = list(request_iterator)
        self._enter("RegisterModel", messages, context)
        draft = messages[0].draft
        content = b"".join(message.chunk for message in messages[1:-1])
        if content:
            assert messages[-1].commit.sha256 == hashlib.sha256(content).hexdigest()
        model = registry_pb2.Model(
            name=f"models/{draft.model_id}",
            architecture=draft.architecture,
            weights=draft.weights,
            labels=draft.labels,
            create_time=NOW,
            decoding=draft.decoding,
        )
        return registry_pb2.RegisterModelResponse(
            model=model, job="jobs/j1" if draft.labels else ""
        )

    def ListModels(
        self, request: registry_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ListModelsResponse:
        self._enter("ListModels", request, context)
        return registry_pb2.ListModelsResponse(models=[self.model()])

    def model(self) -> registry_pb2.Model:
        """The one model."""
        return registry_pb2.Model(
            name="models/digits",
            architecture=registry_pb2.Architecture(library="timm", name="resnet18"),
            weights=registry_pb2.WeightsSource(kind=registry_pb2.WeightsSource.KIND_HUB),
            create_time=NOW,
        )

    def ListModelVersions(
        self, request: registry_pb2.ListModelVersionsRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ListModelVersionsResponse:
        self._enter("ListModelVersions", request, context)
        return registry_pb2.ListModelVersionsResponse(
            versions=[self.version()], unreadable=self.unreadable
        )

    def version(self) -> registry_pb2.ModelVersion:
        """The one version."""
        manifest = struct_pb2.Struct()
        manifest.update({"seed": 3, "blend": 0.5, "artifacts": {"variants": {"int8": {}}}})
        return registry_pb2.ModelVersion(
            name="models/digits/versions/2",
            parent="models/digits/versions/1",
            job="jobs/j1",
            origin=registry_pb2.ModelVersion.ORIGIN_ACCEPTED,
            sha256="ab" * 32,
            onnx_bytes=13_000_000,
            manifest=manifest,
            create_time=NOW,
        )

    def GetModelVersion(
        self, request: registry_pb2.GetModelVersionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ModelVersion:
        self._enter("GetModelVersion", request, context)
        return self.version()

    def ExportModelVersion(
        self, request: registry_pb2.ExportModelVersionRequest, context: grpc.ServicerContext
    ) -> Iterator[registry_pb2.ExportModelVersionResponse]:
        self._enter("ExportModelVersion", request, context)
        yield from self.export

    def SetAlias(
        self, request: registry_pb2.SetAliasRequest, context: grpc.ServicerContext
    ) -> registry_pb2.Alias:
        self._enter("SetAlias", request, context)
        return registry_pb2.Alias(name=request.name, version=request.version, update_time=NOW)

    def RollbackAlias(
        self, request: registry_pb2.RollbackAliasRequest, context: grpc.ServicerContext
    ) -> registry_pb2.Alias:
        self._enter("RollbackAlias", request, context)
        return registry_pb2.Alias(
            name=request.name, version="models/digits/versions/1", update_time=NOW
        )

    def ListAliases(
        self, request: registry_pb2.ListAliasesRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ListAliasesResponse:
        self._enter("ListAliases", request, context)
        alias = registry_pb2.Alias(
            name="models/digits/aliases/production",
            version="models/digits/versions/2",
            update_time=NOW,
        )
        return registry_pb2.ListAliasesResponse(aliases=[alias])

    def GetModel(
        self, request: registry_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> registry_pb2.Model:
        self._enter("GetModel", request, context)
        return self.model()

    def SetModelGuard(
        self, request: registry_pb2.SetModelGuardRequest, context: grpc.ServicerContext
    ) -> registry_pb2.Model:
        self._enter("SetModelGuard", request, context)
        found = self.model()
        found.guard_preset = request.preset
        found.guard_overrides.CopyFrom(request.overrides)
        found.guard_overrides.update({"reason": request.reason})
        return found

    def DeleteModel(
        self, request: registry_pb2.DeleteModelRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        self._enter("DeleteModel", request, context)
        return empty_pb2.Empty()

    def DeleteModelVersion(
        self, request: registry_pb2.DeleteModelVersionRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        self._enter("DeleteModelVersion", request, context)
        return empty_pb2.Empty()

    def ForceModelVersion(
        self, request: registry_pb2.ForceModelVersionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ModelVersion:
        self._enter("ForceModelVersion", request, context)
        return self.version()

    def DeleteAlias(
        self, request: registry_pb2.DeleteAliasRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        self._enter("DeleteAlias", request, context)
        return empty_pb2.Empty()

    # ── inference ────────────────────────────────────────────────────────────

    def _predictions(self, request: inference_pb2.PredictRequest) -> inference_pb2.PredictResponse:
        count = len(request.images) or request.tensor.shape[0]
        ranked = inference_pb2.Prediction.Class(label="7", probability=0.75)
        return inference_pb2.PredictResponse(
            version="models/digits/versions/2",
            sha256="ab" * 32,
            variant="int8",
            predictions=[inference_pb2.Prediction(classes=[ranked])] * count,
        )

    def Predict(
        self, request: inference_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> inference_pb2.PredictResponse:
        self._enter("Predict", request, context)
        if b"bad" in request.images:
            refuse(context, code_pb2.INVALID_ARGUMENT, "BAD_IMAGE", "not an image")
        return self._predictions(request)

    def GetDrift(
        self, request: inference_pb2.GetDriftRequest, context: grpc.ServicerContext
    ) -> inference_pb2.Drift:
        self._enter("GetDrift", request, context)
        night = inference_pb2.Drift.Domain(domain="domains/night", distance=0.02, unlike=True)
        return inference_pb2.Drift(
            version="models/digits/versions/2", images=90, domains=[night], due=True, message="due"
        )

    def ListVersionStatistics(
        self, request: inference_pb2.ListVersionStatisticsRequest, context: grpc.ServicerContext
    ) -> inference_pb2.ListVersionStatisticsResponse:
        self._enter("ListVersionStatistics", request, context)
        stage = inference_pb2.VersionStatistics.Stage
        counts = inference_pb2.VersionStatistics(
            version="models/digits/versions/2",
            variant="int8",
            sha256="ab" * 32,
            images=6,
            runs=6,
            succeeded=stage(count=4, nanoseconds=50_000_000),
            failed=stage(count=1, nanoseconds=1_000_000),
            infer=stage(count=4, nanoseconds=40_000_000),
        )
        return inference_pb2.ListVersionStatisticsResponse(statistics=[counts])

    def PredictStream(
        self,
        request_iterator: Iterator[inference_pb2.PredictRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[inference_pb2.PredictStreamResponse]:
        def counted() -> Iterator[inference_pb2.PredictRequest]:
            for request in request_iterator:
                self.seen.append(("PredictStream", request))
                with self.lock:
                    self.outstanding += 1
                    self.most_outstanding = max(self.most_outstanding, self.outstanding)
                yield request

        limit = self.faults.predict_after.pop(0) if self.faults.predict_after else None
        for request in counted():
            if limit == 0:
                refuse(context, code_pb2.UNAVAILABLE, "SERVER_STOPPING", "broken on command")
            limit = None if limit is None else limit - 1
            with self.lock:
                self.outstanding -= 1
            if request.images[0] == b"bad":
                refusal = inference_pb2.PredictStreamResponse.Refusal(
                    reason="BAD_IMAGE", message="not an image"
                )
                yield inference_pb2.PredictStreamResponse(refusal=refusal)
            else:
                yield inference_pb2.PredictStreamResponse(response=self._predictions(request))


def _answer(
    item: adaptation_pb2.UploadBatchRequest.Item,
) -> adaptation_pb2.UploadBatchResponse.Acknowledgement:
    answer = adaptation_pb2.UploadBatchResponse.Acknowledgement
    if item.example.image == b"":
        return answer(
            index=item.index,
            id=item.example.id,
            outcome=answer.OUTCOME_REJECTED,
            reason="BAD_IMAGE",
            message="the file is empty",
        )
    return answer(index=item.index, id=item.example.id, outcome=answer.OUTCOME_ACCEPTED)


def _health(request: bytes, context: grpc.ServicerContext) -> bytes:
    service = health_pb2.HealthCheckRequest.FromString(request).service
    status = (
        health_pb2.HealthCheckResponse.NOT_SERVING
        if service
        else (health_pb2.HealthCheckResponse.SERVING)
    )
    return health_pb2.HealthCheckResponse(status=status).SerializeToString()


def start(service: Service, port: int = 0) -> tuple[grpc.Server, str]:
    """Serve *service* on the loopback interface; the server and its target."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    adaptation_pb2_grpc.add_AdaptationServiceServicer_to_server(service, server)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(service, server)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    check: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_health)
    handlers = {"Check": check}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),)
    )
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, f"127.0.0.1:{bound}"


@contextlib.contextmanager
def running(service: Service) -> Iterator[str]:
    """*service* for the length of a block; its target."""
    server, target = start(service)
    try:
        yield target
    finally:
        server.stop(grace=None).wait()
