"""How often harm gets through where many domains are adapted, each trying again and again.

All of them are judged by the same source-verify images, some of which are easily lost: so
their luck is shared. The figures of docs/guard.md are printed by
``python -m tests.unit.domain.test_looks_of_domains``.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.unit.domain.test_statistics_error_rates import LEVEL, MARGIN, by_guard

from acclimate_service.domain.statistics import excludes
from acclimate_service.domain.tolerance import Tolerance

GUIDE = Path(__file__).parents[3] / "docs" / "guard.md"
IMAGES, HOLDOUTS, DOMAINS, TRIES = 400, 150, 50, 20
FRAIL, LOST = 0.1, 0.3  # a tenth of the images is lost by three candidates of ten: 3 points


@cache
def harmed(*, spending: bool = True) -> npt.NDArray[np.bool_]:
    """[holdouts, domains] whether one of a domain's candidates passes, each 3 points worse."""
    generator = np.random.default_rng(5)
    passed = np.zeros((HOLDOUTS, DOMAINS), dtype=np.bool_)
    for holdout in range(HOLDOUTS):
        frail = generator.binomial(IMAGES, FRAIL)  # of the images that this one happens to hold
        lost = generator.binomial(frail, LOST, size=(DOMAINS, TRIES))
        for look in range(TRIES):
            rule = Tolerance(limit=0.01, margin=MARGIN, level=LEVEL, looks=look * spending)
            count = lost[:, look]
            small = count <= rule.limit * IMAGES + 1e-9
            passed[holdout] |= small & by_guard(count, np.zeros_like(count), IMAGES, rule.spent)
    return passed


def test_a_domain_that_tries_twenty_times_lets_harm_through_at_most_at_the_level() -> None:
    by_holdout = harmed().mean(axis=1)
    noise = 3 * by_holdout.std() / HOLDOUTS**0.5
    assert by_holdout.mean() <= LEVEL + noise
    assert noise < LEVEL / 2, "too few holdouts to see it"


def test_without_spending_the_level_many_domains_would_let_harm_through() -> None:
    """The control: the same twenty tries, each judged as the domain's first."""
    assert harmed(spending=False).mean() > max(LEVEL, 5 * harmed().mean())


def images_needed(looks: int) -> int:
    """How many source-verify images accept a candidate that loses nothing."""
    level = Tolerance(limit=0.01, margin=MARGIN, level=LEVEL, looks=looks).spent
    return next(n for n in range(2000) if excludes(0, 0, n, margin=MARGIN, level=level))


def printed(found: str) -> float:
    match = re.search(found, GUIDE.read_text(encoding="utf-8"))
    assert match, f"docs/guard.md lacks {found!r}"
    return float(match.group(1))


@pytest.mark.parametrize("spending", [True, False])
def test_the_guide_prints_the_measured_share_of_domains(spending: bool) -> None:
    row = r"each look spends \| (\S+) %" if spending else r"each try as the first \| (\S+) %"
    # numpy may change its stream, and by holdouts the share varies much.
    assert printed(row) / 100 == pytest.approx(harmed(spending=spending).mean(), abs=0.02)


def test_the_guide_says_how_many_images_a_look_asks_for() -> None:
    assert printed(r"the first look asks for (\d+) of them") == images_needed(0)
    assert printed(r"the 20th for (\d+)") == images_needed(19)


if __name__ == "__main__":
    for spending in (True, False):
        by_holdout = harmed(spending=spending).mean(axis=1)
        print(spending, f"{by_holdout.mean():.2%}", f"{(by_holdout > LEVEL).mean():.1%}")
    print([images_needed(looks) for looks in (0, 1, 10, 19, 100)])
