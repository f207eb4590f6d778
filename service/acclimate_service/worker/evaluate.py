"""Run an exported ONNX file on held-out images, exactly as serving runs it.

What is judged is what is shipped: the same bytes, the same onnxruntime session,
the same decoding as in ``serve``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from acclimate_service.domain.examples import Example
from acclimate_service.domain.model import Preprocessing
from acclimate_service.imaging import decode_prepared
from acclimate_service.inference.classifier import Classifier

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BATCH = 16
_ROUNDS = 60  # of timing
_ROUNDS_LEAST, _SECONDS = 15, 10.0  # a slow file is not timed for ever
_CALM = 0.1  # of the rounds: the calmest


@dataclass(frozen=True, kw_only=True, eq=False)
class VerifySet:
    """The verify images of one domain, in the order of their examples.

    ``labels``: int64 [N], indices into the label space that is judged.
    """

    name: str
    examples: tuple[Example, ...]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.examples)

    def slices(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which images carry each tag: tag -> bool [N]."""
        tags = sorted({tag for example in self.examples for tag in example.tags})
        return {tag: np.array([tag in example.tags for example in self.examples]) for tag in tags}


def predict(
    classifiers: Sequence[Classifier],
    verify: VerifySet,
    *,
    read: Callable[[str], bytes],
    preprocessing: Preprocessing,
    step: Callable[[], object],
) -> list[Floats]:
    """Every classifier's probabilities, float32 [N, C], on the same decoded images.

    *read* opens a blob by digest; *step* is called between batches.
    """
    answers = [[np.zeros((0, classifier.labels), np.float32)] for classifier in classifiers]
    for start in range(0, len(verify), BATCH):
        step()
        chunk = verify.examples[start : start + BATCH]
        images = np.stack([decode_prepared(read(e.blob), preprocessing) for e in chunk])
        for answer, classifier in zip(answers, classifiers, strict=True):
            answer.append(classifier.run(images, ("probabilities",))["probabilities"])
    return [np.concatenate(answer) for answer in answers]


def milliseconds(
    classifiers: Sequence[Classifier],
    image: Pixels,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """The time of one image through each classifier while the machine is calm.

    All are timed in every round, forwards and backwards by turns, and what counts is a
    low quantile: whatever else runs on the machine makes a file slower, never faster,
    so a busy hour must not decide against a candidate. Shape of *image*: [size, size, 3].
    """
    batch = image[None]
    seconds: list[list[float]] = [[] for _ in classifiers]
    began = clock()
    for number in range(_ROUNDS):
        if number >= _ROUNDS_LEAST and clock() - began > _SECONDS:
            break
        order = list(zip(seconds, classifiers, strict=True))
        for times, classifier in order if number % 2 else reversed(order):
            started = clock()
            classifier.run(batch, ("probabilities",))
            times.append(clock() - started)
    return [1000 * float(np.quantile(times, _CALM)) for times in seconds]


def same_work(one: bytes, other: bytes) -> bool:
    """Whether two ONNX files run the same nodes, on whatever weights.

    An adaptation changes weights, and seldom anything else.
    """
    nodes = [
        [
            node.SerializeToString(deterministic=True)
            for node in onnx.load_from_string(file).graph.node
        ]
        for file in (one, other)
    ]
    return nodes[0] == nodes[1]


def equalled(times: Sequence[float | None]) -> list[float | None]:
    """The times of files that do the same work: the least, as all beyond it was the machine's."""
    known = [time for time in times if time is not None]
    return [min(known) if known else None for _ in times]
