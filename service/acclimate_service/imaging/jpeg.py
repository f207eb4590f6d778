"""JPEG, by libjpeg-turbo (simplejpeg), strictly: a file that ends early is refused.

ITU-T T.81, annex B, for the segments that are read by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from acclimate_service.domain.errors import BadImage
from acclimate_service.imaging.header import Flaw, Header, orientation_in, refusal
from acclimate_service.imaging.scaling import scaled_side

SIGNATURE = b"\xff\xd8\xff"

# A progressive file may repeat scans over all its pixels without end, at a few bytes
# each. A full-size picture has about ten.
MAX_PIXEL_SCANS = 400_000_000
MAX_SEGMENTS = 4096
LEAST_SCAN = 10  # bytes: a marker, a length, one component and what of it is scanned

_START_OF_SCAN, _END_OF_IMAGE, _APP1, _TEMPORARY = 0xDA, 0xD9, 0xE1, 0x01
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STRIP = 64  # rows converted at once, to keep the peak of memory low

# In entropy-coded bytes, FF is followed by 00 (stuffing) or a restart marker;
# anything else begins a segment.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")


@dataclass(frozen=True, kw_only=True)
class JpegHeader(Header):
    """A JPEG's header. ``components``: 1 is grey, 3 colour, 4 CMYK."""

    components: int


def inspect(encoded: bytes) -> JpegHeader:
    """Read the segments before the first scan; no pixel is decoded.

    Raises:
        BadImage: they are damaged, cut short, or of a kind of JPEG we do not take.
    """
    frame = b""
    orientation = 0
    for code, start, end in _segments(encoded):
        if code == _START_OF_SCAN:
            break
        if code in _START_OF_FRAME and not frame:
            frame = encoded[start : min(end, start + 6)]
        elif code == _APP1 and not orientation and encoded[start : start + 6] == b"Exif\0\0":
            orientation = orientation_in(encoded[start + 6 : end])
    if len(frame) < 6:
        raise _refusal(Flaw.CORRUPT, "its first scan has no frame header")
    header = JpegHeader(
        format="JPEG",
        width=int.from_bytes(frame[3:5], "big"),
        height=int.from_bytes(frame[1:3], "big"),
        orientation=orientation or 1,
        components=frame[5],
    )
    if frame[0] != 8 or header.components not in (1, 3, 4):
        bits, components = frame[0], header.components
        raise _refusal(Flaw.UNSUPPORTED, f"it has {components} components of {bits} bits")
    return header


def decode(encoded: bytes, header: JpegHeader, scale: int = 1) -> NDArray[np.uint8]:
    """The stored pixels as RGB, uint8 [H, W, 3], equal to the bit to what Pillow decodes.

    At 1/*scale* (1, 2, 4 or 8) they are what Pillow's ``draft`` gives. All of the file is
    read then too, so that what is wrong with it is found.

    Raises:
        BadImage: the file is truncated, damaged, or asks for absurd work.
    """
    _check_scans(encoded, header)
    height, width = scaled_side(header.height, scale), scaled_side(header.width, scale)
    try:
        _check_frame(encoded, header)
        # Exact transforms and upsampling: the fast ones are 5 % faster, and another image.
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            encoded,
            "CMYK" if header.components == 4 else "RGB",
            fastdct=False,
            fastupsample=False,
            # It takes the smallest of libjpeg's scales that gives no less; 0 is full size.
            min_height=height if scale > 1 else 0,
            min_width=width if scale > 1 else 0,
            strict=True,
        )
    except ValueError as error:
        said = str(error)
        if "premature end" in said.lower():
            raise _refusal(Flaw.TRUNCATED, said) from error
        flaw = Flaw.UNSUPPORTED if "subsampling" in said else Flaw.CORRUPT
        raise _refusal(flaw, said) from error
    if pixels.shape[:2] != (height, width):
        raise _refusal(Flaw.CORRUPT, f"at 1/{scale} it has {pixels.shape} pixels")
    return _from_cmyk(pixels) if header.components == 4 else pixels


def _check_frame(encoded: bytes, header: JpegHeader) -> None:
    """Refuse what libjpeg would find another size in than was held against the limits."""
    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    if (width, height) != (header.width, header.height):
        raise _refusal(Flaw.CORRUPT, f"it has a second frame, of {width} x {height} pixels")


def _check_scans(encoded: bytes, header: JpegHeader) -> None:
    pixels = header.width * header.height
    if len(encoded) // LEAST_SCAN * pixels <= MAX_PIXEL_SCANS:  # there is no room for too many
        return
    # Counted roughly and fast first; metadata and trailing bytes hold the pattern by chance.
    if encoded.count(bytes([0xFF, _START_OF_SCAN])) * pixels <= MAX_PIXEL_SCANS:
        return
    scans = sum(code == _START_OF_SCAN for code, _, _ in _segments(encoded))
    if scans * pixels > MAX_PIXEL_SCANS:
        raise _refusal(
            Flaw.TOO_MUCH_WORK,
            f"it goes {scans} times over {header.width} x {header.height} pixels",
        )


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Each segment up to the end of the image: its code, where its content starts and ends."""
    position = 2
    scanning = False  # between segments before the first scan, no other byte is allowed
    for _ in range(MAX_SEGMENTS):
        match = (_MARKER.search if scanning else _MARKER.match)(encoded, position)
        if match is None:
            flaw = Flaw.TRUNCATED if scanning or position >= len(encoded) - 1 else Flaw.CORRUPT
            raise _refusal(flaw, f"no segment at byte {position} of {len(encoded)}")
        code = match[1][0]
        if code == _END_OF_IMAGE:
            return
        if code == _TEMPORARY:
            # It has no length: whoever reads one skips what libjpeg takes for segments.
            raise _refusal(Flaw.CORRUPT, f"a marker at byte {match.start()} is for encoders alone")
        start = match.end() + 2
        length = int.from_bytes(encoded[match.end() : start], "big")
        position = match.end() + length
        if length < 2 or position > len(encoded):
            flaw = Flaw.TRUNCATED if position > len(encoded) else Flaw.CORRUPT
            raise _refusal(flaw, f"its segment at byte {match.start()} has {length} bytes")
        yield code, start, position
        scanning = scanning or code == _START_OF_SCAN
    raise _refusal(Flaw.TOO_MUCH_WORK, f"it has more than {MAX_SEGMENTS} segments")


def _from_cmyk(inverted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB of Adobe's inverted CMYK (uint8 [H, W, 4]), as Pillow converts it."""
    height, width, _ = inverted.shape
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _STRIP):
        strip = np.ascontiguousarray(~inverted[top : top + _STRIP])
        cmyk = Image.frombuffer("CMYK", (width, strip.shape[0]), strip, "raw", "CMYK", 0, 1)
        rgb[top : top + _STRIP] = np.asarray(cmyk.convert("RGB"))
    return rgb


def _refusal(flaw: Flaw, why: str) -> BadImage:
    return refusal("JPEG", flaw, f"not a JPEG we take: {why}")
