"""How a strategy is written: a row's name, then modifiers, each after a ``+``.

Read before a job is accepted, where torch is not at hand. What rows and modifiers do
stands in ``training/strategies.py``; whether a network has the stages that
``stages:A,B`` names is known when the network is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from acclimate_service.domain.errors import InvalidSpec

AUTO: Final = "auto"  # no strategy, but the choice of one
ROWS: Final = (
    "head", "late", "tail", "deep", "gradual", "lpft", "surgical", "full", "naive",
)  # fmt: skip
MODIFIERS: Final = (
    "lwf", "der", "held", "no-der", "l2sp", "no-replay", "no-ema", "no-augment", "balanced",
    "bn-recalibrated", "bn-updated", "gradual", "longer",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A strategy taken apart.

    At most one of ``last`` and ``stages`` is given; ``row`` is then what they change.
    """

    row: str
    last: int | None = None
    stages: tuple[str, ...] = ()
    modifiers: tuple[str, ...] = ()


def parts(text: str) -> Parts:
    """The parts of *text*: a row, ``last:K`` or ``stages:NAME,NAME``, and modifiers.

    Raises:
        InvalidSpec: there is no such row, modifier or form.
    """
    base, *modifiers = text.split("+")
    for modifier in modifiers:
        if modifier not in MODIFIERS:
            raise InvalidSpec(
                f"there is no modifier {modifier!r}, only {', '.join(MODIFIERS)}", strategy=text
            )
    kind, _, argument = base.partition(":")
    after = tuple(modifiers)
    if base in ROWS:
        return Parts(row=base, modifiers=after)
    if kind == "stages" and argument:
        return Parts(row="tail", stages=tuple(argument.split(",")), modifiers=after)
    if kind == "last" and argument.isdecimal():
        return Parts(row="tail", last=int(argument), modifiers=after)
    raise InvalidSpec(
        f"there is no strategy {base!r}, only auto, {', '.join(ROWS)}, last:K and stages:NAME,NAME",
        strategy=text,
    )
