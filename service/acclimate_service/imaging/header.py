"""What an image file says of itself before a pixel is decoded, and what is allowed."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from acclimate_service.domain.errors import BadImage

MAX_IMAGE_BYTES = 20 * 2**20
MAX_PIXELS = 25_000_000  # a 24-megapixel camera's picture passes
MAX_SIDE = 16_383  # WebP cannot say more; no camera does
PILLOW_PIXELS = 89_478_485  # above it Pillow warns of a bomb itself


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large an image may be: its file in bytes, its area and longer side in pixels."""

    bytes: int = MAX_IMAGE_BYTES
    pixels: int = MAX_PIXELS
    side: int = MAX_SIDE

    def __post_init__(self) -> None:
        if not 0 < self.pixels <= PILLOW_PIXELS:
            raise ValueError(f"pixels must be in 1..{PILLOW_PIXELS}, not {self.pixels}")


DEFAULT = Limits()


class Flaw(enum.StrEnum):
    """Why an image is refused: the ``why`` of a ``BadImage``, stable for callers."""

    EMPTY = "EMPTY"
    TOO_MANY_BYTES = "TOO_MANY_BYTES"
    UNKNOWN_FORMAT = "UNKNOWN_FORMAT"
    TOO_MANY_PIXELS = "TOO_MANY_PIXELS"
    TOO_MUCH_WORK = "TOO_MUCH_WORK"  # few pixels, but an absurd number of scans or chunks
    ANIMATED = "ANIMATED"
    TRUNCATED = "TRUNCATED"
    CORRUPT = "CORRUPT"
    UNSUPPORTED = "UNSUPPORTED"  # a legal variant of the format that we do not take


@dataclass(frozen=True, kw_only=True)
class Header:
    """A file's format and stored size in pixels, before ``orientation`` (EXIF, 1-8) turns it."""

    format: str
    width: int
    height: int
    orientation: int


def refusal(codec: str, flaw: Flaw, message: str) -> BadImage:
    """The error for an image of the format *codec* ("JPEG"; "" where it is unknown)."""
    return BadImage(message, format=codec, why=flaw.value)


def check(header: Header, limits: Limits) -> None:
    """Hold the header against the limits.

    Raises:
        BadImage: it has no pixels, or more of them than *limits* allows.
    """
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise refusal(
            header.format, Flaw.CORRUPT, f"{header.format} of {width} x {height} has no pixels"
        )
    if width * height > limits.pixels or max(width, height) > limits.side:
        raise refusal(
            header.format,
            Flaw.TOO_MANY_PIXELS,
            f"{header.format} of {width} x {height} pixels; at most {limits.pixels} pixels "
            f"and {limits.side} a side are taken: scale it down first",
        )


def orientation_in(tiff: bytes) -> int:
    """The EXIF orientation (1-8) in a TIFF block, or 1 where there is no valid one.

    Read by hand, since it is the only tag that matters, and a parser that touches
    nothing else cannot be led astray by the others. TIFF 6.0, section 2.
    """
    if tiff[:4] not in (b"II*\0", b"MM\0*"):
        return 1

    def number(start: int, size: int) -> int:
        order: Literal["little", "big"] = "little" if tiff[:1] == b"I" else "big"
        return int.from_bytes(tiff[start : start + size], order)

    directory = number(4, 4)
    entries = min(number(directory, 2), (len(tiff) - directory - 2) // 12)
    for index in range(entries):
        entry = directory + 2 + 12 * index
        if number(entry, 2) == 0x0112:
            size = {1: 1, 3: 2, 4: 4}.get(number(entry + 2, 2), 0)  # BYTE, SHORT, LONG
            value = number(entry + 8, size)
            return value if 1 <= value <= 8 else 1
    return 1
