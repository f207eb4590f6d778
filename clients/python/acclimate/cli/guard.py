"""``acclimate guard``: what the guard will need, before images are collected."""

from __future__ import annotations

from typing import Annotated

import typer

from acclimate.cli.extras import require
from acclimate.cli.options import AsJson
from acclimate.cli.output import console, percent, print_json, print_table
from acclimate.cli.refusals import complain

app = typer.Typer(no_args_is_help=True, help="Ask the guard what it will need.")


@app.callback()
def guard() -> None:
    """Ask the guard what it will need."""


@app.command()
def plan(
    margin: Annotated[
        float | None,
        typer.Option(help="The true drop to exclude: 0.01 is one point. Unset: the preset's."),
    ] = None,
    preset: Annotated[str, typer.Option(help="balanced, strict or exploratory.")] = "balanced",
    drop: Annotated[float, typer.Option(help="The true drop you expect; 0 is none.")] = 0.0,
    looks: Annotated[
        int, typer.Option(help="How often the model's holdout was judged on before.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """How many held-out source images the guard needs, to accept what deserves it.

    It depends on how many images the new version answers otherwise than the old
    one (right for wrong, or wrong for right), and on how sure you want to be of
    an answer.

    Example: acclimate guard plan --margin 0.01
    """
    require("numpy", "pydantic", extra="serve", what="`acclimate guard`")
    from acclimate_service.domain import errors, planning, policy

    try:
        limits = policy.GuardPolicy.preset(preset)
        rows = planning.plan(limits, margin=margin, drop=drop, looks=looks)
    except errors.ServiceError as error:
        complain(error.reason, str(error))
        raise typer.Exit(2) from None
    if as_json:
        print_json({"rows": [row.to_json() for row in rows]})
        return
    console.print(
        f"To accept a version whose source accuracy truly falls by {percent(drop)}, and to let one "
        f"through that falls by {percent(rows[0].margin)} with a chance of at most "
        f"{percent(limits.level)}:\n"
    )
    powers = sorted({row.power for row in rows})
    by_discordance: dict[float, dict[float, planning.PlanRow]] = {}
    for row in rows:
        by_discordance.setdefault(row.discordance, {})[row.power] = row
    print_table(
        ("ANSWERS THAT CHANGE", *(f"{100 * power:.0f} % SURE" for power in powers)),
        (
            (percent(discordance), *(_need(found[power]) for power in powers))
            for discordance, found in by_discordance.items()
        ),
        empty="nothing to plan",
    )
    console.print("\n[dim]Images to upload with role HOLDOUT (of which to verify on).[/dim]")


def _need(row: object) -> str:
    verify, holdout = getattr(row, "verify", None), getattr(row, "holdout", None)
    return "out of reach" if verify is None else f"{holdout:,} ({verify:,})"
