"""Bad and odd images: each is refused with a reason, quickly and in little memory."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from acclimate_service.domain.errors import BadImage
from acclimate_service.imaging import MAX_IMAGE_BYTES, Flaw, Limits, decode, opened

PNG = b"\x89PNG\r\n\x1a\n"
SECONDS = 1.0
MEBIBYTES = 256  # what a refusal may add to a process


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int, height: int, *, depth: int = 8, colour: int = 2) -> bytes:
    return PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(width: int, height: int, rows: bytes, *more: bytes) -> bytes:
    pixels = chunk(b"IDAT", zlib.compress(rows, 9))
    return header(width, height) + b"".join(more) + pixels + chunk(b"IEND", b"")


def saved(codec: str, width: int = 64, height: int = 48, **options: object) -> bytes:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x * 3, y * 5, x * y], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, codec, **options)
    return file.getvalue()


def animation(codec: str) -> bytes:
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (10, 200)]
    file = io.BytesIO()
    frames[0].save(file, codec, save_all=True, append_images=frames[1:])
    return file.getvalue()


def zeros(width: int, height: int) -> bytes:
    """The pixel stream of a black image, compressed a thousandfold, in bounded memory."""
    deflate = zlib.compressobj(9)
    row = b"\0" * (1 + 3 * width)
    return b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush()


def bomb(width: int, height: int) -> bytes:
    body = chunk(b"IDAT", zeros(width, height))
    return header(width, height) + body + chunk(b"IEND", b"")


def resized_jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose frame header claims another size."""
    file = bytearray(saved("JPEG"))
    at = file.index(b"\xff\xc0") + 5
    file[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(file)


def large(mode: str, codec: str, side: int, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, codec, **options)
    return file.getvalue()


def many_scans(side: int, scans: int, before: bytes = b"") -> bytes:
    """A progressive JPEG that goes over its pixels again and again."""
    file = large("L", "JPEG", side, progressive=True, quality=10)
    last = file.rindex(b"\xff\xda")
    return file[:last] + before + file[last:-2] * scans + b"\xff\xd9"


def hidden_frame(width: int, height: int) -> bytes:
    """A JPEG of width x height to libjpeg, and a small one to who gives the marker TEM a length.

    That length would be the first two bytes of the true frame, and what it leads to is, to
    libjpeg, within a comment.
    """
    small, true = saved("JPEG"), resized_jpeg(width, height)
    start = true.index(b"\xff\xc0")
    end = start + 2 + int.from_bytes(true[start + 2 : start + 4], "big")
    frame, false = true[start:end], small[start:end]
    filler = bytes(0xFFC0 - len(frame) - 4)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(filler) + len(false)) + filler
    return true[:start] + b"\xff\x01" + frame + comment + false + true[end:]


