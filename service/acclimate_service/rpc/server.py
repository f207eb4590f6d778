"""The server: its options, its services, and what each call may cost."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from opentelemetry.trace import Tracer

from acclimate.oip import grpc_service_pb2, grpc_service_pb2_grpc
from acclimate.v1 import (
    access_pb2,
    access_pb2_grpc,
    adaptation_pb2,
    adaptation_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
)
from acclimate_service.domain.errors import AddressUnusable, Overloaded, StoreUnavailable
from acclimate_service.domain.model import ModelVersion, Precision
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.pool import Pool
from acclimate_service.rpc import reflection
from acclimate_service.rpc.access import AccessServicer
from acclimate_service.rpc.adaptation import AdaptationServicer
from acclimate_service.rpc.bounds import Gate, Lane
from acclimate_service.rpc.call import Rule
from acclimate_service.rpc.door import Door
from acclimate_service.rpc.following import Following
from acclimate_service.rpc.health import Health
from acclimate_service.rpc.inference import InferenceServicer
from acclimate_service.rpc.inference_metrics import InferenceCollector
from acclimate_service.rpc.intercept import Interceptor
from acclimate_service.rpc.keyring import Keyring
from acclimate_service.rpc.metrics import Metrics
from acclimate_service.rpc.oip import InferenceProtocolServicer
from acclimate_service.rpc.rates import Rates
from acclimate_service.rpc.registration import RegistrationLimits, Registrations
from acclimate_service.rpc.registry import RegistryServicer
from acclimate_service.rpc.rollout import RolloutServicer
from acclimate_service.rpc.served import Served
from acclimate_service.rpc.upload import UploadLimits, Uploads
from acclimate_service.rpc.watch import Watchers
from acclimate_service.store import Store, utc_now

SERVICES: Final = (
    adaptation_pb2.DESCRIPTOR.services_by_name["AdaptationService"].full_name,
    registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
    access_pb2.DESCRIPTOR.services_by_name["AccessService"].full_name,
    rollout_pb2.DESCRIPTOR.services_by_name["RolloutService"].full_name,
)


REFLECTIONS: Final = 100  # streams that ask what the server has
HEALTH_SECONDS: Final = 0.05  # in which those who watch the health hear of the end
REFUSING_SECONDS: Final = 0.1  # in which those who call hear of it


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server takes on at once; over it, RESOURCE_EXHAUSTED."""

    message_bytes: int = 64 * 2**20
    calls: int = 1000  # unary calls beside predictions
    predictions: int = 512
    prediction_streams: int = 128
    uploads: int = 16
    watchers: int = 1000
    exports: int = 16
    queued_jobs: int = 1000
    store_threads: int = 8
    decode_threads: int = 2
    call_seconds: float = 60.0
    load_seconds: float = 300.0  # calls that load a version before they answer
    poll_seconds: float = 0.5
    connection_seconds: float | None = None  # after which a client is asked to connect anew
    upload: UploadLimits = UploadLimits()
    registration: RegistrationLimits = RegistrationLimits()


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Who is let in: with ``tokens`` whoever shows a good one, else everyone."""

    tokens: bool = False
    rates: Rates = Rates()


def options(limits: Limits) -> list[tuple[str, int]]:
    """The transport's options, with the reason of each."""
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        # A second server on the same port must fail, not share it.
        ("grpc.so_reuseport", 0),
        # A client that froze or lost its network is noticed within seconds, so that
        # its streams give back what they hold. Without ping_timeout_ms it takes a minute.
        ("grpc.keepalive_time_ms", 6_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # Sockets that never speak HTTP/2.
        ("grpc.server_handshake_timeout_ms", 5_000),
        # A burst of thousands of streams is queued here and then refused by name,
        # rather than failed with INTERNAL.
        ("grpc.server.max_pending_requests", 20_000),
        ("grpc.server.max_pending_requests_hard_limit", 40_000),
        ("grpc.max_metadata_size", 16 * 1024),
        *_ageing(limits.connection_seconds),
    ]


def _ageing(seconds: float | None) -> list[tuple[str, int]]:
    # A tenth more or less, by chance, so that not all come back at once. What runs on an old
    # connection ends on it; the next call goes over a new one.
    return [] if seconds is None else [("grpc.max_connection_age_ms", int(seconds * 1000))]


