"""Inference messages of the Open Inference Protocol: only proto ↔ arrays.

A model has one input, ``images``, which comes as UINT8 pixels [N, size, size, 3], as
FP32 of the same shape holding whole numbers from 0 to 255, or as BYTES [N] or [N, 1]: N
image files. Its outputs are FP32. Tensors may be raw (row-major, little-endian) or typed; an
answer has the form of its request.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from acclimate.oip import grpc_service_pb2 as pb
from acclimate_service.domain.errors import InputMismatch, InvalidSpec
from acclimate_service.domain.model import PRODUCTION, ModelVersion, Preprocessing
from acclimate_service.domain.names import AliasName, VersionName, check_id
from acclimate_service.inference.batcher import ORDINARY
from acclimate_service.inference.classifier import Pixels
from acclimate_service.inference.encoded import Encoded
from acclimate_service.inference.handle import Handle
from acclimate_service.inference.sessions import INPUT, OUTPUTS
from acclimate_service.rpc import convert_predictions, fields
from acclimate_service.rpc.convert_predictions import IMAGE_LIMIT, Outputs, whole

Parameters = Mapping[str, pb.InferParameter]
Tensor = pb.ModelInferRequest.InferInputTensor

NAMES: Final = 1024  # that callers ask by, read once
FINAL_ASKED: Final = "triton_enable_empty_final_response"
FINAL: Final = "triton_final_response"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a request's parameters say.

    After ``seconds`` the answer is of no use; the version of ``domain`` is to answer, if it is
    not empty; ``routing_key`` decides who answers during a canary.
    """

    seconds: float | None = None
    priority: int = ORDINARY
    domain: str = ""
    routing_key: str = ""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One output asked for. ``classes`` > 0 asks for that many labels instead of numbers."""

    name: str
    classes: int = 0


_NOTHING_TOLD: Final = Told()
_OUTPUTS_ARE: Final = f"outputs are some of {list(OUTPUTS)}, each at most once"
_PLAINLY: Final = {name: Wanted(name=name) for name in OUTPUTS}


@functools.lru_cache(maxsize=NAMES)
def target(name: str, version: str) -> str:
    """The resource name that a model's and a version's plain ids mean.

    Without a version it is the model's alias "production".

    Raises:
        InvalidName: one of them is not an id.
    """
    if version:
        return str(VersionName(check_id(name), check_id(version)))
    return str(AliasName(check_id(name), PRODUCTION))


def takes_long(request: pb.ModelInferRequest) -> bool:
    """Whether reading the images would hold the event loop up.

    Typed numbers are a Python object each, and each float is compared with its rounded self.
    """
    raw = bool(request.raw_input_contents)
    kinds = [tensor.datatype for tensor in request.inputs]
    return "FP32" in kinds or not (raw or set(kinds) <= {"BYTES"})


def images(request: pb.ModelInferRequest, preprocessing: Preprocessing) -> Pixels | Encoded:
    """The pixels or the image files of a request.

    Raises:
        InputMismatch: not exactly one input ``images`` of a shape and type that is taken.
        InvalidSpec: raw and typed contents are mixed, or shared memory is asked for.
    """
    if [tensor.name for tensor in request.inputs] != [INPUT]:
        raise InputMismatch(f"a request has exactly one input, {INPUT!r}")
    tensor, given = request.inputs[0], tuple(request.inputs[0].shape)
    _no_shared_memory(tensor.parameters)
    raw = _raw(request, tensor)
    if tensor.datatype == "BYTES":
        # [N, 1] is how clients of Triton's send one string an image.
        count = _count(given, (1,) if len(given) > 1 else ())
        files = tensor.contents.bytes_contents if raw is None else _strings(raw)
        if len(files) != count:
            raise InputMismatch(f"the shape says {count} image files, {len(files)} came")
        return Encoded(files=tuple(files), preprocessing=preprocessing)
    count = _count(given, (preprocessing.size, preprocessing.size, 3))
    flat = _uint8(tensor, raw)
    shape = (count, preprocessing.size, preprocessing.size, 3)
    if flat.size != math.prod(shape):
        raise InputMismatch(
            f"the shape {list(shape)} needs {math.prod(shape)} elements, {flat.size} came"
        )
    return flat.reshape(shape)


def _raw(request: pb.ModelInferRequest, tensor: Tensor) -> bytes | None:
    if not request.raw_input_contents:
        return None
    if len(request.raw_input_contents) != 1 or tensor.HasField("contents"):
        raise InvalidSpec(
            "give the one input's contents either raw or typed", field="raw_input_contents"
        )
    return request.raw_input_contents[0]


def _count(shape: tuple[int, ...], rest: tuple[int, ...]) -> int:
    """N of a shape [N, *rest]."""
    if not shape or shape[1:] != rest or not 0 < shape[0] <= IMAGE_LIMIT:
        wanted = ["N", *map(str, rest)]
        raise InputMismatch(
            f"the input has the shape {list(shape)[:8]}, not [{', '.join(wanted)}] with N from 1 "
            f"to {IMAGE_LIMIT}"
        )
    return shape[0]


def _uint8(tensor: Tensor, raw: bytes | None) -> NDArray[np.uint8]:
    if tensor.datatype == "UINT8":
        if raw is not None:
            return np.frombuffer(raw, np.uint8)
        return whole(np.array(tensor.contents.uint_contents, np.float64))
    if tensor.datatype == "FP32":
        if raw is None:
            return whole(np.array(tensor.contents.fp32_contents, np.float64))
        if len(raw) % 4:
            raise InputMismatch(f"{len(raw)} bytes are no whole number of FP32 elements")
        return whole(np.frombuffer(raw, "<f4"))
    raise InputMismatch(
        f"the datatype is {tensor.datatype[:20]!r}; UINT8, FP32 and BYTES are taken"
    )


def _strings(raw: bytes) -> list[bytes]:
    """The elements of a raw BYTES tensor: each after its length, four bytes little-endian."""
    found, start = [], 0
    while start < len(raw):
        if start + 4 > len(raw):
            raise InputMismatch("the raw BYTES tensor ends within a length")
        (length,) = struct.unpack_from("<I", raw, start)
        start += 4
        if start + length > len(raw):
            raise InputMismatch("the raw BYTES tensor ends within an element")
        found.append(raw[start : start + length])
        start += length
    return found


def _no_shared_memory(parameters: Parameters) -> None:
    if parameters and any(key.startswith("shared_memory") for key in parameters):
        raise InvalidSpec("shared memory is not supported; send the tensor", field="parameters")


def wanted(request: pb.ModelInferRequest) -> tuple[Wanted, ...]:
    """The outputs asked for; all of them if none is named.

    Raises:
        InputMismatch: there is no such output, or one is named twice.
        InvalidSpec: a parameter makes no sense.
    """
    fields.text("id", request.id, limit=300)
    if not request.outputs:
        return tuple(_PLAINLY.values())
    found = tuple([_wanted(output) for output in request.outputs])
    if len(found) > 1 and len({one.name for one in found}) != len(found):
        raise InputMismatch(_OUTPUTS_ARE)
    return found


def _wanted(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> Wanted:
    plain = _PLAINLY.get(output.name)
    if plain is None:
        raise InputMismatch(_OUTPUTS_ARE)
    if not output.parameters:
        return plain
    _no_shared_memory(output.parameters)
    classes = output.parameters["classification"].int64_param
    if plain.name == "embeddings" and classes:
        raise InvalidSpec("embeddings are of no class", field="outputs.parameters")
    return Wanted(
        name=plain.name,
        classes=fields.count("outputs.parameters.classification", classes, most=10_000),
    )


def told(request: pb.ModelInferRequest) -> Told:
    """What the parameters say.

    Raises:
        InvalidName: ``domain`` is none.
        InvalidSpec: another makes no sense, or a version is named beside a domain.
    """
    if not request.parameters:
        return _NOTHING_TOLD
    _no_sequence(request)
    return Told(
        seconds=_seconds(request),
        priority=_priority(request),
        domain=_domain(request),
        routing_key=_routing_key(request),
    )


def _no_sequence(request: pb.ModelInferRequest) -> None:
    """Refuse Triton's sequences: every image is answered by itself, whatever came before it."""
    given = request.parameters.get("sequence_id")
    if given is not None and (given.int64_param or given.uint64_param or given.string_param):
        raise InvalidSpec(
            "sequences are not offered: every request is answered by itself; leave sequence_id out",
            field="parameters.sequence_id",
        )


