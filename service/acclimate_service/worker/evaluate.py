"""Run an exported ONNX file on held-out images, exactly as serving runs it.

What is judged is what is shipped: the same bytes, the same onnxruntime session,
the same decoding as in ``serve``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acclimate_service.domain.examples import Example
from acclimate_service.domain.model import Preprocessing
from acclimate_service.imaging import decode_prepared
from acclimate_service.inference.classifier import Classifier

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BATCH = 16


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

    def slices(self) -> dict[str, npt.NDArray[np.int64]]:
        """The places of the images that carry each tag, if there are several.

        What one image alone carries (the number of a frame) names no slice, and shows no harm.
        """
        places: dict[str, list[int]] = {}
        for place, example in enumerate(self.examples):
            for tag in example.tags:
                places.setdefault(tag, []).append(place)
        several = sorted(tag for tag, found in places.items() if len(found) > 1)
        return {tag: np.array(places[tag], np.int64) for tag in several}


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
