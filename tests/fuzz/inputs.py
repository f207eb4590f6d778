"""What is thrown at the service: files, messages, tensors and names, each from a seed."""

from __future__ import annotations

import functools
import io
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from google.protobuf import descriptor
from google.protobuf.message import Message
from PIL import Image
from tests.unit.rpc.methods import Method, text_fields

from acclimate.oip import grpc_service_pb2
from acclimate.v1 import inference_pb2

HOSTILE: Final = (
    *("", " ", ".", "..", "/", "../../etc/passwd", "..\\..\\windows", "%2e%2e%2f", "%252e%252e"),
    *(
        "models/..",
        "models/../../x",
        "models//versions/1",
        "models/a/versions/../../b",
        "models/a;",
    ),
    *("domains/a/batches/..", "jobs/../x", "tokens/", "models/a\0b", "\0", "a\nb", "a\r\nb"),
    *(
        '\n{"level": "info", "event": "forged"}',
        "\x1b[2J\x1b]0;owned\x07",
        "\u202etxt.exe",
        "\u2028",
    ),
    *("${jndi:ldap://x}", "{{7*7}}", "%s%s%s%n", "'; DROP TABLE models; --", "$(reboot)", "`id`"),
    *("A" * 64, "a" * 64, "a" * 10_000, "é" * 100, "\U0001f4a9", "ａ", "a b", "-a", "a-", "CON"),
    *("file:///etc/passwd", "http://127.0.0.1/", "\ufeffa", "a\u0000", "models/" + "a/" * 500),
)
WORTHWHILE: Final = (
    "m",
    "models/m",
    "models/m/versions/1",
    "models/m/aliases/production",
    "jobs/x",
)


# ── images ───────────────────────────────────────────────────────────────────


@functools.cache
def whole_images() -> tuple[bytes, ...]:
    """Small files of every format that is taken, and of some that are not."""
    found = []
    picture = Image.radial_gradient("L").resize((24, 18))
    for mode in ("RGB", "L", "RGBA", "P", "CMYK", "I;16"):
        for codec, options in (
            *[("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})],
            *[("WEBP", {"lossless": True}), ("GIF", {}), ("BMP", {}), ("TIFF", {})],
        ):
            file = io.BytesIO()
            try:
                picture.convert(mode).save(file, codec, **options)
            except (OSError, ValueError):  # this format knows no such pixels
                continue
            found.append(file.getvalue())
    return tuple(found)


def image(rng: random.Random) -> bytes:
    """A file with some of its bytes changed, cut, doubled or joined to another's."""
    file = rng.choice(whole_images())
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(200))
    if rng.random() < 0.1:
        other = rng.choice(whole_images())
        file = file[: rng.randrange(len(file))] + other[rng.randrange(len(other)) :]
    return mutated(rng, file)


def mutated(rng: random.Random, content: bytes) -> bytes:
    """*content* after a few small accidents."""
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 6)):
        if not changed:
            break
        at = rng.randrange(len(changed))
        match rng.randrange(6):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff"))
            case 2:
                changed[at : at + rng.randrange(16)] = rng.randbytes(rng.randrange(16))
            case 3:
                del changed[at : at + rng.randrange(1, 64)]
            case 4:
                changed[at:at] = changed[at : at + rng.randrange(1, 64)]
            case _:
                del changed[len(changed) - rng.randrange(min(len(changed), 64)) :]
    return bytes(changed)


# ── messages ─────────────────────────────────────────────────────────────────


def messages(rng: random.Random, method: Method) -> list[bytes]:
    """The bytes of one call of *method*: several messages if it takes a stream."""
    count = rng.randrange(1, 4) if method.streams_in else 1
    return [_message(rng, method) for _ in range(count)]


def _message(rng: random.Random, method: Method) -> bytes:
    match rng.randrange(6):
        case 0:
            return rng.randbytes(rng.randrange(100))
        case 1:  # groups or sub-messages in each other, deeper than any parser likes
            depth = rng.randrange(1, 3000)
            return rng.choice((b"\x0b", b"\x0a\x7f", b"\x1a\x7f")) * depth
    message = method.request()
    grown(rng, message, depth=4)
    content = message.SerializeToString()
    return mutated(rng, content) if rng.random() < 0.5 else content


