"""The figures of a report as inline SVG: drawn in ink, told apart by shape and line.

No pyplot, so nothing is global but the settings, and those only while one figure is
drawn. Text stays text, in the page's own typeface; the same numbers give the same bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from acclimate_service.worker.told import ChangeTold, Engine, Estimate, TrialTold

INK, GREY, RULE = "#1c1b19", "#6a665f", "#c9c4ba"
WIDTH = 7.6  # inches; the page scales it

_STYLE: dict[Any, Any] = {  # of matplotlib's own names
    "svg.fonttype": "none",
    "svg.hashsalt": "acclimate",
    "text.parse_math": False,  # labels and names are text, whatever dollars they have
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": GREY,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "grid.color": "#e8e4db",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One set of verify images in the forest plot. Shares in [0, 1]; ``rate``: of guessing."""

    domain: str
    role: str
    n: int
    before: Estimate | None
    after: Estimate
    change: Estimate | None = None  # after minus before
    limit: float | None = None
    margin: float | None = None
    rate: float | None = None


def forest(rows: Sequence[Row]) -> str:
    """Accuracy before and after on every set, and the change with what is tolerated of it."""
    changed = any(row.change is not None for row in rows)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(
            1, 2 if changed else 1, sharey=True, squeeze=False, width_ratios=[3, 2][: 1 + changed]
        )[0]
        for place, row in enumerate(rows):
            _accuracies(panels[0], place, row)
            if changed:
                _change(panels[1], place, row)
        names = [f"{row.domain}\n{row.role}, n = {row.n}" for row in rows]
        panels[0].set_yticks(range(len(rows)), names, color=INK)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        panels[0].set_title("Right answers, %")
        if changed:
            panels[1].axvline(0, color=INK, linewidth=0.8)
            panels[1].set_title("Change, points   (worse < 0 < better)")
        for axes in panels:
            axes.grid(visible=True, axis="x")
            axes.set_axisbelow(True)

    alt = "; ".join(_in_words(row) for row in rows)
    height = 0.7 + 0.62 * len(rows)
    return _svg(draw, height, f"Accuracy with 95% intervals. {alt}.", "forest") if rows else ""


def _accuracies(axes: Axes, place: int, row: Row) -> None:
    _interval(axes, place - 0.14, row.before, marker="o", filled=False)
    _interval(axes, place + (0.14 if row.before else 0.0), row.after, marker="s", filled=True)
    if row.rate is not None:
        axes.plot(
            [100 * row.rate] * 2, [place - 0.35, place + 0.35], color=INK, linestyle=(0, (1, 1.5))
        )


def _change(axes: Axes, place: int, row: Row) -> None:
    _interval(axes, place, row.change, marker="D", filled=True)
    for tolerated, style in ((row.limit, (0, (1, 1.5))), (row.margin, "-")):
        if tolerated is not None:
            at = [-100 * tolerated] * 2
            axes.plot(at, [place - 0.3, place + 0.3], color=GREY, linestyle=style, linewidth=1.2)


def _interval(axes: Axes, y: float, found: Estimate | None, *, marker: str, filled: bool) -> None:
    if found is None or found.value is None:
        return
    if found.low is not None and found.high is not None:
        axes.plot([100 * found.low, 100 * found.high], [y, y], color=INK, linewidth=1.1)
    face = INK if filled else "white"
    axes.plot([100 * found.value], [y], marker=marker, color=INK, markerfacecolor=face)


def _in_words(row: Row) -> str:
    before = None if row.before is None else row.before.value
    after = "unknown" if row.after.value is None else f"{row.after.value:.1%}"
    was = "" if before is None else f"{before:.1%} before, "
    return f"{row.domain} ({row.role}, {row.n} images): {was}{after} after"


# ── training ─────────────────────────────────────────────────────────────────


def learning_curves(engine: Engine) -> str:
    """Accuracy and loss by epoch, a column for each trial; the kept epoch is marked."""
    trials = [trial for trial in engine.trials if trial.candidate.history]

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, len(trials), sharex="col", sharey="row", squeeze=False)
        for accuracy, loss, trial in zip(above, below, trials, strict=True):
            _curves(accuracy, loss, trial)
            accuracy.set_title(trial.candidate.strategy)
            loss.set_xlabel("epoch")
        above[0].set_ylabel("right, %")
        below[0].set_ylabel("loss, nats")
        _legend(figure, above[0])

    alt = "Learning curves. " + "; ".join(
        f"{t.candidate.strategy}: {len(t.candidate.history)} epochs, train accuracy "
        f"{t.candidate.history[-1].train_accuracy:.1%} at the end, epoch "
        f"{t.candidate.best_epoch} kept"
        for t in trials
    )
    return _svg(draw, 3.6, f"{alt}.", "learning") if trials else ""


