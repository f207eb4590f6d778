"""The tables: what each method gained and cost, and whether AUTO keeps its promises."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contest.record import Milestone, Record, groups

from acclimate_service.domain.statistics import tango_interval

AUTO, HEAD, FASTAI = "auto", "head", "fastai"
ALLOWED_DROP = 0.01  # of the source, on the mean over seeds
LEVEL = 0.025  # one-sided: intervals of 95 %
WORST = 0.02  # below head-only on the target, or lost of the source, in any one seed


@dataclass(frozen=True, kw_only=True)
class Difference:
    """AUTO's target accuracy less another method's, over the same images, with an interval.

    Seeds share images, so each distinct image counts once, with its mean over seeds:
    counting every seed's answer as a new image would make the interval too narrow.
    """

    mean: float
    low: float
    high: float
    images: int


def difference(ours: Sequence[Record], theirs: Sequence[Record]) -> Difference | None:
    """By Tango's paired interval on the seeds that both have; None without one."""
    pairs = [(a, b) for a in ours for b in theirs if a.seed == b.seed]
    outcomes: dict[str, list[int]] = defaultdict(list)
    for a, b in pairs:
        assert a.target.images == b.target.images, "the methods were scored on other images"
        answers = zip(a.target.images, a.target.right, b.target.right, strict=True)
        for image, ours_right, theirs_right in answers:
            outcomes[image].append(int(ours_right) - int(theirs_right))
    if not pairs:
        return None
    won = sum(sum(d > 0 for d in some) / len(some) for some in outcomes.values())
    lost = sum(sum(d < 0 for d in some) / len(some) for some in outcomes.values())
    low, high = tango_interval(lost, won, len(outcomes), LEVEL)  # of the drop
    return Difference(
        mean=statistics.mean(a.target.accuracy - b.target.accuracy for a, b in pairs),
        low=-high,
        high=-low,
        images=len(outcomes),
    )


def mean_drop(records: Sequence[Record]) -> float:
    """The fall of the source's accuracy, on the mean over seeds."""
    return statistics.mean(r.drop for r in records)


def mean_target(records: Sequence[Record]) -> float:
    """The target's accuracy, on the mean over seeds."""
    return statistics.mean(r.target.accuracy for r in records)


def best_other(methods: Mapping[str, Sequence[Record]]) -> str | None:
    """The method best on the target, of those besides AUTO that lose at most a point."""
    allowed = [
        name
        for name, records in methods.items()
        if not name.startswith(AUTO) and mean_drop(records) <= ALLOWED_DROP + 1e-9
    ]
    return max(allowed, key=lambda name: mean_target(methods[name]), default=None)


