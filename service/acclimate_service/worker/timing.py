"""What one image takes through each of several files, whatever else the machine does.

A job is judged while others train and serve, and a neighbour's work must not decide
against a candidate. Whatever runs beside a file makes it slower, never faster, so the
calmest rounds count, and who is found too slow is measured again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution

Pixels = npt.NDArray[np.uint8]
Clock = Callable[[], float]

# On a CPU a file is timed on one thread: it has a clock of its own, which stands still
# while another program has the core. With more, each node waits for the last of them, and
# a busy machine then costs the file with more nodes the most: int8 beside fp32.
ALONE = Execution()

SITTINGS = 3  # before a file is called too slow
REST = 1.0  # seconds between two of them, for whatever it was to pass
_ROUNDS = 60
_ROUNDS_LEAST, _SECONDS = 15, 10.0  # a slow file is not timed for ever
_CALM = 0.1  # of the rounds: the calmest


def milliseconds(
    classifiers: Sequence[Classifier],
    image: Pixels,
    *,
    ratio: float = math.inf,
    step: Callable[[], object] = lambda: None,
    clock: Clock | None = None,
    rest: Callable[[float], None] = time.sleep,
) -> list[float]:
    """The time of one image through each classifier while the machine is calm.

    Args:
        classifiers: All are timed in every round, forwards and backwards by turns.
        image: uint8 [size, size, 3].
        ratio: If the last takes more than so many times the first, they are timed again,
            ``SITTINGS`` times in all; each keeps the least of its times.
        step: Called in every round.
        clock: Seconds; by default see :func:`clock_of`.
        rest: Waits so many seconds.
    """
    clock = clock or clock_of(classifiers)
    least = _sitting(classifiers, image, step, clock)
    for _ in range(SITTINGS - 1):
        if least[-1] <= ratio * least[0]:
            break
        rest(REST)
        again = _sitting(classifiers, image, step, clock)
        least = [min(pair) for pair in zip(least, again, strict=True)]
    return [1000 * seconds for seconds in least]


def clock_of(classifiers: Sequence[Classifier]) -> Clock:
    """This thread's own where it does all of the work, else the wall's."""
    executions = [classifier.execution for classifier in classifiers]
    alone = all(one.provider == "cpu" and one.intra_op == 1 for one in executions)
    return time.thread_time if alone else time.perf_counter


def _sitting(
    classifiers: Sequence[Classifier], image: Pixels, step: Callable[[], object], clock: Clock
) -> list[float]:
    """The seconds of each in the calmest of many rounds."""
    batch = image[None]
    seconds: list[list[float]] = [[] for _ in classifiers]
    began = clock()
    for number in range(_ROUNDS):
        if number >= _ROUNDS_LEAST and clock() - began > _SECONDS:
            break
        step()
        order = list(zip(seconds, classifiers, strict=True))
        for times, classifier in order if number % 2 else reversed(order):
            started = clock()
            classifier.run(batch, ("probabilities",))
            times.append(clock() - started)
    return [float(np.quantile(times, _CALM)) for times in seconds]


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
