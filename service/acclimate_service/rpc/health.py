"""Health that tells the truth, for the whole server, each service and each model.

Everything is NOT_SERVING until the store was reached and every alias was tried, and
from when the server drains. In between, ``""`` and the services that need the store are
SERVING while it is in reach; those that predict need none, and go on without it: they
are what a balancer of predictions should ask for. ``models/m`` is SERVING while its alias
"production" is answered, from memory or by a load that did not fail the last time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NoReturn

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from acclimate_service.domain.names import ModelName

_Status = health_pb2.HealthCheckResponse.ServingStatus
SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class _Servicer(aio.HealthServicer):
    """What is asked by name is answered; nobody without a token is given the names of models."""

    async def List(self, request: object, context: object) -> NoReturn:
        raise NotImplementedError


class Health:
    """The states, and the servicer that tells them (``grpc.health.v1``)."""

    def __init__(self, *, storing: Iterable[str], predicting: Iterable[str]) -> None:
        self.servicer = _Servicer()
        self._storing = ("", *storing)
        self._predicting = tuple(predicting)
        self._stored: bool | None = None
        self._predicts = False

    @property
    def predicts(self) -> bool:
        """Whether predictions are answered."""
        return self._predicts

    async def begin(self) -> None:
        """NOT_SERVING, while the server is coming up."""
        for service in (*self._storing, *self._predicting):
            await self.servicer.set(service, NOT_SERVING)

    async def set_predicting(self) -> None:
        """Say that every alias was tried, so that predictions are answered."""
        self._predicts = True
        for service in self._predicting:
            await self.servicer.set(service, SERVING)

    async def set_stored(self, reached: bool, why: str = "") -> None:
        """Say whether the store is in reach; *why* is logged where it is not."""
        if reached != self._stored:
            self._stored = reached
            structlog.get_logger(__name__).info("store in reach", reached=reached, why=why)
        for service in self._storing:
            await self.servicer.set(service, SERVING if reached else NOT_SERVING)

    async def set_model(self, model: ModelName, served: bool) -> None:
        """Say whether the model's alias "production" is answered."""
        await self.servicer.set(str(model), SERVING if served else NOT_SERVING)

    async def drain(self) -> None:
        """NOT_SERVING for good, so that balancers look elsewhere before anything stops."""
        self._predicts = False
        await self.servicer.enter_graceful_shutdown()
