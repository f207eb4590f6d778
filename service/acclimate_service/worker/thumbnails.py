"""Small pictures inside the page, bounded in number and in bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from acclimate_service.domain.errors import BadImage, BlobCorrupt, BlobNotFound
from acclimate_service.imaging import decode

SIDE = 96  # pixels of the longer side
QUALITY = 72
MOST_BYTES = 600_000  # of all thumbnails of a page, as base64


@dataclass
class Thumbnails:
    """Makes thumbnails until the page's room for them is used up.

    *read* opens a blob by digest.
    """

    read: Callable[[str], bytes]
    room: int = MOST_BYTES
    _made: dict[str, str] = field(default_factory=dict)

    def uri(self, blob: str) -> str:
        """A JPEG as a data URI; empty where the image cannot be shown, or nothing fits any more.

        An image that the service took may have gone since, or rotted on the disk: the
        report is told without it. A store that is out of reach is not such a case.
        """
        if self.room <= 0:
            return ""
        if blob not in self._made:
            self._made[blob] = self._make(blob)
        uri = self._made[blob]  # an image that is shown twice takes its room twice
        self.room -= len(uri)
        return uri if self.room >= 0 else ""

    def _make(self, blob: str) -> str:
        try:
            pixels = decode(self.read(blob))
        except (BadImage, BlobNotFound, BlobCorrupt):
            return ""
        image = Image.fromarray(pixels)
        image.thumbnail((SIDE, SIDE), reducing_gap=2.0)
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
