"""Files that travel in pieces: weights to the service, a version's files from it."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from acclimate.errors import ServiceFault
from acclimate.resources import ModelFiles
from acclimate.v1 import registry_pb2

CHUNK = 2**20
VERSION_FILES = frozenset(
    {"model.onnx", "weights.safetensors", "manifest.json", "model.int8.onnx", "model.fp16.onnx"}
)


def registration(
    draft: registry_pb2.RegisterModelRequest.Draft, weights: Path | None
) -> Iterator[registry_pb2.RegisterModelRequest]:
    """The messages of one registration: the draft, the weights if they are a file, the commit."""
    yield registry_pb2.RegisterModelRequest(draft=draft)
    digest = ""
    if weights is not None:
        running = hashlib.sha256()
        with weights.open("rb") as file:
            while chunk := file.read(CHUNK):
                running.update(chunk)
                yield registry_pb2.RegisterModelRequest(chunk=chunk)
        digest = running.hexdigest()
    yield registry_pb2.RegisterModelRequest(
        commit=registry_pb2.RegisterModelRequest.Commit(sha256=digest)
    )


def receive_version(
    messages: Iterable[registry_pb2.ExportModelVersionResponse], folder: Path
) -> ModelFiles:
    """Write a version's files into *folder*, each under its own name only once it is whole.

    Raises:
        ServiceFault: a file is none of ``VERSION_FILES``, or is not what its digest says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    for name, pieces in itertools.groupby(messages, key=lambda message: message.file):
        if name not in VERSION_FILES:  # it becomes a path: never what a peer makes up
            raise ServiceFault(
                f"the export holds an unknown file {name!r}", reason="EXPORT_CORRUPT"
            )
        digests[name] = _receive_file(pieces, folder / name)
    return ModelFiles(folder=folder, files=tuple(digests), sha256=digests)


def _receive_file(pieces: Iterable[registry_pb2.ExportModelVersionResponse], path: Path) -> str:
    """Write *path* and return its digest."""
    partial = path.with_name(f".{path.name}.partial")
    running, expected = hashlib.sha256(), ""
    try:
        with partial.open("wb") as file:
            for piece in pieces:
                file.write(piece.chunk)
                running.update(piece.chunk)
                expected = piece.sha256 or expected
            file.flush()
            os.fsync(file.fileno())
        if running.hexdigest() != expected:
            raise ServiceFault(
                f"{path.name} arrived with the digest {running.hexdigest()}, not {expected!r}",
                reason="EXPORT_CORRUPT",
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return expected