class Server:
    """All services over one store and one pool, on one port."""

    def __init__(
        self,
        store: Store,
        pool: Pool[ModelVersion],
        *,
        execution: Execution,
        precision: Precision = "fp32",
        limits: Limits,
        admission: Admission = Admission(),
        tracer: Tracer | None = None,
    ) -> None:
        self._version = importlib.metadata.version("acclimate")
        self.metrics = Metrics(pool, version=self._version)
        self.metrics.registry.register(InferenceCollector(pool.statistics))
        self.health = Health(storing=(*SERVICES[:2], *SERVICES[4:]), predicting=SERVICES[2:4])
        self._store = store
        self._limits = limits
        self._lane = Lane("store", threads=limits.store_threads, waiting=limits.calls)
        # Apart from the store's lane and from each other, so that neither decoding nor a
        # slow disk delays an answer, and a full lane is not taken for a lost store.
        self._ingest = Lane(
            "ingest",
            threads=limits.decode_threads,
            waiting=limits.uploads * limits.upload.group_examples,
        )
        self._tensors = Lane(
            "tensors", threads=limits.decode_threads, waiting=2 * limits.predictions
        )
        self._files = Lane("files", threads=4, waiting=4 * limits.uploads + limits.exports)
        self.served = Served(
            store,
            pool,
            execution=execution,
            precision=precision,
            lane=self._lane,
            health=self.health,
            metrics=self.metrics,
            crowd=max(limits.predictions // 4, 1),
        )
        self.keyring = Keyring(store, lane=self._lane, clock=utc_now)
        self._door = Door(
            store,
            lane=self._lane,
            keyring=self.keyring if admission.tokens else None,
            rates=admission.rates,
        )
        default = Gate("the server", limit=limits.calls)
        self._server = grpc.aio.server(options=options(limits))
        interceptor = Interceptor(
            door=self._door,
            rules=rules(limits),
            default=Rule(gate=default, seconds=limits.call_seconds),
            metrics=self.metrics,
            register=self._server.add_registered_method_handlers,
            tracer=tracer,
        )
        self._following = Following(
            store,
            served=self.served,
            keyring=self.keyring,
            denials=self._door.denials,
            health=self.health,
            interval=limits.poll_seconds,
        )
        self._idle = interceptor.idle
        self._server.add_generic_rpc_handlers((interceptor,))
        self._add_servicers_to(interceptor)

    def _add_servicers_to(self, server: Any) -> None:
        limits = self._limits
        adaptation = AdaptationServicer(
            self._store,
            lane=self._lane,
            files=self._files,
            uploads=Uploads(
                self._store,
                lane=self._files,
                ingest=self._ingest,
                metrics=self.metrics,
                limits=limits.upload,
            ),
            watchers=Watchers(self._store, lane=self._lane, interval=limits.poll_seconds),
            max_queued_jobs=limits.queued_jobs,
        )
        registry = RegistryServicer(
            self._store,
            lane=self._lane,
            files=self._files,
            registrations=Registrations(self._store, lane=self._files, limits=limits.registration),
            served=self.served,
        )
        streamed = Gate("the predictions", limit=limits.predictions, retry_after=0.1)
        inference = InferenceServicer(
            self._store, lane=self._lane, tensors=self._tensors, served=self.served, gate=streamed
        )
        oip = InferenceProtocolServicer(
            self._store,
            lane=self._lane,
            tensors=self._tensors,
            served=self.served,
            health=self.health,
            gate=streamed,
            version=self._version,
        )
        access = AccessServicer(self._store, lane=self._lane, keyring=self.keyring)
        rollout = RolloutServicer(self._store, lane=self._lane, served=self.served)
        adaptation_pb2_grpc.add_AdaptationServiceServicer_to_server(adaptation, server)
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(rollout, server)
        access_pb2_grpc.add_AccessServiceServicer_to_server(access, server)
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(oip, server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, server)
        reflection.enable((*SERVICES, health.SERVICE_NAME), server)

    def listen(
        self, host: str, port: int, credentials: grpc.ServerCredentials | None = None
    ) -> int:
        """Bind to *host* and *port*; the port, chosen freely where *port* is 0.

        Without *credentials* in plain text.

        Raises:
            AddressUnusable: the address is taken or is not this machine's.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:  # grpc's word for it, which does not say why
            raise AddressUnusable(
                f"cannot listen on {address}: it is taken, or not this machine's; choose another "
                "by ACCLIMATE_HOST and ACCLIMATE_PORT (0: any free port)"
            ) from error

    async def start(self) -> None:
        """Answer health at once, and everything else when the aliases were tried.

        Raises:
            StoreUnavailable: the store is out of reach.
        """
        await self.health.begin()
        await self.keyring.catch_up()  # before the first call can come
        await self._server.start()
        await self.served.begin()
        await self.health.set_predicting()
        await self.health.set_stored(True)
        self._following.start()

    async def until(self, stop: asyncio.Event) -> None:
        """Wait for *stop*.

        Raises:
            Exception: what ended the following of the store, which nothing should. A
                server that no longer follows must not go on as if it did.
        """
        stopped = asyncio.create_task(stop.wait())
        try:
            await self._following.until(stopped)
        finally:
            stopped.cancel()

    async def stop(self, grace: float) -> None:
        """Drain: say NOT_SERVING, take nothing new, let what runs end within *grace* seconds."""
        await self.health.drain()
        if await self._following.stop():
            with contextlib.suppress(StoreUnavailable, Overloaded):
                await self._door.denials.flush(last=True)
        await asyncio.sleep(HEALTH_SECONDS)
        # Refused by us, a new call is told to go elsewhere. Those that gRPC has taken and not
        # handed on yet when it stops, it cancels, as if their client had (grpc/grpc#41785):
        # of quick callers that is nearly every next call. No longer than this, since only
        # when gRPC stops are their connections closed, and they look for another replica.
        self._idle.stop()
        await asyncio.sleep(REFUSING_SECONDS)
        await self._server.stop(grace)
        with contextlib.suppress(StoreUnavailable, Overloaded):
            await self.served.close()
        for lane in (self._lane, self._ingest, self._tensors, self._files):
            lane.close()


def rules(limits: Limits) -> dict[str, Rule]:
    """The methods that share no gate with the rest: one busy kind never starves another."""
    adaptation, registry, inference, oip = (f"/{service}/" for service in SERVICES[:4])
    bulk = limits.message_bytes
    loads = Rule(gate=Gate("version loading", limit=64), seconds=limits.load_seconds)
    exports = Rule(gate=Gate("the exports", limit=limits.exports), seconds=None)
    predictions = Rule(
        gate=Gate("the predictions", limit=limits.predictions, retry_after=0.1),
        seconds=limits.call_seconds,
        message_bytes=bulk,
    )
    streams = Rule(
        gate=Gate("the prediction streams", limit=limits.prediction_streams),
        seconds=None,
        message_bytes=bulk,
    )
    return {
        f"/{health.SERVICE_NAME}/Watch": Rule(
            gate=Gate("the health watchers", limit=limits.watchers), seconds=None, idle=True
        ),
        **{
            f"/{name}/ServerReflectionInfo": Rule(
                gate=Gate("reflection", limit=REFLECTIONS), seconds=None
            )
            for name in (reflection.V1, reflection.V1ALPHA)
        },
        adaptation + "UploadBatch": Rule(
            gate=Gate("the uploads", limit=limits.uploads, retry_after=5.0),
            seconds=None,
            message_bytes=bulk,
        ),
        registry + "RegisterModel": Rule(
            gate=Gate("the registrations", limit=limits.uploads, retry_after=5.0),
            seconds=limits.upload.stream_seconds,
            message_bytes=bulk,
        ),
        adaptation + "WatchAdaptationJob": Rule(
            gate=Gate("the watchers", limit=limits.watchers, retry_after=5.0),
            seconds=None,
            idle=True,
        ),
        adaptation + "GetReport": exports,
        registry + "ExportModelVersion": exports,
        registry + "SetAlias": loads,
        registry + "RollbackAlias": loads,
        oip + "RepositoryModelLoad": loads,
        oip + "RepositoryModelUnload": loads,
        # What it compares with is computed at the first call, behind all predictions.
        inference + "GetDrift": Rule(
            gate=Gate("the drifts", limit=limits.exports), seconds=limits.load_seconds
        ),
        inference + "Predict": predictions,
        oip + "ModelInfer": predictions,
        inference + "PredictStream": streams,
        oip + "ModelStreamInfer": streams,
    }
