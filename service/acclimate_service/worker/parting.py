"""A version's file in two, proven to answer as the whole does, so that many may share a trunk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from acclimate_service.inference.classifier import Classifier, Pixels
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.sessions import OUTPUTS
from acclimate_service.inference.trunks import Tailed, Trunk
from acclimate_service.training.network import Network
from acclimate_service.training.parts import Halves, Uncut, boundary, cut


@dataclass(frozen=True, kw_only=True)
class Parting:
    """Trunk and tail, cut before ``stage``; without them, ``why`` there are none."""

    stage: str = ""
    halves: Halves | None = None
    why: str = ""


def part(
    content: bytes,
    network: Network,
    images: Pixels,
    *,
    parent: bytes | None,
    below: str | None = None,
) -> Parting:
    """Cut the file *content* of *network* where its weights begin to differ from *parent*'s.

    Or lower: not above the stage *below*, and where onnxruntime, which fuses across stages,
    lets both halves answer as the whole does, to the bit, on *images*, uint8 [N, S, S, 3].
    """
    names = (*network.stage_names, "head")
    highest = boundary(content, parent, network)
    if below is not None and below in names:
        highest = min(highest, names.index(below))
    why = "its first stage is its own"
    expected = _answers(_opened(content, network), images)
    for index in range(highest, 0, -1):
        for bridged in (False, True):
            try:
                halves = cut(content, network, index, bridged=bridged)
            except Uncut as error:
                why = str(error)
                continue
            found = _answers(_joined(halves, network), images)
            if all(np.array_equal(expected[name], found[name]) for name in OUTPUTS):
                return Parting(stage=names[index], halves=halves)
            why = "onnxruntime computes the halves otherwise than the whole"
    return Parting(why=why)


def _opened(content: bytes, network: Network) -> Classifier:
    return Classifier.open(
        content,
        digest=hashlib.sha256(content).hexdigest(),
        labels=network.labels,
        size=network.preprocessing.size,
        execution=Execution(),
    )


def _joined(halves: Halves, network: Network) -> Tailed:
    trunk = Trunk.open(
        halves.trunk,
        digest=hashlib.sha256(halves.trunk).hexdigest(),
        size=network.preprocessing.size,
        execution=Execution(),
    )
    digest = hashlib.sha256(halves.tail).hexdigest()
    return Tailed.on(trunk, halves.tail, digest=digest, labels=network.labels, whole="")


def _answers(classifier: Classifier, images: Pixels) -> dict[str, np.ndarray]:
    return classifier.run(images, OUTPUTS)
