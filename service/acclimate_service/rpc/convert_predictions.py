"""Predictions: only proto ↔ arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from acclimate.v1 import inference_pb2 as pb
from acclimate_service.domain.drift import Drift
from acclimate_service.domain.errors import InputMismatch, InvalidSpec, ServiceError
from acclimate_service.domain.model import ModelVersion
from acclimate_service.domain.names import VersionName, check_id
from acclimate_service.inference.batcher import ORDINARY, PRIORITIES
from acclimate_service.inference.handle import Handle
from acclimate_service.inference.statistics import Duration, VersionStatistics
from acclimate_service.rpc import fields, status

Images = NDArray[np.uint8]  # [N, size, size, 3]
Outputs = Mapping[str, NDArray[np.float32]]  # by the manifest's names, [N, ...] each

IMAGE_LIMIT: Final = 256  # a request
TOP_K_DEFAULT: Final = 5


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a request wants to know. ``outputs`` are the manifest's names of what is needed."""

    model: str
    images: tuple[bytes, ...]  # encoded; empty if pixels came as a tensor
    outputs: tuple[str, ...]
    priority: int
    routing_key: str  # empty: the images decide
    domain: str  # its id; empty: the model's name decides who answers


def question(request: pb.PredictRequest) -> Question:
    """Read a request, its pixels aside.

    Raises:
        InvalidSpec: images and tensor are both given or both missing, or too many.
    """
    if bool(request.images) == request.HasField("tensor"):
        raise InvalidSpec("give either images or tensor", field="images")
    if len(request.images) > IMAGE_LIMIT:
        raise InvalidSpec(f"at most {IMAGE_LIMIT} images a request", field="images")
    if request.top_k < 0:
        raise InvalidSpec("top_k must not be negative", field="top_k")
    fields.text("id", request.id, limit=300)
    wanted = ["probabilities"]
    if request.logits:
        wanted.append("logits")
    if request.embeddings:
        wanted.append("embeddings")
    return Question(
        model=fields.text("model", request.model, limit=300, required=True),
        images=tuple(request.images),
        outputs=tuple(wanted),
        priority=priority("priority", request.priority),
        routing_key=fields.text("routing_key", request.routing_key, limit=300),
        domain=domain("domain", request.domain),
    )


def key(routing_key: str, contents: Sequence[bytes]) -> bytes:
    """What decides which version answers during a canary: the caller's word, or the images."""
    if routing_key:
        return routing_key.encode()
    first = contents[0] if contents else b""
    # Enough to tell images apart: a file's or a tensor's beginning and end.
    return first[:4096] + first[-4096:]


def domain(field: str, value: str) -> str:
    """A domain's id, from that or its name; empty stays empty.

    Raises:
        InvalidName: it is neither.
    """
    text = fields.text(field, value, limit=300)
    return check_id(text.removeprefix("domains/")) if text else ""


def priority(field: str, value: int) -> int:
    """How urgent a request is; 0 means ordinary.

    Raises:
        InvalidSpec: it is none of the levels.
    """
    return fields.count(field, value, most=max(PRIORITIES)) or ORDINARY


def pixels(tensor: pb.Tensor, size: int) -> Images:
    """The pixels of a tensor for a model whose input is *size* x *size*; uint8 is not copied.

    Raises:
        InputMismatch: the shape is not [N, size, size, 3] or not that of the bytes, or a
            float is no pixel.
        InvalidSpec: it holds both pixels and floats.
    """
    shape = tuple(tensor.shape)
    wanted = f"[N, {size}, {size}, 3]"
    if len(shape) != 4 or shape[1:] != (size, size, 3):
        raise InputMismatch(
            f"the tensor has the shape {list(shape)[:8]}, this model takes {wanted}", wanted=wanted
        )
    if not 0 < shape[0] <= IMAGE_LIMIT:
        raise InputMismatch(f"a tensor holds 1 to {IMAGE_LIMIT} images, not {shape[0]}")
    if tensor.pixels and tensor.floats:
        raise InvalidSpec("give either pixels or floats", field="tensor")
    content, width = (tensor.floats, 4) if tensor.floats else (tensor.pixels, 1)
    if len(content) != width * math.prod(shape):
        kind = "float32" if tensor.floats else "uint8"
        raise InputMismatch(
            f"the tensor's shape {list(shape)} needs {width * math.prod(shape)} bytes of {kind}, "
            f"{len(content)} came"
        )
    flat = whole(np.frombuffer(content, "<f4")) if tensor.floats else np.frombuffer(content, "u1")
    return flat.reshape(shape)