def grown(rng: random.Random, message: Message, depth: int) -> None:
    """Fill some of the fields of *message* with whatever their types allow."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.5:
            continue
        if field.message_type is not None:
            if depth and not field.message_type.GetOptions().map_entry:
                repeated = field.is_repeated
                below = getattr(message, field.name)
                grown(rng, below.add() if repeated else below, depth - 1)
        elif field.is_repeated:
            count = rng.choice((1, 2, 3, 300))
            getattr(message, field.name).extend(_scalar(rng, field) for _ in range(count))
        else:
            setattr(message, field.name, _scalar(rng, field))


def _scalar(rng: random.Random, field: Any) -> Any:
    kinds = descriptor.FieldDescriptor
    if field.cpp_type == kinds.CPPTYPE_STRING:
        if field.type == kinds.TYPE_BYTES:
            return rng.choice((b"", rng.randbytes(rng.randrange(64)), image(rng)))
        return rng.choice((*HOSTILE, *WORTHWHILE))
    if field.cpp_type in (kinds.CPPTYPE_FLOAT, kinds.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e38, 5e-324))
    if field.cpp_type == kinds.CPPTYPE_BOOL:
        return rng.random() < 0.5
    signed, long = {
        kinds.CPPTYPE_INT32: (True, 32),
        kinds.CPPTYPE_ENUM: (True, 32),
        kinds.CPPTYPE_UINT32: (False, 32),
        kinds.CPPTYPE_INT64: (True, 64),
        kinds.CPPTYPE_UINT64: (False, 64),
    }[field.cpp_type]
    most = 2 ** (long - signed) - 1
    return rng.choice((0, 1, 2, 7, most, rng.randrange(most), *((-1, -most - 1) if signed else ())))


# ── tensors ──────────────────────────────────────────────────────────────────


def tensor_call(rng: random.Random, model: str, size: int) -> tuple[str, bytes]:
    """A prediction with pixels that are nearly right: the method, and its request."""
    shape = [rng.choice((1, 2, 3)), size, size, 3]
    count = shape[0] * size * size * 3
    if rng.random() < 0.6:
        shape[rng.randrange(4)] = rng.choice((0, -1, 1, 2**31, 2**62, size + 1))
    if rng.random() < 0.2:
        shape = shape[: rng.randrange(4)] or [2**40] * 9
    if rng.random() < 0.5:
        tensor = inference_pb2.Tensor(shape=shape, pixels=bytes(count + rng.choice((0, 0, 1, -1))))
        own = inference_pb2.PredictRequest(model=f"models/{model}", tensor=tensor)
        own.top_k = rng.choice((0, 1, -1, 2**31 - 1))
        return "/acclimate.v1.InferenceService/Predict", own.SerializeToString()
    request = grpc_service_pb2.ModelInferRequest(model_name=model, id=rng.choice(HOSTILE))
    given = request.inputs.add(name=rng.choice(("images", "images", "x", "")), shape=shape)
    given.datatype = rng.choice(("UINT8", "FP32", "BYTES", "FP64", "INT64", "BOOL", "", "\n"))
    if rng.random() < 0.7:
        number = rng.choice((float("nan"), float("inf"), -1.0, 0.5, 255.0, 256.0, 1e38))
        raw = (
            struct.pack("<f", number) * count if given.datatype == "FP32" else rng.randbytes(count)
        )
        request.raw_input_contents.append(raw[: rng.choice((None, -1, 5, 0))])
    else:
        given.contents.fp32_contents.extend([rng.choice((float("nan"), 1.0))] * 9)
        given.contents.bytes_contents.append(image(rng))
    for key in rng.sample(("timeout", "sequence_id", "shared_memory_region", "priority"), 2):
        request.parameters[key].int64_param = rng.choice((0, -1, 2**62, 1))
    return "/inference.GRPCInferenceService/ModelInfer", request.SerializeToString()


# ── names ────────────────────────────────────────────────────────────────────


def named_calls(rng: random.Random, methods: list[Method]) -> Iterator[tuple[Method, bytes]]:
    """Without an end: every string field of every method in turn, with a hostile text."""
    fields = [(method, path) for method in methods for path in paths(method)]
    while True:
        for method, path in fields:
            message = method.request()
            if rng.random() < 0.5:
                grown(rng, message, depth=3)
            text = rng.choice(HOSTILE)
            if rng.random() < 0.3:
                text = rng.choice(WORTHWHILE) + text
            put(message, path, text)
            yield method, message.SerializeToString()


def paths(method: Method) -> list[str]:
    """The string fields of its request, those within lists and maps aside."""
    return [path for path in text_fields(method.request.DESCRIPTOR) if _reachable(method, path)]


def _reachable(method: Method, path: str) -> bool:
    kind = method.request.DESCRIPTOR
    for name in path.split(".")[:-1]:
        field = kind.fields_by_name[name]
        if field.is_repeated or field.message_type is None:
            return False
        kind = field.message_type
    return True


def put(message: Message, path: str, text: str) -> None:
    """Write *text* into the field at *path*; into a list, as its last element."""
    *above, last = path.split(".")
    holder: Any = functools.reduce(getattr, above, message)
    if holder.DESCRIPTOR.fields_by_name[last].is_repeated:
        getattr(holder, last).append(text)
    else:
        setattr(holder, last, text)


Maker = Callable[[random.Random], bytes]