def accuracies(records: Sequence[Record]) -> str:
    """One row for each pair, size and method: means over seeds, the seeds in brackets."""
    rows = [
        "| pair | a class | method | target | source | its change | wall s | CPU s | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (pair, per_class), methods in groups(records).items():
        first = next(iter(methods.values()))
        before = statistics.mean(r.target_before.accuracy for r in first)
        source = statistics.mean(r.source_before.accuracy for r in first)
        rows.append(
            f"| {pair} | {per_class or 'all'} | *before* | {100 * before:.1f} | "
            f"{100 * source:.1f} | | | | |"
        )
        for method, some in methods.items():
            rows.append(
                f"| | | {method} | {_spread(100 * r.target.accuracy for r in some)} | "
                f"{100 * statistics.mean(r.source.accuracy for r in some):.1f} | "
                f"{_spread((-100 * r.drop for r in some), '+.1f')} | "
                f"{statistics.mean(r.seconds for r in some):.0f} | "
                f"{statistics.mean(r.cpu_seconds for r in some):.0f} | "
                f"{max(r.peak_mib for r in some)} |"
            )
    return "\n".join(rows)


def contests(records: Sequence[Record]) -> str:
    """AUTO against the best other that forgets at most a point, and against fastai's time.

    ``source`` is AUTO's change of it; ``fastai ÷ AUTO`` how many times as long fastai takes, by
    the wall and, in brackets, by the processor; then the same of the first of AUTO's candidates
    that is at least as accurate on the target as fastai's end on the same split.
    """
    heading = (
        "| pair | a class | best other | AUTO less it [95 %] | images | source | fastai ÷ AUTO | "
        "as accurate as fastai after | fastai ÷ that |\n|---|---|---|---|---|---|---|---|---|"
    )
    rows = [heading]
    for (pair, per_class), methods in groups(records).items():
        if AUTO not in methods:
            continue
        other = best_other(methods)
        found = difference(methods[AUTO], methods[other]) if other else None
        shown = "" if found is None else (
            f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        )  # fmt: skip
        rows.append(
            f"| {pair} | {per_class or 'all'} | {other or 'none'} | {shown} | "
            f"{found.images if found else ''} | {0.0 - 100 * mean_drop(methods[AUTO]):+.1f} | "
            f"{_times(methods)} | {' | '.join(_until(methods))} |"
        )
    return "\n".join(rows)


def _times(methods: Mapping[str, Sequence[Record]]) -> str:
    """How much sooner AUTO ends than fastai, where it ends at least as accurate."""
    pairs = [
        (a, b) for a in methods[AUTO] for b in methods.get(FASTAI, []) if a.seed == b.seed
    ]  # fmt: skip
    if not pairs:
        return ""
    short = [a.seed for a, b in pairs if a.target.accuracy < b.target.accuracy]
    wall = statistics.mean(b.seconds / a.seconds for a, b in pairs)
    cpu = statistics.mean(b.cpu_seconds / a.cpu_seconds for a, b in pairs)
    told = f"{wall:.1f} ({cpu:.1f})"
    return told if not short else f"{told}; less accurate than it in seeds {short}"


def reached(ours: Record, theirs: Record) -> Milestone | None:
    """The first candidate on the way that is right as often on the target as *theirs*."""
    wanted = theirs.target.accuracy - 1e-9
    return next((one for one in ours.milestones if one.target >= wanted), None)


def _until(methods: Mapping[str, Sequence[Record]]) -> tuple[str, str]:
    """When AUTO first was as accurate as fastai ends, seed by seed, and fastai's time by that."""
    pairs = [
        (a, b)
        for a in methods[AUTO]
        for b in methods.get(FASTAI, [])
        if a.seed == b.seed and a.milestones
    ]
    found = [(a, b, reached(a, b)) for a, b in pairs]
    told = [_reached(a, one) for a, _, one in found]
    times = [
        (b.seconds / one.seconds, b.cpu_seconds / one.cpu_seconds) for _, b, one in found if one
    ]
    if not times:
        return "; ".join(told), ""
    wall, cpu = (statistics.mean(some) for some in zip(*times, strict=True))
    return "; ".join(told), f"{wall:.1f} ({cpu:.1f})"


def _reached(ours: Record, one: Milestone | None) -> str:
    if one is None:
        return f"not reached in seed {ours.seed}"
    told = f"{one.seconds:.0f} s ({one.cpu_seconds:.0f} CPU s), {one.name}"
    lost = ours.source_before.accuracy - one.source
    return told if lost <= ALLOWED_DROP + 1e-9 else f"{told}, source {-100 * lost:+.1f}"


def failures(records: Sequence[Record]) -> list[str]:
    """Where AUTO breaks what it promises, each a sentence."""
    found = []
    for (pair, per_class), methods in groups(records).items():
        if AUTO not in methods:
            continue
        where = f"{pair}, {per_class or 'all'} images a class"
        if (drop := mean_drop(methods[AUTO])) > ALLOWED_DROP + 1e-9:
            found.append(f"{where}: the source falls by {100 * drop:.1f} points on the mean")
        other = best_other(methods)
        if other and (short := mean_target(methods[other]) - mean_target(methods[AUTO])) > 1e-9:
            found.append(f"{where}: {other} is {100 * short:.1f} points better on the target")
        heads = {r.seed: r.target.accuracy for r in methods.get(HEAD, [])}
        for r in methods[AUTO]:
            below = heads.get(r.seed, 0.0) - r.target.accuracy
            if below > WORST + 1e-9:
                found.append(f"{where}, seed {r.seed}: {100 * below:.1f} points below head-only "
                             f"on the target ({r.detail})")  # fmt: skip
            if r.drop > WORST + 1e-9:
                found.append(f"{where}, seed {r.seed}: the source falls by {100 * r.drop:.1f} "
                             f"points ({r.detail})")  # fmt: skip
    return found


def report(records: Sequence[Record]) -> str:
    """Both tables and the failures, as Markdown."""
    broken = failures(records)
    told = "\n".join(f"- {line}" for line in broken) if broken else "Nowhere, in what was run."
    return (
        f"{accuracies(records)}\n\n{contests(records)}\n\n"
        f"Where AUTO breaks its promises:\n\n{told}\n"
    )


def _spread(values: Iterable[float], form: str = ".1f") -> str:
    listed = [value + 0.0 for value in values]  # a fall of nothing is no negative zero
    each = ", ".join(format(v, form) for v in listed)
    return f"{statistics.mean(listed):{form}} ({each})"
