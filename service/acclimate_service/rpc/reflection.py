"""Reflection under both its names: newer clients ask for v1, older ones for v1alpha.

The two versions' messages are the same on the wire; grpcio carries only the older.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from acclimate_service.rpc.intercept import Interceptor

V1: Final = "grpc.reflection.v1.ServerReflection"
V1ALPHA: Final = reflection.SERVICE_NAME


def enable(services: Sequence[str], server: Interceptor) -> None:
    """Let *server* tell what *services* it has, those of reflection among them."""
    servicer = reflection.aio.ReflectionServicer((*services, V1ALPHA))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, methods) for name in (V1, V1ALPHA)]
    )
