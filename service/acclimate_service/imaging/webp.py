"""WebP, by Pillow (libwebp), after its chunks were walked.

libwebp sets up its canvas when the file is opened, so the size is read by hand first.
RFC 9649, WebP Image Format.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acclimate_service.domain.errors import BadImage
from acclimate_service.imaging.flattening import flatten
from acclimate_service.imaging.header import Flaw, Header, orientation_in, refusal

MAX_CHUNKS = 1024
MAX_PIXELS = 15_000_000  # libwebp and Pillow together hold 16 bytes a pixel


def is_webp(encoded: bytes) -> bool:
    """Whether the bytes begin as a WebP file does."""
    return encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP"


def inspect(encoded: bytes) -> Header:
    """Walk the chunks; no pixel is decoded.

    Raises:
        BadImage: it is cut short, animated, too large, or says two different sizes.
    """
    end_of_file = 8 + int.from_bytes(encoded[4:8], "little")
    if end_of_file > len(encoded):
        raise _refusal(Flaw.TRUNCATED, f"it holds {len(encoded)} of {end_of_file} bytes")
    sizes: set[tuple[int, int]] = set()
    orientation = 1
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > end_of_file:
            break
        kind = encoded[position : position + 4]
        start = position + 8
        length = int.from_bytes(encoded[position + 4 : start], "little")
        if start + length > end_of_file:
            raise _refusal(Flaw.TRUNCATED, f"it ends within its {kind!r} chunk")
        if kind in (b"ANIM", b"ANMF") or (kind == b"VP8X" and encoded[start] & 0x02):
            raise _refusal(Flaw.ANIMATED, "it is animated; send one frame")
        if kind in _SIZES:
            sizes.add(_SIZES[kind](encoded[start : start + min(length, 10)]))
        elif kind == b"EXIF":
            tiff = encoded[start : start + length]
            orientation = orientation_in(tiff.removeprefix(b"Exif\0\0"))
        position = start + length + length % 2
    else:
        raise _refusal(Flaw.TOO_MUCH_WORK, f"it has more than {MAX_CHUNKS} chunks")
    if len(sizes) != 1:
        raise _refusal(Flaw.CORRUPT, f"it says {len(sizes)} different sizes")
    width, height = sizes.pop()
    if width * height > MAX_PIXELS:
        raise _refusal(
            Flaw.TOO_MANY_PIXELS,
            f"it has {width} x {height} pixels, at most {MAX_PIXELS} are taken",
        )
    return Header(format="WEBP", width=width, height=height, orientation=orientation)


def decode(encoded: bytes, header: Header) -> NDArray[np.uint8]:
    """The stored pixels as RGB, uint8 [H, W, 3].

    Raises:
        BadImage: libwebp cannot decode it.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("WEBP",)) as image:
            if image.size != (header.width, header.height):
                raise _refusal(Flaw.CORRUPT, f"its canvas is {image.size}")
            image.load()
            return flatten(image)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _refusal(Flaw.CORRUPT, str(error)) from error


def _lossy(head: bytes) -> tuple[int, int]:
    """A VP8 key frame: after a 3-byte tag and a start code, two 14-bit numbers (RFC 6386, 9.1)."""
    if len(head) < 10 or head[3:6] != b"\x9d\x01\x2a":
        raise _refusal(Flaw.CORRUPT, "its lossy frame has no start code")
    return (
        int.from_bytes(head[6:8], "little") & 0x3FFF,
        int.from_bytes(head[8:10], "little") & 0x3FFF,
    )


def _lossless(head: bytes) -> tuple[int, int]:
    """VP8L: after a signature byte, two 14-bit numbers less one."""
    if len(head) < 5 or head[0] != 0x2F:
        raise _refusal(Flaw.CORRUPT, "its lossless frame has no signature")
    bits = int.from_bytes(head[1:5], "little")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _canvas(head: bytes) -> tuple[int, int]:
    """VP8X: after flags, two 24-bit numbers less one."""
    if len(head) < 10:
        raise _refusal(Flaw.CORRUPT, "its VP8X chunk is too short")
    return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1


_SIZES = {b"VP8 ": _lossy, b"VP8L": _lossless, b"VP8X": _canvas}


def _refusal(flaw: Flaw, why: str) -> BadImage:
    return refusal("WEBP", flaw, f"not a WebP we take: {why}")