def _seconds(request: pb.ModelInferRequest) -> float | None:
    """Triton's ``timeout``, which is in microseconds; 0 means none."""
    if "timeout" not in request.parameters:
        return None
    microseconds = request.parameters["timeout"].int64_param
    return fields.count("parameters.timeout", microseconds, most=2**53) / 1e6 or None


def _priority(request: pb.ModelInferRequest) -> int:
    """Triton's ``priority``; 0 or none means ordinary."""
    if "priority" not in request.parameters:
        return ORDINARY
    given = request.parameters["priority"]
    # Triton's own client sends an unsigned number, KServe's a signed one.
    value = given.uint64_param or given.int64_param
    return convert_predictions.priority("parameters.priority", value)


def _routing_key(request: pb.ModelInferRequest) -> str:
    if "routing_key" not in request.parameters:
        return ""
    given = request.parameters["routing_key"].string_param
    return fields.text("parameters.routing_key", given, limit=300)


def _domain(request: pb.ModelInferRequest) -> str:
    if "domain" not in request.parameters:
        return ""
    given = request.parameters["domain"].string_param
    if request.model_version:
        raise InvalidSpec("give either a version or a domain", field="parameters.domain")
    return convert_predictions.domain("parameters.domain", given)


def response(
    request: pb.ModelInferRequest,
    by: Handle[ModelVersion],
    asked: Sequence[Wanted],
    outputs: Outputs,
) -> pb.ModelInferResponse:
    """Write the answer of *by*, whose file the parameters ``sha256`` and ``variant`` name."""
    version = by.details
    answer = pb.ModelInferResponse(
        model_name=request.model_name, model_version=version.name.version, id=request.id
    )
    answer.parameters["sha256"].string_param = by.classifier.digest
    answer.parameters["variant"].string_param = by.classifier.precision
    if FINAL_ASKED in request.parameters:
        answer.parameters[FINAL].bool_param = True
    for output in asked:
        values = outputs[output.name]
        if output.classes:
            named = _classes(values, version.manifest.labels, output.classes)
            _add_strings(request, answer, output.name, named)
        else:
            _add_floats(request, answer, output.name, values)
    return answer


