"""Health that tells the truth, for the whole server, each service and each model.

``""`` and the services' names are SERVING from when the store was reached and every
alias was tried, until the server drains or the store is gone. ``models/m`` is SERVING
while a loaded, warmed version answers for its alias "production".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from acclimate_service.domain.names import ModelName

_Status = health_pb2.HealthCheckResponse.ServingStatus
SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The states, and the servicer that tells them (``grpc.health.v1``)."""

    def __init__(self, services: Iterable[str]) -> None:
        self.servicer = aio.HealthServicer()
        self._services = ("", *services)
        self._ready = False
        self._draining = False

    @property
    def ready(self) -> bool:
        """Whether the server as a whole is SERVING."""
        return self._ready and not self._draining

    async def set_ready(self, ready: bool, why: str = "") -> None:
        """Say whether the server can do its work; *why* is logged where it cannot."""
        if ready != self._ready:
            self._ready = ready
            structlog.get_logger(__name__).info("readiness changed", ready=ready, why=why)
        for service in self._services:
            await self.servicer.set(service, SERVING if ready else NOT_SERVING)

    async def set_model(self, model: ModelName, served: bool) -> None:
        """Say whether the model's alias "production" is answered."""
        await self.servicer.set(str(model), SERVING if served else NOT_SERVING)

    async def drain(self) -> None:
        """NOT_SERVING for good, so that balancers look elsewhere before anything stops."""
        self._draining = True
        await self.servicer.enter_graceful_shutdown()