def lossless_webp(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    frame = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", bits) + b"\0"
    return b"RIFF" + struct.pack("<I", 4 + len(frame)) + b"WEBP" + frame


def enlarged_webp(width: int, height: int) -> bytes:
    """A small lossy WebP whose frame claims another size."""
    file = bytearray(saved("WEBP"))
    file[26:30] = struct.pack("<HH", width, height)
    return bytes(file)


def flipped(file: bytes, at: int) -> bytes:
    return file[:at] + bytes([file[at] ^ 0x10]) + file[at + 1 :]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n(/etc/passwd) run\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
ROWS = (b"\0" + b"\x50" * 12) * 4

KINDS: dict[str, tuple[Callable[[], bytes], Flaw]] = {
    "zero bytes": (lambda: b"", Flaw.EMPTY),
    "a file over the limit": (
        lambda: b"\xff\xd8\xff" + bytes(MAX_IMAGE_BYTES),
        Flaw.TOO_MANY_BYTES,
    ),
    "text renamed .jpg": (lambda: b"this is not an image\n" * 9, Flaw.UNKNOWN_FORMAT),
    "EPS": (lambda: EPS, Flaw.UNKNOWN_FORMAT),
    "SVG": (lambda: SVG, Flaw.UNKNOWN_FORMAT),
    "GIF": (lambda: saved("GIF"), Flaw.UNKNOWN_FORMAT),
    "animated GIF": (lambda: animation("GIF"), Flaw.UNKNOWN_FORMAT),
    "BMP": (lambda: saved("BMP"), Flaw.UNKNOWN_FORMAT),
    "TIFF": (lambda: saved("TIFF"), Flaw.UNKNOWN_FORMAT),
    "JPEG 2000": (lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), Flaw.UNKNOWN_FORMAT),
    "a JPEG signature and nothing else": (lambda: b"\xff\xd8\xff", Flaw.TRUNCATED),
    "a JPEG cut in its header": (lambda: saved("JPEG")[:100], Flaw.TRUNCATED),
    "a JPEG cut in its pixels": (lambda: saved("JPEG")[:-60], Flaw.TRUNCATED),
    "a JPEG without its last byte": (lambda: saved("JPEG")[:-1], Flaw.TRUNCATED),
    "a progressive JPEG cut in half": (
        lambda: (f := saved("JPEG", 640, 480, progressive=True))[: len(f) // 2],
        Flaw.TRUNCATED,
    ),
    "a JPEG of noise after its header": (
        lambda: saved("JPEG")[:20] + b"\x00\x17" * 300,
        Flaw.CORRUPT,
    ),
    "a JPEG without height": (lambda: resized_jpeg(64, 0), Flaw.CORRUPT),
    "a JPEG that claims 65500 x 65500": (
        lambda: resized_jpeg(65500, 65500),
        Flaw.TOO_MANY_PIXELS,
    ),
    "a JPEG that claims more than it holds": (lambda: resized_jpeg(4000, 4000), Flaw.TRUNCATED),
    "a JPEG of endless scans": (lambda: many_scans(5000, 900), Flaw.TOO_MUCH_WORK),
    "a JPEG that hides its frame": (lambda: hidden_frame(20_000, 20_000), Flaw.CORRUPT),
    "a JPEG that hides its scans": (lambda: many_scans(5000, 1570, b"\xff\x01"), Flaw.CORRUPT),
    "a JPEG of endless segments": (
        lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 900_000 + saved("JPEG")[2:],
        Flaw.TOO_MUCH_WORK,
    ),
    "a PNG signature and nothing else": (lambda: PNG, Flaw.TRUNCATED),
    "a PNG cut in its pixels": (lambda: saved("PNG")[:-80], Flaw.TRUNCATED),
    "a PNG without IEND": (lambda: saved("PNG")[:-12], Flaw.TRUNCATED),
    "a PNG with rows left out": (lambda: png(4, 8, ROWS), Flaw.TRUNCATED),
    "a PNG with rows too many": (lambda: png(4, 2, ROWS), Flaw.CORRUPT),
    "a PNG with a flipped bit": (lambda: flipped(saved("PNG"), 90), Flaw.CORRUPT),
    "a PNG without width": (lambda: png(0, 4, ROWS), Flaw.CORRUPT),
    "a PNG of 3 bits": (lambda: header(4, 4, depth=3) + chunk(b"IEND", b""), Flaw.CORRUPT),
    "a palette PNG without palette": (
        lambda: (
            header(4, 4, colour=3)
            + chunk(b"IDAT", zlib.compress(b"\0\1\2\3\4" * 4))
            + chunk(b"IEND", b"")
        ),
        Flaw.CORRUPT,
    ),
    "a PNG bomb of 30000 x 30000": (lambda: bomb(30_000, 3_000), Flaw.TOO_MANY_PIXELS),
    "a PNG of 2 billion columns": (lambda: png(2**31 - 1, 1, ROWS), Flaw.TOO_MANY_PIXELS),
    "a PNG of a hundred thousand chunks": (
        lambda: png(4, 4, ROWS, *[chunk(b"tEXt", b"")] * 100_000),
        Flaw.TOO_MUCH_WORK,
    ),
    "an inflating stream behind a small header": (
        lambda: header(4, 4) + chunk(b"IDAT", zeros(10_000, 5_000)) + chunk(b"IEND", b""),
        Flaw.CORRUPT,
    ),
    "animated PNG": (lambda: animation("PNG"), Flaw.ANIMATED),
    "animated WebP": (lambda: animation("WEBP"), Flaw.ANIMATED),
    "a WebP signature and nothing else": (lambda: b"RIFF\4\0\0\0WEBP", Flaw.CORRUPT),
    "a WebP cut short": (lambda: saved("WEBP")[:-20], Flaw.TRUNCATED),
    "a WebP whose frame was overwritten": (
        lambda: (f := saved("WEBP", lossless=True))[:26] + bytes(len(f) - 26),
        Flaw.CORRUPT,
    ),
    "a WebP of 16383 x 16383": (lambda: lossless_webp(16383, 16383), Flaw.TOO_MANY_PIXELS),
    "a lossy WebP that claims more than it holds": (
        lambda: enlarged_webp(3000, 3000),
        Flaw.CORRUPT,
    ),
}


@pytest.mark.parametrize(
    ("kind", "scale"),
    [(kind, scale) for kind in KINDS for scale in ((1, 2, 8) if "JPEG" in kind else (1,))],
)
def test_it_is_refused_with_its_reason_within_a_second(kind: str, scale: int) -> None:
    make, flaw = KINDS[kind]
    file = make()
    started = time.perf_counter()
    with pytest.raises(BadImage) as refused:
        opened(file).pixels(scale)
    assert time.perf_counter() - started < SECONDS
    assert refused.value.metadata["why"] == flaw
    assert set(refused.value.metadata) == {"format", "why"}
    assert 10 < len(str(refused.value)) < 300


def test_limits_refuse_what_is_one_over() -> None:
    file = saved("PNG")
    for limits in (Limits(bytes=len(file) - 1), Limits(pixels=64 * 48 - 1), Limits(side=63)):
        with pytest.raises(BadImage):
            decode(file, limits)


def test_text_and_profiles_that_would_inflate_a_thousandfold_are_never_inflated() -> None:
    inflated = zlib.compress(bytes(200 * 2**20), 9)
    zipped = [
        chunk(b"zTXt", b"a\0\0" + inflated),
        chunk(b"iTXt", b"a\0\1\0\0\0" + inflated),
        chunk(b"iCCP", b"a\0\0" + inflated),
    ]
    started = time.perf_counter()
    assert decode(png(4, 4, ROWS, *zipped)).shape == (4, 4, 3)
    assert time.perf_counter() - started < SECONDS


PROBE = """
import json, sys, time
from acclimate_service.domain.errors import BadImage
from acclimate_service.imaging import decode

def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

file = open(sys.argv[1], "rb").read()
before, started = peak(), time.perf_counter()
try:
    said = str(decode(file).shape)
except BadImage as error:
    said = error.metadata["why"]
print(json.dumps([said, time.perf_counter() - started, peak() - before]))
"""

HEAVY = {  # the largest that is taken, and bombs that are not
    "a progressive JPEG": lambda: large("RGB", "JPEG", 5000, progressive=True, subsampling=0),
    "a CMYK JPEG": lambda: large("CMYK", "JPEG", 5000),
    "a JPEG of endless scans": lambda: many_scans(5000, 900),
    "a JPEG that claims more than it holds": lambda: resized_jpeg(5000, 5000),
    "an RGBA PNG": lambda: large("RGBA", "PNG", 5000),
    "a PNG bomb": lambda: bomb(30_000, 3_000),
    "a WebP": lambda: large("RGBA", "WEBP", 3872, lossless=True, method=0),
    "a WebP of 16383 x 16383": lambda: lossless_webp(16383, 16383),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("kind", HEAVY)
def test_the_peak_of_memory_is_bounded(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(HEAVY[kind]())
    # A process of its own, so that the peak is this image's.
    command = [sys.executable, "-c", PROBE, str(path)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    _, seconds, mebibytes = json.loads(done.stdout)
    assert mebibytes < MEBIBYTES
    assert seconds < 5 * SECONDS  # the largest images do take a second of a busy machine


WHOLE = [
    saved("JPEG"),
    saved("JPEG", progressive=True),
    saved("PNG"),
    saved("WEBP"),
    saved("WEBP", lossless=True),
]


@settings(max_examples=400, deadline=2000, suppress_health_check=list(HealthCheck))
@given(
    whole=st.sampled_from(WHOLE),
    cut=st.floats(0, 1),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=6),
    mend=st.booleans(),
)
def test_whatever_is_done_to_a_file_it_is_an_image_or_refused(
    whole: bytes, cut: float, edits: list[tuple[float, bytes]], mend: bool
) -> None:
    file = bytearray(whole[: round(len(whole) * (1 - cut**8))])
    for place, bytes_ in edits:
        at = int(place * len(file))
        file[at : at + len(bytes_)] = bytes_
    check_total(mended(bytes(file)) if mend else bytes(file))


@settings(max_examples=300, deadline=2000)
@given(st.sampled_from([b"", b"\xff\xd8\xff", PNG, b"RIFF\x40\0\0\0WEBPVP8 "]), st.binary())
def test_noise_is_refused(start: bytes, noise: bytes) -> None:
    check_total(start + noise)


def check_total(file: bytes) -> None:
    """Anything but pixels or a ``BadImage`` fails the test that calls it.

    And what is refused is refused at every scale, for the same reason.
    """
    outcomes = {said(file, scale) for scale in (1, 2, 4, 8)}
    assert len(outcomes) == 1, (outcomes, file.hex())


def said(file: bytes, scale: int) -> str:
    try:
        picture = opened(file, Limits(pixels=1_000_000))
        pixels = picture.pixels(scale if picture.scalable else 1)
    except BadImage as error:
        return Flaw(error.metadata["why"])
    assert pixels.shape[2:] == (3,)
    assert pixels.dtype == np.uint8
    return "an image"


def mended(file: bytes) -> bytes:
    """The file with every PNG checksum right, so that the damage reaches the decoder."""
    if not file.startswith(PNG):
        return file
    position, chunks = len(PNG), [PNG]
    while position + 12 <= len(file):
        length = int.from_bytes(file[position : position + 4], "big")
        kind, body = file[position + 4 : position + 8], file[position + 8 : position + 8 + length]
        chunks.append(chunk(kind, body))
        position += 12 + length
    return b"".join(chunks)
