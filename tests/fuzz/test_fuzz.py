"""Short forms of ``./run fuzz``; other inputs at every run, but in CI."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest
from tests.fuzz import inputs
from tests.fuzz.campaign import COUNTS, run
from tests.fuzz.guided import TARGETS


def seed() -> int:
    return 0 if os.environ.get("CI") else random.SystemRandom().randrange(10**9)


@pytest.mark.parametrize("share", [0.01, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_nothing_that_comes_in_breaks_the_service(share: float, tmp_path: Path) -> None:
    number = seed()
    counts = {kind: round(count * share) for kind, count in COUNTS.items()}
    tallies = run(counts, number, tmp_path)
    assert sum(tally.outcomes.total() for tally in tallies) == sum(counts.values())
    (tensors,) = (tally for tally in tallies if tally.kind == "tensors")
    assert tensors.outcomes["OK"]  # the model was there, so the others met its checks
    for tally in tallies:
        assert tally.clean, (number, tally)


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_of_guided_fuzzing_takes_or_refuses_what_it_begins_with(name: str) -> None:
    rng, target = random.Random(seed()), TARGETS[name]
    run_one, refusals = target.make()
    taken = 0
    for number in range(100):
        content = target.seed(rng)
        with contextlib.suppress(*refusals):
            run_one(content if number % 2 else inputs.mutated(rng, content))
            taken += 1
    assert taken  # not all were refused before they came to anything
