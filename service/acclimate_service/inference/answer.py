"""What a request gets back: the outputs it asked for, and where its time went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acclimate_service.inference.classifier import Answers


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where a request's time went, in nanoseconds, and in what company it ran.

    ``queue`` is its longest wait; ``decode`` and ``infer`` are summed over the threads
    that worked on it. ``runs`` holds the sizes of the runs that are counted with this
    request: one that served several requests is counted with the first of them.
    """

    queue: int
    decode: int
    infer: int
    runs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The outputs asked for, by name, one row an image, and how long they took."""

    outputs: Answers
    timings: Timings


def joined(answers: list[Answer], decoded: int) -> Answer:
    """A request's answer from those of its parts, in order."""
    if len(answers) == 1 and not decoded:
        return answers[0]
    timings = [answer.timings for answer in answers]
    return Answer(
        outputs={
            name: np.concatenate([answer.outputs[name] for answer in answers])
            for name in answers[0].outputs
        },
        timings=Timings(
            queue=max(timing.queue for timing in timings),
            decode=decoded + sum(timing.decode for timing in timings),
            infer=sum(timing.infer for timing in timings),
            runs=tuple(size for timing in timings for size in timing.runs),
        ),
    )
