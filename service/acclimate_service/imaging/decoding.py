"""From the bytes of a file to upright RGB pixels, or a clear refusal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acclimate_service.imaging import jpeg, png, webp
from acclimate_service.imaging.header import DEFAULT, Flaw, Limits, check, refusal


def decode(encoded: bytes, limits: Limits = DEFAULT) -> NDArray[np.uint8]:
    """Upright RGB pixels, uint8 [H, W, 3], C-contiguous and writable.

    Raises:
        BadImage: empty, too large, of a format we do not take, animated, truncated or
            damaged; ``format`` and ``why`` (a ``Flaw``) are in its metadata.
    """
    if not encoded:
        raise refusal("", Flaw.EMPTY, "the image is empty (0 bytes)")
    if len(encoded) > limits.bytes:
        raise refusal(
            "",
            Flaw.TOO_MANY_BYTES,
            f"the image has {len(encoded)} bytes; at most {limits.bytes} are taken",
        )
    pixels, orientation = _stored(encoded, limits)
    return _upright(pixels, orientation)


def _stored(encoded: bytes, limits: Limits) -> tuple[NDArray[np.uint8], int]:
    """The pixels as the file holds them, and how they must be turned."""
    if encoded.startswith(jpeg.SIGNATURE):
        frame = jpeg.inspect(encoded)
        check(frame, limits)
        return jpeg.decode(encoded, frame), frame.orientation
    if encoded.startswith(png.SIGNATURE):
        chunks = png.inspect(encoded)
        check(chunks, limits)
        return png.decode(encoded, chunks), chunks.orientation
    if webp.is_webp(encoded):
        canvas = webp.inspect(encoded)
        check(canvas, limits)
        return webp.decode(encoded, canvas), canvas.orientation
    raise refusal(
        "",
        Flaw.UNKNOWN_FORMAT,
        f"not a JPEG, PNG or WebP image (it begins with {encoded[:8].hex(' ')})",
    )


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo the camera's rotation. EXIF 2.32, tag 0x0112: where row 0 and column 0 lie."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
