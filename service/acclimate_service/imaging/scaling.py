"""How small a large JPEG may be decoded: one rule for training, judging and serving.

libjpeg can give a JPEG at 1/2, 1/4 or 1/8 of its size, as it then turns only the low
frequencies of each block of 8 x 8 into pixels. That is a good part of a resize for
nothing: there are fewer pixels to compute, to keep, to turn and to resample. What it
leaves out, the resize to the network's input would have averaged away, if that still
has enough pixels to work with.
"""

from __future__ import annotations

from acclimate_service.domain.model import Preprocessing
from acclimate_service.imaging.box import Box

SCALES = (8, 4, 2)  # libjpeg's steps in eighths between them cost more than they save

# Pixels that must be left for each sample of the input, in either direction. It is what
# `Image.thumbnail` of Pillow takes for JPEGs, its `reducing_gap`: "2.0 (very close to fair
# resampling while still being faster in many cases)". `./run bench decoding` measures it.
GAP = 2.0


def scale_for(box: Box, preprocessing: Preprocessing) -> int:
    """How many times smaller an image may be decoded of which *box* is shown: 1, 2, 4 or 8.

    At least ``GAP`` pixels are left for each sample along both sides of the box. It takes
    no more than the file's header to know that, and whoever shows the same part of the
    same file decodes the same pixels.
    """
    # The box filter takes or leaves a whole pixel at its edges, so larger ones are another
    # image to it: five times the difference that they make to any other filter.
    if preprocessing.decoding == "full" or preprocessing.interpolation == "box":
        return 1
    shorter = min(box.right - box.left, box.bottom - box.top)
    wanted = GAP * preprocessing.size
    return next((scale for scale in SCALES if shorter / scale >= wanted), 1)


def scaled_side(side: int, scale: int) -> int:
    """How many pixels a side of *side* pixels has at 1/*scale*: a part of one is one."""
    return -(-side // scale)
