"""One version that answers for images.

Notation used for tensor shapes:

- N: images in a call
- S: the side of an image in pixels, ``Preprocessing.size``
- C: labels
- F: features of an embedding
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
from numpy.typing import NDArray

from acclimate_service.domain.errors import (
    InputMismatch,
    VersionUnloadable,
)
from acclimate_service.domain.model import Precision
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.sessions import (
    FAILURES,
    INPUT,
    OUTPUTS,
    Sessions,
    hold_input_to_contract,
    hold_outputs_to_contract,
    unloadable,
)

Pixels = NDArray[np.uint8]
Answers = dict[str, NDArray[np.float32]]


class Classifier:
    """A loaded version. ``run`` may be called from any number of threads at once.

    ``digest`` and ``precision`` tell which of the version's files it is.
    """

    def __init__(
        self,
        sessions: Sessions,
        *,
        labels: int,
        size: int,
        execution: Execution,
        digest: str,
        precision: Precision = "fp32",
    ) -> None:
        self._sessions = sessions
        self.labels = labels
        self.size = size
        self.execution = execution
        self.digest = digest
        self.precision: Precision = precision

    @classmethod
    def open(
        cls,
        onnx: bytes,
        *,
        digest: str,
        labels: int,
        size: int,
        execution: Execution,
        precision: Precision = "fp32",
        compared: bool = False,
    ) -> Self:
        """Make a session of an ONNX file's bytes, and hold its graph to the contract.

        *compared* says that whoever read the bytes has held them against *digest*, as a
        blob store does; a second time would be a tenth of a swap's work.

        Raises:
            BlobCorrupt: the bytes do not have this sha256 (hex).
            ProviderUnavailable: onnxruntime has fallen back from the provider asked for.
            VersionUnloadable: it is not a model, or its inputs and outputs are others.
        """
        sessions = Sessions.open(onnx, digest=None if compared else digest, execution=execution)
        hold_input_to_contract(sessions, size=size)
        hold_outputs_to_contract(sessions, labels=labels)
        return cls(
            sessions,
            labels=labels,
            size=size,
            execution=execution,
            digest=digest,
            precision=precision,
        )

    @property
    def first(self) -> object:
        """What an image goes through first: versions with the same may be run together."""
        return self

    def warm(self, batches: Sequence[int] = (1,)) -> None:
        """Run grey images in each batch size, so that no request meets a first time.

        Raises:
            Overloaded: there is not enough memory for it.
            VersionUnloadable: the graph fails, or its answers are no probabilities.
        """
        for batch in batches:
            images = self._grey(batch)
            try:
                answers = self.run(images, OUTPUTS)
            except (*FAILURES, MemoryError) as error:
                raise unloadable(f"the version fails on a batch of {batch}", error) from error
            probabilities, logits, embeddings = (answers[name] for name in OUTPUTS)
            shapes = probabilities.shape, logits.shape, embeddings.shape[:1]
            wanted = (batch, self.labels), (batch, self.labels), (batch,)
            if shapes != wanted or embeddings.ndim != 2:
                raise VersionUnloadable(f"the version answers in shapes {shapes}, not {wanted}")
            if not all(np.isfinite(answer).all() for answer in answers.values()):
                raise VersionUnloadable("the version answers a grey image with NaN or infinity")
            if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
                raise VersionUnloadable("the version's probabilities do not sum to 1")
        if self.execution.provider != "cpu":
            # CUDA's libraries make handles for each run that is under way at once.
            with ThreadPoolExecutor(self.execution.threads) as pool:
                list(pool.map(self.run, [self._grey(max(batches))] * 2 * self.execution.threads))

    def _grey(self, batch: int) -> Pixels:
        return np.full((batch, self.size, self.size, 3), 127, np.uint8)

    def check(self, images: Pixels, outputs: Sequence[str]) -> None:
        """Hold a call to the contract before it costs anything.

        Raises:
            InputMismatch: *images* is not uint8 [N, S, S, 3] with N > 0, or an output is
                not one of ``OUTPUTS``.
        """
        shape = (self.size, self.size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise InputMismatch(
                f"images are {images.dtype} {list(images.shape)}; this version takes uint8 "
                f"[N, {self.size}, {self.size}, 3]",
                dtype=images.dtype,
                shape=list(images.shape),
            )
        if not len(images):
            raise InputMismatch("there is no image in the batch", shape=list(images.shape))
        check_outputs(outputs)

    def run(self, images: Pixels, outputs: Sequence[str] = ("probabilities",)) -> Answers:
        """The named outputs for *images*, uint8 [N, S, S, 3]. Blocks; releases the GIL.

        ``probabilities`` and ``logits`` are [N, C], ``embeddings`` [N, F].

        Raises:
            InputMismatch: see ``check``.
        """
        self.check(images, outputs)
        names = list(outputs)
        images = np.ascontiguousarray(images)
        step = self.execution.chunk or len(images)
        if len(images) <= step:
            return dict(zip(names, self._padded(names, images), strict=True))
        chunks = [
            self._padded(names, images[start : start + step])
            for start in range(0, len(images), step)
        ]
        return {name: np.concatenate(parts) for name, *parts in zip(names, *chunks, strict=True)}

    def _padded(self, names: list[str], images: Pixels) -> list[NDArray[np.float32]]:
        """The outputs for at most a chunk of images, in a batch of a size that is known."""
        count = len(images)
        lacking = self.execution.size_for(count) - count
        if not lacking:
            return self._through(names, images)
        padded = np.concatenate([images, np.zeros((lacking, *images.shape[1:]), np.uint8)])
        return [rows[:count] for rows in self._through(names, padded)]

    def _through(self, names: list[str], images: Pixels) -> list[NDArray[np.float32]]:
        """The outputs for images that go through the graph together.

        Not bound to the device beforehand: that was no faster (benchmarks/gpu_serving.py).
        """
        session = self._sessions.of(len(images))
        found: list[NDArray[np.float32]] = session.run(names, {INPUT: images})
        return found


def check_outputs(outputs: Sequence[str]) -> None:
    """Hold output names to the contract.

    Raises:
        InputMismatch: there is none, or one is not of ``OUTPUTS``.
    """
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs:
        raise InputMismatch(
            f"outputs {unknown or 'of no name'} do not exist; ask for some of {list(OUTPUTS)}",
            outputs=unknown,
        )
