"""Weights files as an attacker makes them: each is refused with a reason and costs little."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.fuzz.inputs import mutated

from acclimate_service.domain.errors import WeightsMismatch
from acclimate_service.domain.weights_form import HEADER_BYTES, WeightsForm, form_of
from acclimate_service.training import weights_file

SECONDS, MEBIBYTES = 5.0, 128  # of processor, and of memory beyond the file's own
BOMB_BYTES = 256 * 2**20


# ── safetensors ──────────────────────────────────────────────────────────────


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def written(header: bytes | dict[str, Any], body: bytes = b"", *, length: int = -1) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length < 0 else length) + text + body


def twice(first: tuple[int, int], second: tuple[int, int]) -> bytes:
    one, other = (json.dumps(entry([4], *offsets)) for offsets in (first, second))
    return written(f'{{"a": {one}, "a": {other}}}'.encode(), bytes(32))


# ── what torch.save writes ───────────────────────────────────────────────────


def saved(value: object, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def rewritten(
    content: bytes, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED
) -> bytes:
    """The same archive with other files in it."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(file, "w", method, compresslevel=1) as new,
    ):
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return file.getvalue()


SMALL = {"conv1.weight": torch.zeros(4)}


def pickled(raw: bytes) -> bytes:
    """An archive with this pickle."""
    return rewritten(saved(SMALL), lambda name, old: raw if name.endswith(".pkl") else old)


def claiming(content: bytes, count: int) -> bytes:
    """The same pickle with *count* in place of the number 4."""
    return content.replace(b"K\x04", b"J" + struct.pack("<i", count))


