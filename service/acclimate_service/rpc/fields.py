"""Single fields of a message: read strictly, written plainly.

Every reader names the field it refuses (``InvalidSpec`` with ``field``), so that the
caller sees which one to mend. Resource names are read by ``domain/names``.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, TypeVar

import pydantic
from google.protobuf import struct_pb2, timestamp_pb2
from pydantic import JsonValue

from acclimate_service.domain.errors import InvalidSpec

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
SHA256: Final = re.compile(r"[0-9a-f]{64}")
LABEL_LENGTH: Final = 200  # characters
LABEL_COUNT: Final = 10_000
STRUCT_DEPTH: Final = 8
STRUCT_NODES: Final = 10_000
# Controls, line breaks among them; Unicode's own line breaks; half surrogates, which UTF-8
# cannot carry; and bidi marks, which can make a log line read as another one. One search, since
# a message holds millions of characters, and this is the event loop.
_NOT_PLAIN: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]"
)

Spec = TypeVar("Spec", bound=pydantic.BaseModel)


def text(field: str, value: str, *, limit: int, required: bool = False) -> str:
    """A line of text: no control characters, at most *limit* characters.

    Raises:
        InvalidSpec: it is empty though required, too long, or not one printable line.
    """
    if required and not value.strip():
        raise InvalidSpec(f"{field} is required", field=field)
    if len(value) > limit:
        raise InvalidSpec(
            f"{field} has {len(value)} characters, more than {limit} are not taken", field=field
        )
    if found := _NOT_PLAIN.search(value):
        raise InvalidSpec(
            f"{field} contains the character U+{ord(found[0]):04X}; give one line of plain text",
            field=field,
        )
    return value


def labels(field: str, values: Collection[str]) -> tuple[str, ...]:
    """Label names: distinct, in the order given.

    Raises:
        InvalidSpec: one is empty, given twice, or not a plain line; or they are too many.
    """
    if len(values) > LABEL_COUNT:
        raise InvalidSpec(
            f"{field} has {len(values)} entries; at most {LABEL_COUNT} are taken", field=field
        )
    seen: set[str] = set()
    for index, value in enumerate(values):
        place = f"{field}[{index}]"
        text(place, value, limit=LABEL_LENGTH, required=True)
        if value != value.strip():
            raise InvalidSpec(f"{place} begins or ends with a space", field=place)
        if value in seen:
            raise InvalidSpec(f"{place} repeats the label {value!r}", field=place)
        seen.add(value)
    return tuple(values)


def request_id(value: str, *, required: bool = False) -> str:
    """A request id; empty if the caller gave none.

    Raises:
        InvalidSpec: it has the wrong form, or is missing though required.
    """
    if not value and not required:
        return value
    if not REQUEST_ID.fullmatch(value):
        raise InvalidSpec(
            "request_id must be 1-100 of A-Z a-z 0-9 _ . - and begin with a letter or digit; "
            "a UUID is a good one",
            field="request_id",
        )
    return value


def sha256(field: str, value: str) -> str:
    """A digest in lower-case hex.

    Raises:
        InvalidSpec: it is not 64 hexadecimal digits.
    """
    if not SHA256.fullmatch(value):
        raise InvalidSpec(f"{field} must be a sha256 in lower-case hex", field=field)
    return value


def count(field: str, value: int, *, most: int) -> int:
    """A number between 0 and *most*.

    Raises:
        InvalidSpec: it is outside.
    """
    if not 0 <= value <= most:
        raise InvalidSpec(f"{field} must be between 0 and {most}, not {value}", field=field)
    return value


def checked(model: type[Spec], values: Mapping[str, object], *, field: str) -> Spec:
    """Build a pydantic model, its complaints turned into ours.

    Raises:
        InvalidSpec: a value is refused; the field's path and the reason are named.
    """
    try:
        return model.model_validate(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join((field, *(str(part)[:100] for part in first["loc"])))
        raise InvalidSpec(f"{path}: {first['msg']}", field=path) from None


def json_of(field: str, struct: struct_pb2.Struct) -> dict[str, JsonValue]:
    """The JSON object in a Struct. Whole numbers come out as ints.

    Raises:
        InvalidSpec: it nests too deeply, is too large, or holds NaN or infinity.
    """
    budget = [STRUCT_NODES]
    return _object(field, struct, STRUCT_DEPTH, budget)


def _object(
    field: str, struct: struct_pb2.Struct, depth: int, budget: list[int]
) -> dict[str, JsonValue]:
    return {
        text(f"{field} key", key, limit=200): _json(f"{field}.{key}", value, depth - 1, budget)
        for key, value in struct.fields.items()
    }


def _json(field: str, value: struct_pb2.Value, depth: int, budget: list[int]) -> JsonValue:
    budget[0] -= 1
    if depth < 0 or budget[0] < 0:
        raise InvalidSpec(f"{field[:200]} is too deep or too large", field=field[:200])
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise InvalidSpec(f"{field} is not a finite number", field=field)
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if kind == "string_value":
        return text(field, value.string_value, limit=10_000)
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return _object(field, value.struct_value, depth, budget)
    if kind == "list_value":
        return [_json(field, item, depth - 1, budget) for item in value.list_value.values]
    return None


def struct_of(values: Mapping[str, JsonValue]) -> struct_pb2.Struct:
    """A Struct with the JSON object *values*."""
    struct = struct_pb2.Struct()
    struct.update(_finite(values))
    return struct


def _finite(value: Any) -> Any:
    # A Struct has doubles only, and JSON has no NaN: a number that no reader could
    # parse becomes null rather than an error in the middle of an answer.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value


def timestamp(moment: dt.datetime | None) -> timestamp_pb2.Timestamp | None:
    """A Timestamp, or None to leave the field unset."""
    if moment is None:
        return None
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(moment)
    return stamp
