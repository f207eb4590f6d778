"""Images to predict on: files by path, encoded bytes, or arrays of pixels → requests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from acclimate.v1 import inference_pb2

REQUEST_IMAGES = 64
REQUEST_BYTES = 16 * 2**20


@runtime_checkable
class Pixels(Protocol):
    """A NumPy array, without importing NumPy: uint8 RGB, [size, size, 3]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, 3."""

    @property
    def dtype(self) -> object:
        """uint8."""

    def tobytes(self) -> bytes:
        """The pixels, row by row."""


Image: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | Pixels"


ONE = (bytes, bytearray, memoryview, str, os.PathLike, Pixels)  # for isinstance


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to answer beside the likeliest labels, how many of those, and how urgently."""

    model: str
    top_k: int = 5
    probabilities: bool = False
    logits: bool = False
    embeddings: bool = False
    priority: int = 2
    routing_key: str = ""
    domain: str = ""

    def request(
        self, contents: list[bytes], shape: tuple[int, ...]
    ) -> inference_pb2.PredictRequest:
        """A request for pixels of *shape* or, without a shape, for encoded images."""
        request = inference_pb2.PredictRequest(
            model=self.model,
            top_k=self.top_k,
            probabilities=self.probabilities,
            logits=self.logits,
            embeddings=self.embeddings,
            priority=self.priority,
            routing_key=self.routing_key,
            domain=self.domain,
        )
        if shape:
            request.tensor.shape[:] = (len(contents), *shape)
            request.tensor.pixels = b"".join(contents)
        else:
            request.images.extend(contents)
        return request


def requests(
    images: Iterable[Image], wanted: Wanted, *, at_most: int
) -> Iterator[inference_pb2.PredictRequest]:
    """*images* in their order, in requests of *at_most* images and ``REQUEST_BYTES`` each.

    A request holds either encoded images or pixels of one shape.

    Raises:
        TypeError: an image is neither a path, nor bytes, nor uint8 [H, W, 3].
    """
    contents: list[bytes] = []
    shape: tuple[int, ...] = ()
    size = 0
    for image in images:
        content, its_shape = _content(image)
        too_large = size + len(content) > REQUEST_BYTES
        if contents and (too_large or its_shape != shape):
            yield wanted.request(contents, shape)
            contents, size = [], 0
        contents.append(content)
        shape, size = its_shape, size + len(content)
        if len(contents) == at_most:  # not when the next image comes: a camera's may take long
            yield wanted.request(contents, shape)
            contents, size = [], 0
    if contents:
        yield wanted.request(contents, shape)


def _content(image: Image) -> tuple[bytes, tuple[int, ...]]:
    """An image's bytes and, for pixels, their shape; encoded images have none."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image), ()
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes(), ()
    if isinstance(image, Pixels):
        shape = tuple(image.shape)
        if str(image.dtype) == "uint8" and len(shape) == 3 and shape[2] == 3:
            return image.tobytes(), shape
        raise TypeError(f"pixels must be uint8 [H, W, 3], not {image.dtype} {list(shape)}")
    raise TypeError(f"an image is a path, bytes, or a uint8 array, not {type(image).__name__}")