def packed() -> bytes:
    """A small file that would fill the memory with zeros."""
    bomb = rewritten(
        saved(SMALL),
        lambda name, old: (
            bytes(BOMB_BYTES) if name.endswith("data/0") else claiming(old, BOMB_BYTES // 4)
        ),
        zipfile.ZIP_DEFLATED,
    )
    assert len(bomb) < BOMB_BYTES / 100
    return bomb


def overlapping() -> bytes:
    """A hundred entries for the same 8 MiB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.writestr("a/data/0", bytes(8 * 2**20))
        # The directory is written from this list when the archive is closed.
        for number in range(1, 100):
            again = zipfile.ZipInfo(f"a/data/{number}")
            for field in ("file_size", "compress_size", "header_offset", "CRC"):
                setattr(again, field, getattr(archive.filelist[1], field))
            archive.filelist.append(again)
    return file.getvalue()


class Calls:
    """Pickled as a call of *function*."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def shared(times: int) -> bytes:
    """A pickle that makes many dicts of one long list of pairs."""
    pairs = b"]q\x00(" + b"](K\x01K\x02e" * 10_000 + b"e"
    return b"\x80\x02(" + pairs + b"ccollections\nOrderedDict\nh\x00\x85R" * times + b"t."


ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "neither"),
    "text": (lambda: b"these are no weights\n" * 99, "neither"),
    "an ONNX file": (lambda: b"\x08\x0a\x12\x07pytorch\x1a\x052.9.0" + bytes(99), "ONNX"),
    "a bare pickle": (lambda: pickle.dumps({"a": 1}, 4), "bare pickle"),
    "a header longer than any file": (lambda: written(b"{}", length=2**63), "claims"),
    "a header longer than the file": (lambda: written(b"{}", length=2**20), "claims"),
    "a header of spaces": (lambda: written(b"{" + b" " * 40_000_000 + b"}"), "at most"),
    "a header of too many tensors": (
        lambda: written({f"{n:x}": entry([0], 0, 0) for n in range(25_000)}),
        "tensors",
    ),
    "a header that nests": (lambda: written(b'{"a":' + b"[" * 1_000_000), "cannot be read"),
    "a header that is a number": (lambda: written(b'{"a": 7}'), "unknown kind"),
    "two tensors of one name": (lambda: twice((0, 16), (16, 32)), "cannot be read"),
    "the same tensor twice": (lambda: twice((0, 16), (0, 16)), "cannot be read"),
    "tensors that overlap": (
        lambda: written({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)),
        "damaged",
    ),
    "a hole": (
        lambda: written({"a": entry([4], 0, 16), "b": entry([4], 32, 48)}, bytes(48)),
        "damaged",
    ),
    "offsets outside of the file": (lambda: written({"a": entry([4], 0, 16)}, bytes(8)), "damaged"),
    "offsets below zero": (lambda: written({"a": entry([4], -16, 0)}, bytes(16)), "damaged"),
    "offsets that overflow": (
        lambda: written({"a": entry([4], 2**64 - 16, 2**64)}, bytes(16)),
        "damaged",
    ),
    "a shape that overflows": (lambda: written({"a": entry([2**62, 4], 0, 16)}, bytes(16)), "over"),
    "an empty shape that overflows": (
        lambda: written({"a": entry([2**40, 2**40, 0], 0, 0)}),
        "damaged",
    ),
    "more dimensions than torch has": (
        lambda: written({"a": entry([1] * 100_000, 0, 4)}, bytes(4)),
        "dimensions",
    ),
    "elements of half a byte": (lambda: written({"a": entry([8], 0, 4, "F4")}, bytes(4)), "kind"),
    "a compressed archive": (packed, "holds more than its size"),
    "files that share their bytes": (overlapping, "holds more than its size"),
    "an archive of something else": (
        lambda: rewritten(saved(SMALL), lambda *_: b"hello").replace(b"data.pkl", b"data.txt"),
        "not one that torch.save",
    ),
    "an archive that ends early": (lambda: saved(SMALL)[:-30], "was cut"),
    "an archive of another byte order": (
        lambda: rewritten(saved(SMALL), lambda n, old: b"big" if n.endswith("order") else old),
        "big-endian",
    ),
    "a storage that claims more than it holds": (
        lambda: rewritten(
            saved(SMALL), lambda name, old: claiming(old, 2**30) if name.endswith(".pkl") else old
        ),
        "claims more",
    ),
    "the same in the old form": (
        lambda: claiming(saved(SMALL, zipped=False), 2**30),
        "claims more",
    ),
    "a call that runs code": (
        lambda: saved({"a": Calls(os.system, "true")}),
        r"names '\w+.system'",
    ),
    "a call that fills the memory": (
        lambda: pickled(pickle.dumps({"a": Calls(bytearray, 2**33)}, 2)),
        "not plain tensors",
    ),
    "a tensor that fills the memory": (
        lambda: saved({"a": Calls(torch.Tensor, 2**33)}),
        "not plain tensors",
    ),
    "a tensor that is nowhere": (
        lambda: saved({"a": torch.zeros(1, device="meta")}),
        "not plain tensors",
    ),
    "complex numbers": (lambda: saved({"a": torch.zeros(1, dtype=torch.complex64)}), "kind"),
    "a name that is a number": (lambda: saved({7: torch.zeros(1)}), "no text"),
    "lists in one another without end": (
        lambda: pickled(b"\x80\x02" + b"]" * 600_000 + b"a" * 599_999 + b"."),
        "steps",
    ),
    "a list that is read again and again": (lambda: pickled(shared(1000)), "steps"),
    "an instruction that builds objects": (
        lambda: pickled(b"\x80\x02ctorch\nTensor\n)\x81."),
        "NEWOBJ",
    ),
    "a pickle without an end": (lambda: pickled(b"\x80\x02}"), "damaged"),
    "an empty stack": (lambda: pickled(b"\x80\x02e."), "damaged"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_refused_with_its_reason_and_the_way_out(attack: str) -> None:
    make, why = ATTACKS[attack]
    with pytest.raises(WeightsMismatch, match=why) as refused:
        weights_file.read(make())
    assert "safetensors.torch.save_file" in str(refused.value)
    assert len(str(refused.value)) < 500


PROBE = """
import json, sys, time
from acclimate_service.domain.errors import WeightsMismatch
from acclimate_service.training import weights_file

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024

answers = []
for path in sys.argv[1:]:
    content = open(path, "rb").read()
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before, started = peak(), time.process_time()
    try:
        weights_file.read(content)
        said = ""
    except WeightsMismatch as error:
        said = str(error)
    answers.append([said, time.process_time() - started, peak() - before])
print(json.dumps(answers))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_every_attack_costs_a_process_little_memory_and_time(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:02}" for number in range(len(ATTACKS))]
    for path, (make, _) in zip(paths, ATTACKS.values(), strict=True):
        path.write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, paths)],
        capture_output=True,
        check=True,
        timeout=110,
    )
    for attack, (said, seconds, mebibytes) in zip(ATTACKS, json.loads(done.stdout), strict=True):
        print(f"{attack}: {seconds:.2f} s, {mebibytes:.0f} MiB: {said[:90]}")
        assert said, attack
        assert seconds < SECONDS, attack
        assert mebibytes < MEBIBYTES, attack


def test_the_compressed_archive_is_one_that_torch_would_inflate() -> None:
    with zipfile.ZipFile(io.BytesIO(packed())) as archive:
        assert sum(each.file_size for each in archive.infolist()) > BOMB_BYTES


@pytest.mark.parametrize("form", WeightsForm)
def test_a_damaged_file_is_refused_or_read_and_never_anything_else(form: WeightsForm) -> None:
    state = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.int64)}
    whole = {
        WeightsForm.SAFETENSORS: safetensors.torch.save(state),
        WeightsForm.ARCHIVE: saved(state),
        WeightsForm.LEGACY: saved(state, zipped=False),
    }[form]
    rng, refused = random.Random(form.value), 0
    for _ in range(1000):
        try:
            for tensor in weights_file.read(mutated(rng, whole)).values():
                tensor.sum().item()  # every element is where it says
        except WeightsMismatch:
            refused += 1
    assert 100 < refused < 1000


@pytest.mark.parametrize("zipped", [True, False])
def test_every_plain_tensor_is_what_torch_reads(zipped: bool) -> None:
    base = torch.arange(24.0)
    state = {
        "turned": base.reshape(4, 6).t(),
        "part": base[5:11],
        "spread": base[:1].expand(3, 2),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "half": base.half(),
        "brain": base.bfloat16(),
        "flags": base > 3,
        "parameter": torch.nn.Parameter(base.double()),
    }
    content = saved({"state_dict": state, "epoch": 3, "rates": [0.1, {"x": None}]}, zipped=zipped)
    expected = torch.load(io.BytesIO(content), weights_only=True)["state_dict"]
    found = weights_file.read(content)
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def test_a_file_is_known_by_its_first_bytes_whatever_its_length_looks_like() -> None:
    # 0x4b50 is PK, 0x80 a pickle's first byte, 0x08 ONNX's.
    for length in (0x4B50, 0x80, 0x08, 0x120A08, HEADER_BYTES):
        assert form_of(struct.pack("<Q", length) + b'{"a":{}}') is WeightsForm.SAFETENSORS


def test_a_name_cannot_forge_a_line_nor_fill_a_message() -> None:
    for name in ("a\nroot: all is well\x1b[2J", "\u202e" + "x" * 100_000):
        with pytest.raises(WeightsMismatch) as refused:
            weights_file.read(written({name: entry([8], 0, 4, "F4")}, bytes(4)))
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 400
