"""Every method that the server has, read off the descriptors, so that none is forgotten."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import acclimate.oip
import acclimate.v1


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method: its full name, its request's type, and which sides of it are streams."""

    name: str
    request: type[Message]
    streams_in: bool
    streams_out: bool

    def call(self, channel: Any, requests: list[bytes], **options: Any) -> list[bytes]:
        """Call it with raw bytes; the raw answers."""
        kind = ("stream" if self.streams_in else "unary", "stream" if self.streams_out else "unary")
        multicallable = getattr(channel, "_".join(kind))(self.name)
        answer = multicallable(iter(requests) if self.streams_in else requests[0], **options)
        return list(answer) if self.streams_out else [answer]


def files() -> Iterator[Any]:
    """The modules of every proto that the server speaks."""
    for package in (acclimate.v1, acclimate.oip):
        for found in pkgutil.iter_modules(package.__path__):
            if found.name.endswith("_pb2"):
                yield importlib.import_module(f"{package.__name__}.{found.name}")
    yield health_pb2
    yield reflection_pb2


def methods() -> list[Method]:
    """All of them, by name."""
    found = [
        method(f"/{service.full_name}/{rpc.name}", rpc)
        for file in files()
        for service in file.DESCRIPTOR.services_by_name.values()
        for rpc in service.methods
    ]
    # grpcio carries reflection's older name only; the server answers to both.
    found += [
        method("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", rpc)
        for rpc in reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].methods
    ]
    return sorted(found, key=lambda each: each.name)


def method(name: str, rpc: Any) -> Method:
    """The method *rpc* under *name*."""
    return Method(
        name=name,
        request=message_factory.GetMessageClass(rpc.input_type),
        streams_in=rpc.client_streaming,
        streams_out=rpc.server_streaming,
    )


def text_fields(kind: Any, above: str = "") -> Iterator[str]:
    """The paths of a message's string fields, those of the messages in it among them."""
    for field in kind.fields:
        path = above + field.name
        if field.type == field.TYPE_STRING:
            yield path
        elif field.message_type is not None and field.message_type.full_name not in path_seen(kind):
            yield from text_fields(field.message_type, path + ".")


def path_seen(kind: Any) -> set[str]:
    """What is not looked into: types that hold themselves, and JSON."""
    return {kind.full_name, "google.protobuf.Struct", "google.protobuf.Value"}