def _add_floats(
    request: pb.ModelInferRequest,
    answer: pb.ModelInferResponse,
    name: str,
    values: NDArray[np.float32],
) -> None:
    tensor = answer.outputs.add(name=name, datatype="FP32", shape=values.shape)
    if request.raw_input_contents:
        answer.raw_output_contents.append(values.astype("<f4", copy=False).tobytes())
    else:
        tensor.contents.fp32_contents.extend(values.ravel().tolist())


def _add_strings(
    request: pb.ModelInferRequest,
    answer: pb.ModelInferResponse,
    name: str,
    rows: Sequence[Sequence[bytes]],
) -> None:
    shape = (len(rows), len(rows[0]))
    tensor = answer.outputs.add(name=name, datatype="BYTES", shape=shape)
    flat = [element for row in rows for element in row]
    if request.raw_input_contents:
        lengths = (struct.pack("<I", len(element)) for element in flat)
        raw = b"".join(part for pair in zip(lengths, flat, strict=True) for part in pair)
        answer.raw_output_contents.append(raw)
    else:
        tensor.contents.bytes_contents.extend(flat)


def _classes(values: NDArray[np.float32], labels: Sequence[str], count: int) -> list[list[bytes]]:
    """Triton's classification extension: ``value:index:label``, the best first."""
    order = convert_predictions.best(values, count)
    return [
        [f"{row[index]:f}:{index}:{labels[index]}".encode() for index in places]
        for row, places in zip(values, order, strict=True)
    ]