def whole(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Pixels as they are; anything that would have to be rounded or clipped is refused.

    Raises:
        InputMismatch: a value is not a whole number from 0 to 255 (NaN is none).
    """
    with np.errstate(invalid="ignore"):
        pixels = values.astype(np.uint8)
    if not np.array_equal(pixels, values):
        raise InputMismatch(
            "pixels are whole numbers from 0 to 255; the model normalises them itself"
        )
    return pixels


def response(
    request: pb.PredictRequest, by: Handle[ModelVersion], outputs: Outputs
) -> pb.PredictResponse:
    """Write the answer of *by*; *outputs* are [N, labels] and, embeddings, [N, features]."""
    version = by.details
    probabilities = outputs["probabilities"]
    labels = version.manifest.labels
    count = min(request.top_k or TOP_K_DEFAULT, len(labels))
    predictions = []
    for row, places in enumerate(best(probabilities, count)):
        prediction = pb.Prediction(
            classes=[
                pb.Prediction.Class(label=labels[index], probability=probabilities[row, index])
                for index in places
            ]
        )
        if request.probabilities:
            prediction.probabilities.extend(probabilities[row].tolist())
        if request.logits:
            prediction.logits.extend(outputs["logits"][row].tolist())
        if request.embeddings:
            prediction.embedding.extend(outputs["embeddings"][row].tolist())
        predictions.append(prediction)
    return pb.PredictResponse(
        version=str(version.name),
        sha256=by.classifier.digest,
        variant=by.classifier.precision,
        predictions=predictions,
        id=request.id,
    )


def best(values: NDArray[np.float32], count: int) -> list[NDArray[np.intp]]:
    """Where the *count* greatest of each row of [N, C] are, the greatest first.

    Of equal ones the first comes first. Only what may be among them is sorted: all of 256 rows
    of 10,000 would take the event loop half a second.
    """
    if count >= values.shape[1] or np.isnan(values).any():
        return list(np.argsort(-values, axis=1, kind="stable")[:, :count])
    least = -np.partition(-values, count - 1, axis=1)[:, count - 1]
    found = []
    for row, bound in zip(values, least, strict=True):
        places = np.flatnonzero(row >= bound)
        found.append(places[np.argsort(-row[places], kind="stable")[:count]])
    return found


def refusal(error: ServiceError, request: pb.PredictRequest) -> pb.PredictStreamResponse:
    """Write why one request of a stream has no answer."""
    return pb.PredictStreamResponse(
        refusal=pb.PredictStreamResponse.Refusal(
            reason=error.reason, message=status.status_of(error).message, id=request.id
        )
    )


def statistics(name: VersionName, counts: VersionStatistics) -> pb.VersionStatistics:
    """Write a version's counts."""
    return pb.VersionStatistics(
        version=str(name),
        images=counts.inferences,
        runs=counts.executions,
        pending=counts.pending,
        succeeded=_stage(counts.success),
        failed=_stage(counts.failure),
        cancelled=_stage(counts.cancelled),
        queue=_stage(counts.queue),
        decode=_stage(counts.decode),
        infer=_stage(counts.infer),
        encode=_stage(counts.encode),
        variant=counts.precision,
        sha256=counts.digest,
    )


def drift(version: VersionName, found: Drift) -> pb.Drift:
    """Write how far live inputs lie from what a version knows."""
    return pb.Drift(
        version=str(version),
        images=found.images,
        domains=[
            pb.Drift.Domain(domain=one.domain, distance=one.distance, p=one.p, unlike=one.unlike)
            for one in found.domains
        ],
        due=found.due,
        message=found.told,
    )


def _stage(duration: Duration) -> pb.VersionStatistics.Stage:
    return pb.VersionStatistics.Stage(count=duration.count, nanoseconds=duration.ns)
