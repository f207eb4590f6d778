"""The report of a job, drawn as one HTML file that opens offline.

Verdict first, then why. The page asks the network for nothing, runs no script and says
nothing by colour alone; everything that a user gave is escaped.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import jinja2
import pydantic

from acclimate_service.domain.checks import ACCURACY
from acclimate_service.domain.statistics import wilson
from acclimate_service.domain.verdict import Decision
from acclimate_service.worker import advice, confusion, plots
from acclimate_service.worker.plots import Row
from acclimate_service.worker.printable import printable
from acclimate_service.worker.thumbnails import Thumbnails
from acclimate_service.worker.told import (
    Estimate,
    FirstClass,
    Flip,
    GroupTold,
    Measured,
    SetTold,
    Told,
    short,
)

ROWS_MOST = 40  # of a table of classes, slices or suspects
PICTURES_MOST = 24  # lost, of a set; half as many gained
LABELS_MOST = 200
COPIES_MOST = 6  # pairs shown

_ORDER = (Decision.REJECT, Decision.INCONCLUSIVE, Decision.ACCEPT)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One set of verify images as the page shows it."""

    shown: SetTold
    measured: Measured | None
    before: confusion.Grid | None  # None: too many labels for a grid
    after: confusion.Grid | None
    pairs: tuple[confusion.Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image whose answer changed sides; ``uri`` is empty where it cannot be shown."""

    flip: Flip
    uri: str


def render(told: Mapping[str, pydantic.JsonValue], *, read: Callable[[str], bytes]) -> str:
    """The HTML of a report document; *read* opens an image by its blob's digest.

    Raises:
        pydantic.ValidationError: the document is not one of ``document.document``.
    """
    found = Told.model_validate(told)
    thumbnails = Thumbnails(read=read)

    def pictures(flips: Iterable[Flip]) -> list[Picture]:
        return [Picture(flip=flip, uri=thumbnails.uri(flip.blob)) for flip in flips]

    engine = found.engine
    return _template().render(
        told=found,
        headline=advice.headline(found),
        steps=advice.steps(found),
        checks=_checks(found),
        rows=standing(found),
        forest=plots.forest(standing(found)),
        sections=[_section(shown, found) for shown in found.sets],
        learning="" if engine is None else plots.learning_curves(engine),
        blend="" if engine is None else plots.blend_curves(engine),
        pictures=pictures,
        suspects=[(s, thumbnails.uri(s.blob)) for s in found.label_suspects[:ROWS_MOST]],
        copies=[
            (c, thumbnails.uri(c.blob), thumbnails.uri(c.of_blob))
            for c in found.near_copies.listed[:COPIES_MOST]
        ],
        settings=_settings(told),
        policy=_policy(found),
        pictures_most=PICTURES_MOST,
        rows_most=ROWS_MOST,
        labels_most=LABELS_MOST,
        pairs_most=confusion.PAIRS_MOST,
    )


def standing(told: Told) -> list[Row]:
    """Where every set of verify images stands, before and after, with intervals."""
    measurements = None if told.verdict is None else told.verdict.measurements
    rate = None if measurements is None else measurements.majority
    return [_row(shown, told.measured(shown), rate) for shown in told.sets if shown.images]


def _row(shown: SetTold, measured: Measured | None, rate: float | None) -> Row:
    domain = short(shown.domain)
    if measured is None:  # nobody asked the guard, or it stopped at answers that are none
        return Row(
            domain=domain,
            role=shown.role,
            n=shown.images,
            before=_share(shown.before, shown.images),
            after=_share(shown.after, shown.images) or Estimate(),
            rate=rate,
        )
    drop = measured.drop
    return Row(
        domain=domain,
        role=shown.role,
        n=shown.images,
        before=measured.accuracy_before,
        after=measured.accuracy_after,
        change=Estimate(value=_minus(drop.value), low=_minus(drop.high), high=_minus(drop.low)),
        limit=drop.limit,
        margin=drop.margin,
    )


def _share(value: float | None, n: int) -> Estimate | None:
    if value is None:
        return None
    low, high = wilson(round(value * n), n, 0.025)
    return Estimate(value=value, low=low, high=high)


def _minus(value: float | None) -> float | None:
    return None if value is None else 0.0 - value


def _section(shown: SetTold, told: Told) -> Section:
    labels = confusion.labels_in(shown.confusion_before, shown.confusion_after)
    fits = len(labels) <= confusion.GRID_MOST
    before, after = shown.confusion_before, shown.confusion_after
    return Section(
        shown=shown,
        measured=told.measured(shown),
        before=confusion.grid(before, labels) if fits and before else None,
        after=confusion.grid(after, labels) if fits and after else None,
        pairs=confusion.pairs(before, after),
    )


def _checks(told: Told) -> list[tuple[str, object]]:
    """The checks with what they are about, the deciding ones first."""
    checks = () if told.verdict is None else told.verdict.checks
    ranked = sorted(checks, key=lambda check: _ORDER.index(check.decision))
    return [(advice.subject(told, check), check) for check in ranked]


def _policy(told: Told) -> list[tuple[str, str, str]]:
    """Every limit of the guard's: its name, its value, and the preset's where that differs."""
    if told.verdict is None:
        return []
    found = told.verdict.measurements
    return [
        (name, _plain(value), _plain(found.overrides[name]) if name in found.overrides else "")
        for name, value in found.policy.items()
        if value != ""
    ]


def _settings(told: Mapping[str, pydantic.JsonValue]) -> list[tuple[str, str]]:
    """What the job was asked to do, setting by setting; the guard's limits stand apart."""
    job = told["job"]
    assert isinstance(job, dict)
    spec = job["spec"]
    assert isinstance(spec, dict)
    return [(name, _plain(value)) for name, value in spec.items() if name != "guard"]


# ── how values are written ───────────────────────────────────────────────────


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("acclimate_service.worker", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "number": _number,
        "decimal": _decimal,
        "p_value": _p_value,
        "moment": _moment,
        "megabytes": lambda size: f"{size / 1e6:.1f} MB",
        "duration": _duration,
        "short": short,
        "amount": _amount,
        "telling": telling,
        "weakest": weakest,
    }
    return environment.get_template("report.html.j2")


def telling(groups: Iterable[GroupTold]) -> list[GroupTold]:
    """Groups in the order of their labels if they fit a table, else those that changed most.

    Of these the losses first: three rows of four, if there are as many.
    """
    listed = list(groups)
    if len(listed) <= ROWS_MOST:
        return listed
    changed = [group for group in listed if group.lost or group.gained]
    ranked = sorted(changed, key=lambda g: (g.gained - g.lost, -g.lost - g.gained))
    if len(ranked) <= ROWS_MOST:
        return ranked
    return [*ranked[: ROWS_MOST * 3 // 4], *ranked[-ROWS_MOST // 4 :]]


def weakest(classes: Iterable[FirstClass]) -> list[FirstClass]:
    """The classes of a first version that are least often right."""
    return sorted(classes, key=lambda one: one.right / one.n)[:ROWS_MOST]


def _amount(value: float | None, unit: str) -> str:
    """A check's number as its unit is read."""
    if value is None:
        return "–"
    if unit.startswith(ACCURACY):
        return _signed(f"{100 * value:.1f}")
    if unit == "accuracy" or unit.startswith("share"):
        return _percent(value)
    if unit.startswith("candidate /"):
        return f"{value:.2f} ×"
    return _number(value) if unit.startswith(("classes", "images")) else _decimal(value)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _points(share: float | None) -> str:
    return "–" if share is None else _signed(f"{100 * share:+.1f}")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return _signed(f"{value:.3g}") if abs(value) < 1000 else f"{value:,.0f}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else _signed(f"{value:.3f}")


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def _signed(text: str) -> str:
    """*text* with a true minus sign, and without a sign where it says zero."""
    if "e" in text:
        return text
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _moment(text: str) -> str:
    moment = dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _plain(value: pydantic.JsonValue) -> str:
    """A setting as it is read: ``yes`` for True, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "–" if value in (None, "") else printable(str(value), 1000)