def _curves(accuracy: Axes, loss: Axes, trial: TrialTold) -> None:
    history, best = trial.candidate.history, trial.candidate.best_epoch
    epochs = [line.epoch for line in history]
    chosen = [line for line in history if line.select_accuracy is not None]
    at = [line.epoch for line in chosen]
    _train(accuracy, epochs, [100 * line.train_accuracy for line in history])
    _held_out(accuracy, at, [100 * (line.select_accuracy or 0.0) for line in chosen])
    _train(loss, epochs, [line.train_loss for line in history])
    _held_out(loss, at, [line.select_nll or 0.0 for line in chosen])
    for axes in (accuracy, loss):
        if best:
            axes.axvline(
                best, color=INK, linewidth=1.0, linestyle=(0, (1, 1.5)), label="epoch kept"
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.grid(visible=True, axis="y")


def _train(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    axes.plot(x, y, color=GREY, linestyle=(0, (4, 2)), label="training images")


def _held_out(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    axes.plot(x, y, color=INK, marker="o", markersize=3, label="select images")


def blend_curves(engine: Engine) -> str:
    """The lines from incumbent to candidate, a column for each trial, the points taken marked."""
    trials = [trial for trial in engine.trials if _measured(trial)]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(trials), sharey=True, squeeze=False)[0]
        for axes, trial in zip(panels, trials, strict=True):
            _line(axes, trial)
            axes.set_title(trial.candidate.strategy)
            axes.set_xlabel("share of the way to the candidate")
        panels[0].set_ylabel("gain, points")
        _legend(figure, panels[0])

    alt = "Blends of incumbent and candidate. " + "; ".join(
        f"{t.candidate.strategy}: taken at {t.blend.alpha:g} of the way" for t in trials
    )
    return _svg(draw, 2.6, f"{alt}.", "blend") if trials else ""


def _measured(trial: TrialTold) -> bool:
    return any(point.target or point.source for point in trial.blend.curve)


def _line(axes: Axes, trial: TrialTold) -> None:
    def gains(of: Callable[[int], ChangeTold | None]) -> tuple[list[float], list[float]]:
        seen = [(p.alpha, of(i)) for i, p in enumerate(curve)]
        known = [(alpha, 100 * change.gain) for alpha, change in seen if change is not None]
        return [alpha for alpha, _ in known], [gain for _, gain in known]

    curve, taken = trial.blend.curve, trial.blend.alpha
    axes.axhline(0, color=RULE, linewidth=0.8)
    target, source = gains(lambda i: curve[i].target), gains(lambda i: curve[i].source)
    axes.plot(*target, color=INK, marker="o", label="target, select images")
    axes.plot(
        *source,
        color=GREY,
        marker="s",
        markerfacecolor="white",
        linestyle=(0, (4, 2)),
        label="source, select images",
    )
    axes.axvline(taken, color=INK, linewidth=1.0, linestyle=(0, (1, 1.5)), label="taken")
    axes.annotate(
        f"{taken:g}",
        (taken, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3 if taken < 0.9 else -3, -9),
        textcoords="offset points",
        ha="left" if taken < 0.9 else "right",
        color=INK,
    )
    axes.set_xlim(-0.04, 1.04)
    axes.grid(visible=True, axis="y")


# ── drawing ──────────────────────────────────────────────────────────────────


def _legend(figure: Figure, axes: Axes) -> None:
    lines, names = axes.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper left", ncols=len(names), borderpad=0)


def _svg(draw: Callable[[Figure], None], height: float, alt: str, prefix: str) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        written = io.StringIO()
        about = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=about, transparent=True)
    return _inline(written.getvalue(), alt, prefix)


def _inline(svg: str, alt: str, prefix: str) -> str:
    """The ``<svg>`` element alone, fit for a page that has others.

    Without XML prologue, namespaces and style sheet, which would reach outside; with a
    text for those who do not see it; ids are kept where something refers to them, and
    are this figure's own.
    """
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<(style|metadata)\b.*?</\1>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', body))
    body = re.sub(
        r' id="([\w.-]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body
    )
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-")
    body = re.sub(r" font-family: [^;\"]*;?", "", body)
    body = re.sub(r">\s+<", "><", body)
    found = re.search(r'viewBox="[\d. ]+"', svg)
    assert found is not None
    text = html.escape(alt, quote=True)
    return f'<svg role="img" aria-label="{text}" {found[0]}>{body.strip()}'
