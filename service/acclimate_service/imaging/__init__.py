"""Images: the one decode path that training, judging and serving share.

A picture is taken as JPEG, PNG or WebP, told apart by content and never by name,
and becomes upright RGB pixels, uint8 [H, W, 3]. What is declared, so that nobody is
surprised:

- EXIF orientation is honoured (JPEG ``APP1``, PNG ``eXIf``, WebP ``EXIF``); colour
  profiles and gamma are ignored, as they are by nearly every training set's reader.
- Greyscale and palettes become RGB; CMYK becomes RGB by Adobe's inverted convention,
  without a profile; 16-bit samples keep their high byte; alpha is composited over white.
- Animations (APNG, animated WebP, GIF) are refused: an example is one image.
- A truncated or damaged file is refused, never decoded in part. Bytes after the end of
  the image are ignored.
- Format and dimensions are checked before any pixel is decoded.
- Where a version says so (``Preprocessing.decoding``), a JPEG much larger than the input is
  decoded at 1/2, 1/4 or 1/8 of its size (``scaling``). What tells whether two images are the
  same is always computed from all of the pixels.

Every refusal is a ``BadImage`` with ``format`` and ``why`` in its metadata. All of it
is thread-safe, and the decoding and resizing themselves run without the GIL.
"""

from acclimate_service.imaging.box import Augmentation, Box, centre_box, sample_box
from acclimate_service.imaging.decoding import decode, opened
from acclimate_service.imaging.fingerprints import content_digest, perceptual_hash
from acclimate_service.imaging.header import DEFAULT, MAX_IMAGE_BYTES, MAX_PIXELS, Flaw, Limits
from acclimate_service.imaging.picture import Picture
from acclimate_service.imaging.preparing import (
    Showable,
    decode_prepared,
    prepare,
    prepare_view,
    resample,
)
from acclimate_service.imaging.scaling import scale_for

__all__ = [
    "DEFAULT",
    "MAX_IMAGE_BYTES",
    "MAX_PIXELS",
    "Augmentation",
    "Box",
    "Flaw",
    "Limits",
    "Picture",
    "Showable",
    "centre_box",
    "content_digest",
    "decode",
    "decode_prepared",
    "opened",
    "perceptual_hash",
    "prepare",
    "prepare_view",
    "resample",
    "sample_box",
    "scale_for",
]
