"""PNG, by Pillow, after its chunks were walked and its pixel stream was measured.

Pillow is shown only what pixels are made of (IHDR, PLTE, tRNS, IDAT, IEND), each with
its checksum verified, so neither compressed text nor profiles are ever unpacked.
W3C, Portable Network Graphics (Third Edition).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acclimate_service.domain.errors import BadImage
from acclimate_service.imaging.flattening import flatten
from acclimate_service.imaging.header import Flaw, Header, orientation_in, refusal

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 16_384  # at the usual 8 KiB a chunk, a 128 MiB file
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PALETTE = 3
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2))  # fmt: skip  # first column, first row, column step, row step


@dataclass(frozen=True, kw_only=True)
class PngHeader(Header):
    """A PNG's header, and where its needed chunks lie in the file (start and end)."""

    depth: int  # bits a sample
    channels: int
    interlaced: bool
    chunks: tuple[tuple[bytes, int, int], ...]


def inspect(encoded: bytes) -> PngHeader:
    """Walk the chunks and verify their checksums; no pixel is decoded.

    Raises:
        BadImage: a chunk is damaged or missing, or the file is an animation.
    """
    chunks = []
    orientation = 1
    for kind, start, end in _chunks(encoded):
        if kind in _NEEDED:
            _verify(encoded, start, end)
            chunks.append((kind, start, end))
        elif kind == b"eXIf":
            orientation = orientation_in(encoded[start + 8 : end - 4])
        elif kind == b"acTL" and int.from_bytes(encoded[start + 8 : start + 12], "big") > 1:
            raise _refusal(Flaw.ANIMATED, "it is animated; send one frame")
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", encoded, 16)
    if colour not in _CHANNELS or depth not in (1, 2, 4, 8, 16) or interlace > 1:
        raise _refusal(Flaw.CORRUPT, f"colour type {colour} at {depth} bits does not exist")
    if colour == _PALETTE and all(kind != b"PLTE" for kind, _, _ in chunks):
        raise _refusal(Flaw.CORRUPT, "it has no palette")
    return PngHeader(
        format="PNG",
        width=width,
        height=height,
        orientation=orientation,
        depth=depth,
        channels=_CHANNELS[colour],
        interlaced=interlace == 1,
        chunks=tuple(chunks),
    )


def decode(encoded: bytes, header: PngHeader) -> NDArray[np.uint8]:
    """The stored pixels as RGB, uint8 [H, W, 3].

    Raises:
        BadImage: the pixel stream is damaged, too short or too long.
    """
    view = memoryview(encoded)
    pixels = b"".join(view[a + 8 : b - 4] for kind, a, b in header.chunks if kind == b"IDAT")
    _measure(pixels, header)
    # A transparent colour of 16 bits means nothing beside the 8 that are kept.
    before = [
        view[a:b]
        for kind, a, b in header.chunks
        if kind in (b"IHDR", b"PLTE") or (kind == b"tRNS" and header.depth < 16)
    ]
    checksum = zlib.crc32(pixels, zlib.crc32(b"IDAT"))
    body = (struct.pack(">I4s", len(pixels), b"IDAT"), pixels, struct.pack(">I", checksum))
    file = b"".join((SIGNATURE, *before, *body, _END))
    try:
        with Image.open(io.BytesIO(file), formats=("PNG",)) as image:
            image.load()
            return flatten(image)
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise _refusal(Flaw.CORRUPT, str(error)) from error


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk from IHDR to IEND: its kind, where it starts and ends (checksum included)."""
    position = len(SIGNATURE)
    for index in range(MAX_CHUNKS):
        if position + 12 > len(encoded):
            raise _refusal(Flaw.TRUNCATED, "it ends before its IEND chunk")
        length, kind = struct.unpack_from(">I4s", encoded, position)
        end = position + 12 + length
        if end > len(encoded):
            raise _refusal(Flaw.TRUNCATED, f"it ends within its {kind!r} chunk")
        if index == 0 and (kind != b"IHDR" or length != 13):
            raise _refusal(Flaw.CORRUPT, "its first chunk is not IHDR")
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    raise _refusal(Flaw.TOO_MUCH_WORK, f"it has more than {MAX_CHUNKS} chunks")


def _measure(pixels: bytes, header: PngHeader, step: int = 2**20) -> None:
    """Inflate the pixel stream once, keeping nothing, to see that it is whole.

    Pillow fills rows that a stream leaves out with zeros and says nothing.
    """
    inflate = zlib.decompressobj()
    wanted = _stream_bytes(header)
    found = 0
    rest = pixels
    try:
        while not inflate.eof and found <= wanted:
            piece = inflate.decompress(rest, step)
            found += len(piece)
            rest = inflate.unconsumed_tail
            if not piece and not rest:
                break
    except zlib.error as error:
        raise _refusal(Flaw.CORRUPT, f"its pixels do not inflate: {error}") from error
    if found > wanted:
        raise _refusal(Flaw.CORRUPT, f"its pixel stream holds more than {wanted} bytes")
    if found < wanted or not inflate.eof:
        raise _refusal(Flaw.TRUNCATED, f"its pixel stream holds {found} of {wanted} bytes")


def _stream_bytes(header: PngHeader) -> int:
    """How many bytes the filtered rows take: a filter byte a row, rows padded to bytes."""
    bits = header.depth * header.channels

    def rows(width: int, height: int) -> int:
        return height * (1 + (width * bits + 7) // 8) if width else 0

    if not header.interlaced:
        return rows(header.width, header.height)
    return sum(
        rows(-(-(header.width - x) // dx), -(-(header.height - y) // dy)) for x, y, dx, dy in _ADAM7
    )


def _verify(encoded: bytes, start: int, end: int) -> None:
    view = memoryview(encoded)
    if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
        kind = encoded[start + 4 : start + 8]
        raise _refusal(Flaw.CORRUPT, f"the checksum of its {kind!r} chunk is wrong")


def _refusal(flaw: Flaw, why: str) -> BadImage:
    return refusal("PNG", flaw, f"not a PNG we take: {why}")
