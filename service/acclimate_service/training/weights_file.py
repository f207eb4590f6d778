"""A weights file from outside, read in memory and time that its own size bounds.

No library that allocates what a file claims is asked before the claim is checked, and
nothing is unpickled (see `pickled`). A tensor is a view of the file's own bytes, so a
file never grows by being opened.
"""

from __future__ import annotations

import io
import json
import math
import struct
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from acclimate_service.domain.weights_form import (
    HEAD_BYTES,
    HEADER_BYTES,
    WeightsForm,
    form_of,
    unreadable,
)
from acclimate_service.training import pickled
from acclimate_service.training.pickled import DIMENSIONS, Laid, Unfit

TENSORS: Final = 20_000
PICKLE_BYTES: Final = 16 * 2**20
DIRECTORY_BYTES: Final = 4 * 2**20
NAMED: Final = 10  # how many tensors of a kind a message names; the rest are counted
NAME_LENGTH: Final = 100  # characters

# What training scripts put around a state dict, most wanted first.
_NESTINGS: Final = ("state_dict", "model", "model_state_dict")
_PREFIXES: Final = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
_KINDS: Final[Mapping[str, torch.dtype]] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# The same in the words of safetensors.
_DTYPES: Final = frozenset(
    ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2")
)


def read(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a plain PyTorch state dict, views of *content*.

    Raises:
        WeightsMismatch: it is neither, it is damaged, it claims what it does not hold, or it
            holds objects that are not tensors.
    """
    form = form_of(content[:HEAD_BYTES])
    try:
        if form is WeightsForm.SAFETENSORS:
            found = _safetensors(content)
        else:
            laid, stored = (_archive if form is WeightsForm.ARCHIVE else _legacy)(content)
            found = {name: _tensor(tensor, stored) for name, tensor in _state_dict(laid).items()}
    except Unfit as error:
        raise unreadable(str(error)) from error
    for prefix in _PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


# ── safetensors ──────────────────────────────────────────────────────────────


def _safetensors(content: bytes) -> dict[str, Tensor]:
    (length,) = struct.unpack_from("<Q", content)
    if length > HEADER_BYTES or 8 + length > len(content):
        raise Unfit(f"claims a header of {length} bytes and has {len(content) - 8}")
    try:
        header = json.loads(content[8 : 8 + length], object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise Unfit("has a safetensors header that cannot be read") from error
    if not isinstance(header, dict):
        raise Unfit("has a safetensors header that names no tensors")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if len(entries) > TENSORS:
        raise Unfit(f"has {len(entries)} tensors; at most {TENSORS} are taken")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.get("dtype") not in _DTYPES:
            raise Unfit(f"has a tensor of an unknown kind, {shown(name)}")
        shape = entry.get("shape")
        if not isinstance(shape, list) or len(shape) > DIMENSIONS:
            raise Unfit(f"has a tensor of more than {DIMENSIONS} dimensions, {shown(name)}")
    try:
        # It refuses offsets that overlap, leave holes, or do not belong to the shape.
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise Unfit(f"is damaged ({str(error)[:200]})") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


# ── what torch.save writes ───────────────────────────────────────────────────


def _archive(content: bytes) -> tuple[Any, Mapping[str, memoryview]]:
    """What the archive's pickle says, and the bytes of each thing stored."""
    members = _members(content)
    name = next((each for each in members if each.endswith("/data.pkl")), None)
    if name is None:
        raise Unfit("is a zip archive, but not one that torch.save wrote")
    if len(members[name]) > PICKLE_BYTES:
        raise Unfit(f"has a pickle of {len(members[name])} bytes; at most {PICKLE_BYTES} are taken")
    folder = name.removesuffix("data.pkl")
    if bytes(members.get(f"{folder}byteorder", b"little")[:6]) != b"little":
        raise Unfit("was written on a big-endian machine")
    stored = {each.removeprefix(f"{folder}data/"): view for each, view in members.items()}
    return pickled.read(io.BytesIO(members[name])).value, stored


def _members(content: bytes) -> dict[str, memoryview]:
    """The files of a zip archive of files that are stored as they are.

    Its own few lines rather than a library's, since each library has its own idea of
    which of two directories counts. torch.save compresses nothing.

    Raises:
        Unfit: it is damaged, or it holds more than its own size: files that are compressed
            or share their bytes are how a small archive fills a memory.
    """
    if len(content) < 22 or content[-22:-18] != b"PK\5\6" or content[-2:] != b"\0\0":
        raise Unfit("is a zip archive that was cut or that torch.save did not write")
    count, size, at = struct.unpack_from("<HII", content, len(content) - 12)
    if size > DIRECTORY_BYTES or at + size > len(content):
        raise Unfit("is a zip archive with a directory that cannot be")
    members, left = dict[str, memoryview](), len(content)
    try:
        for _ in range(count):
            if content[at : at + 4] != b"PK\1\2":
                raise Unfit("is a damaged zip archive")
            (method,) = struct.unpack_from("<H", content, at + 10)
            packed, length, name, extra, note = struct.unpack_from("<IIHHH", content, at + 20)
            (local,) = struct.unpack_from("<I", content, at + 42)
            begin = local + 30 + sum(struct.unpack_from("<HH", content, local + 26))
            left -= length
            if method or packed != length or left < 0 or begin + length > len(content):
                raise Unfit("is a zip archive that holds more than its size; torch.save packs none")
            text = content[at + 46 : at + 46 + name].decode("utf-8", "replace")
            if text in members:
                raise Unfit("is a zip archive with two files of one name")
            members[text] = _aligned(content, begin, begin + length)
            at += 46 + name + extra + note
    except struct.error as error:
        raise Unfit("is a damaged zip archive") from error
    return members


def _legacy(content: bytes) -> tuple[Any, Mapping[str, memoryview]]:
    """The same of what torch.save wrote before 1.6: five pickles, then the bytes, each counted."""
    file = io.BytesIO(content)
    _number, _version, system, laid, keys = [pickled.read(file) for _ in range(5)]
    if not isinstance(system.value, dict) or system.value.get("little_endian") is not True:
        raise Unfit("was written on a big-endian machine")
    at, stored = file.tell(), dict[str, memoryview]()
    for key in keys.value if isinstance(keys.value, list) else ():
        known = laid.stored.get(key) if isinstance(key, str) else None
        if known is None or key in stored:
            raise Unfit("is damaged: what it stores is not what it speaks of")
        begin = at + 8  # after the count, which must be the one that the pickle has
        end = begin + known.count * _dtype(known.kind).itemsize
        if end > len(content) or int.from_bytes(content[at:begin], "little") != known.count:
            raise Unfit("was cut, or claims more than it holds")
        stored[key] = _aligned(content, begin, end)
        at = end
    return laid.value, stored


def _aligned(content: bytes, begin: int, end: int) -> memoryview:
    """A part of *content*, or a copy where no number could begin."""
    part = memoryview(content)[begin:end]
    return part if begin % 8 == 0 else memoryview(bytes(part))


def _state_dict(found: Any) -> dict[str, Laid]:
    """The state dict inside what a training script saved."""
    for nesting in _NESTINGS:
        if isinstance(found, dict) and isinstance(found.get(nesting), dict):
            found = found[nesting]
    if not isinstance(found, dict):
        raise Unfit("holds no state dict")
    strangers = [
        name if isinstance(name, str) else "a name that is no text"
        for name, value in found.items()
        if not isinstance(value, Laid) or not isinstance(name, str)
    ]
    if strangers:
        raise Unfit(
            "is no state dict: it holds things that are not plain tensors under names: "
            f"{listed(strangers)}"
        )
    return found


def _tensor(laid: Laid, stored: Mapping[str, memoryview]) -> Tensor:
    """The tensor itself, over the file's bytes.

    Raises:
        Unfit: some of its elements are not in the file.
    """
    dtype, view = _dtype(laid.stored.kind), stored.get(laid.stored.key, memoryview(b""))
    if laid.stored.count * dtype.itemsize > len(view):
        raise Unfit("claims more elements than it holds")
    if 0 in laid.shape:
        if math.prod(max(1, n) for n in laid.shape) >= 2**63:
            raise Unfit("has a tensor of a shape that cannot be")
        return torch.empty(laid.shape, dtype=dtype)
    last = laid.offset + sum((n - 1) * s for n, s in zip(laid.shape, laid.strides, strict=True))
    if last >= laid.stored.count:
        raise Unfit("has a tensor that reaches beyond what is stored")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be written to: nobody does
        row = torch.frombuffer(view, dtype=dtype, count=laid.stored.count)
    return row.as_strided(laid.shape, laid.strides, laid.offset)


def _dtype(kind: str) -> torch.dtype:
    if kind not in _KINDS:
        raise Unfit(f"holds elements of an unknown kind, {shown(kind)}")
    return _KINDS[kind]


# ── what a message says of it ────────────────────────────────────────────────


def shown(name: str) -> str:
    """A tensor's name as a message may hold it: the file's author chose it."""
    plain = name if name.isprintable() else ascii(name)[1:-1]
    return plain if len(plain) <= NAME_LENGTH else f"{plain[:NAME_LENGTH]}..."


def listed(names: Sequence[str]) -> str:
    """The first of *names*, and how many they are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(map(shown, names[:NAMED]))}{more} ({len(names)})"
