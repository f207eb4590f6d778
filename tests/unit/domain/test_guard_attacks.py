"""What has gone live elsewhere, and must not here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.unit.domain.outcomes import by_class, paired

from acclimate_service.domain.groups import classes_of, groups, weigh
from acclimate_service.domain.guard import Decision, Evidence, GuardPolicy, Verdict, judge
from acclimate_service.domain.statistics import mcnemar

BALANCED = GuardPolicy()
KEPT = paired(400, 1, 1)
GAINED = paired(100, 2, 42, before=0.4, name="domains/webcam")


def verdict_on(
    source: tuple[int, int, int] = (400, 1, 1), target: tuple[int, int, int] = (100, 0, 10)
) -> Verdict:
    return judge(
        BALANCED,
        Evidence(source=paired(*source), target=paired(*target, before=0.9, name="domains/webcam")),
    )


def unpaired_p(before: int, after: int, n: int) -> float:
    """One-sided p-value of the pooled two-sample z-test, which takes the images as unrelated."""
    share = (before + after) / (2 * n)
    z = (before - after) / math.sqrt(2 * n * share * (1 - share))
    return math.erfc(z / math.sqrt(2)) / 2


@pytest.mark.parametrize(("lost", "gained"), [(8, 0), (9, 1), (10, 2), (12, 4), (16, 8)])
def test_a_fall_from_90_to_82_that_an_unpaired_test_passes_is_never_accepted(
    lost: int, gained: int
) -> None:
    assert unpaired_p(90, 82, 100) == pytest.approx(0.0515, abs=5e-4)
    verdict = verdict_on(target=(100, lost, gained))
    shown = mcnemar(lost, gained) <= 0.05
    assert verdict.decision is (Decision.REJECT if shown else Decision.INCONCLUSIVE)
    assert shown == (lost < 15), "only when much else changed may eight of a hundred be chance"


def test_naive_fine_tuning_is_rejected_whatever_the_target_gained() -> None:
    """73 to 82 points lost on the source, as measured for Adam 1e-3 on every layer."""
    for lost in (30, 73, 82):
        source = paired(250, round(2.5 * lost), 0, before=0.98)
        verdict = judge(BALANCED, Evidence(source=source, target=GAINED))
        assert verdict.decision is Decision.REJECT


def one_class_lost(images: int) -> list[tuple[int, int, int, int]]:
    """Ten classes; one loses every image, nine gain so much that the average rises 10 points."""
    right = round(0.8 * images)
    gain = math.ceil((0.1 * 10 * images + right) / 9)
    rest = (images, images - gain, 0, gain)
    return [(images, right, right, 0), *[rest] * 9]


@pytest.mark.parametrize("images", [8, 12, 20, 50])
@pytest.mark.parametrize("where", ["source", "target"])
def test_ten_points_gained_on_average_do_not_pay_for_a_class_that_is_lost(
    images: int, where: str
) -> None:
    outcomes = one_class_lost(images)
    bad = by_class(outcomes)
    assert bad.after.mean() - bad.before.mean() >= 0.1 - 1e-9
    evidence = (
        Evidence(source=bad, target=GAINED)
        if where == "source"
        else Evidence(source=KEPT, target=bad)
    )
    verdict = judge(BALANCED, evidence)
    (classes,) = [one for one in verdict.checks if one.name == f"{where} classes"]
    # Eight images, six of them right: p = 1/64, times ten classes. Refused, if not shown.
    assert classes.decision is (Decision.REJECT if images >= 12 else Decision.INCONCLUSIVE)
    assert verdict.decision is not Decision.ACCEPT
    assert f"#0 ({outcomes[0][1]} of {images} right before, 0 after)" in classes.message


@pytest.mark.parametrize("images", [2, 3, 4])
def test_a_class_of_a_few_images_that_is_lost_whole_is_not_accepted(images: int) -> None:
    source = by_class([(images, images, images, 0), *[(60, 57, 0, 0)] * 9])
    verdict = judge(BALANCED, Evidence(source=source, target=GAINED))
    assert verdict.decision is Decision.INCONCLUSIVE
    (classes,) = [one for one in verdict.checks if one.name == "source classes"]
    assert classes.needed is not None
    assert classes.needed > len(source)


def test_a_class_of_a_few_images_that_is_kept_does_not_hold_up_the_rest() -> None:
    source = by_class([(2, 2, 0, 0), (1, 1, 0, 0), (3, 2, 1, 1), *[(60, 57, 0, 0)] * 7])
    verdict = judge(BALANCED, Evidence(source=source, target=GAINED))
    assert verdict.decision is Decision.ACCEPT, verdict.summary
    (classes,) = [one for one in verdict.checks if one.name == "source classes"]
    assert "too small to judge: #0, #1, #2" in classes.message


@pytest.mark.parametrize(
    ("classes", "images", "right", "lost", "gained"),
    [(10, 30, 0.95, 0.03, 0.5), (31, 12, 0.95, 0.03, 0.5), (10, 10, 0.4, 0.05, 0.65)],
)
def test_chance_losses_rarely_look_like_a_harmed_class(
    classes: int, images: int, right: float, lost: float, gained: float
) -> None:
    """Candidates that harm no class more than another: at most one in twenty is held up."""
    generator = np.random.default_rng(3)
    held_up = 0
    for _ in range(200):
        was = generator.binomial(images, right, size=classes)
        outcomes = zip(
            was,
            generator.binomial(was, lost),
            generator.binomial(images - was, gained),
            strict=True,
        )
        pairs = by_class([(images, int(r), int(b), int(c)) for r, b, c in outcomes])
        found = groups(pairs, classes_of(pairs, ()), BALANCED.level)
        decisions = {weigh(g, limit=0.05, level=BALANCED.level) for g in found}
        held_up += decisions != {Decision.ACCEPT}
    assert held_up <= 10


def test_the_same_candidate_asked_again_and_again_needs_more_evidence_each_time() -> None:
    decisions = [
        judge(BALANCED, Evidence(source=paired(300, 2, 0), target=GAINED, looks=looks)).decision
        for looks in (0, 5, 50)
    ]
    assert decisions[0] is Decision.ACCEPT
    assert decisions[-1] is Decision.INCONCLUSIVE


def test_harm_does_not_become_harder_to_show_when_a_holdout_is_worn_out() -> None:
    harmed = paired(300, 12, 2)
    for looks in (0, 10, 1000):
        verdict = judge(BALANCED, Evidence(source=harmed, target=GAINED, looks=looks))
        assert verdict.decision is Decision.REJECT


def test_a_batch_with_thirty_percent_flipped_labels_is_rejected_when_half_are_found() -> None:
    verdict = judge(BALANCED, Evidence(source=KEPT, target=GAINED, label_suspects=0.16))
    assert verdict.decision is Decision.REJECT
