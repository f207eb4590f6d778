"""Images that still are files: decoded on the thread that runs them, not on the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from acclimate_service.domain.errors import BadImage
from acclimate_service.domain.model import Preprocessing
from acclimate_service.imaging import DEFAULT, Limits, decode_prepared


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The bytes of N image files, and what a version wants made of them.

    ``first`` is the place of the first of them in the request that they came in.
    """

    files: Sequence[bytes]
    preprocessing: Preprocessing
    limits: Limits = DEFAULT
    first: int = 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, part: slice) -> Encoded:
        start, stop, _ = part.indices(len(self.files))
        return replace(self, files=self.files[start:stop], first=self.first + start)

    def pixels(self) -> NDArray[np.uint8]:
        """The network's input, uint8 [N, size, size, 3].

        Raises:
            BadImage: a file cannot be decoded; ``index`` in its metadata is its place.
        """
        if len(self.files) == 1:  # as nearly always: not copied
            return self._prepared(0)[None]
        size = self.preprocessing.size
        images = np.empty((len(self.files), size, size, 3), np.uint8)
        for index in range(len(self.files)):
            images[index] = self._prepared(index)
        return images

    def _prepared(self, index: int) -> NDArray[np.uint8]:
        try:
            return decode_prepared(self.files[index], self.preprocessing, self.limits)
        except BadImage as error:
            error.metadata["index"] = str(self.first + index)
            raise
