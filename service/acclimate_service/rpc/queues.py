"""Which calls wait for one another: gRPC takes the calls of one queue one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import grpc
import grpc.aio

# Each has a queue of its own, so that thousands of calls of anything else, which are taken
# one after the other to be refused, are not before it: they held health up for 4 seconds.
APART: Final = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/acclimate.v1.InferenceService/Predict",
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)


def look_up(server: grpc.aio.Server) -> None:
    """Have *server* find most methods when they are called, instead of registering them before.

    For every registered method grpc.aio keeps a task that waits for the next call, and at
    each call it goes through all of these in Python (grpcio 1.85). What is only looked up
    shares one. Generated code always adds a handler to look up as well.
    """
    register = server.add_registered_method_handlers

    def register_few(
        service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Register those of a service's methods that are ``APART``."""
        few = {
            name: handler
            for name, handler in method_handlers.items()
            if f"/{service_name}/{name}" in APART
        }
        if few:
            register(service_name, few)

    server.add_registered_method_handlers = register_few  # type: ignore[method-assign]
