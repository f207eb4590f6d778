"""From the bytes of a file to upright RGB pixels, or a clear refusal."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from acclimate_service.imaging import jpeg, png, webp
from acclimate_service.imaging.header import DEFAULT, Flaw, Limits, check, refusal
from acclimate_service.imaging.picture import Picture


def decode(encoded: bytes, limits: Limits = DEFAULT) -> NDArray[np.uint8]:
    """Upright RGB pixels, all of them: uint8 [H, W, 3], C-contiguous and writable.

    Raises:
        BadImage: empty, too large, of a format we do not take, animated, truncated or
            damaged; ``format`` and ``why`` (a ``Flaw``) are in its metadata.
    """
    return opened(encoded, limits).pixels()


def opened(encoded: bytes, limits: Limits = DEFAULT) -> Picture:
    """The image in a file. Its header is read and held against the limits, and no more.

    Raises:
        BadImage: see ``decode``. What is wrong with pixels is found when they are decoded.
    """
    if not encoded:
        raise refusal("", Flaw.EMPTY, "the image is empty (0 bytes)")
    if len(encoded) > limits.bytes:
        raise refusal(
            "",
            Flaw.TOO_MANY_BYTES,
            f"the image has {len(encoded)} bytes; at most {limits.bytes} are taken",
        )
    if encoded.startswith(jpeg.SIGNATURE):
        frame = jpeg.inspect(encoded)
        check(frame, limits)
        return Picture(
            header=frame,
            stored=functools.partial(jpeg.decode, encoded, frame),
            scalable=True,
        )
    if encoded.startswith(png.SIGNATURE):
        chunks = png.inspect(encoded)
        check(chunks, limits)
        return Picture(header=chunks, stored=lambda _: png.decode(encoded, chunks), scalable=False)
    if webp.is_webp(encoded):
        canvas = webp.inspect(encoded)
        check(canvas, limits)
        return Picture(header=canvas, stored=lambda _: webp.decode(encoded, canvas), scalable=False)
    raise refusal(
        "",
        Flaw.UNKNOWN_FORMAT,
        f"not a JPEG, PNG or WebP image (it begins with {encoded[:8].hex(' ')})",
    )
