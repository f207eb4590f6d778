"""``acclimate guard``: a model's policy, and what the guard will need of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from acclimate.cli.extras import require
from acclimate.cli.options import DEFAULT_SERVER, AsJson, Server, connect, settings_of
from acclimate.cli.output import console, percent, print_json, print_table, short
from acclimate.cli.refusals import complain

if TYPE_CHECKING:
    from acclimate.resources import Model

app = typer.Typer(no_args_is_help=True, help="What the guard allows, and what it will need.")


@app.callback()
def guard() -> None:
    """What the guard allows, and what it will need."""


@app.command()
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Show the policy that a model's jobs take over.

    Example: acclimate guard show shop
    """
    with connect(server) as client:
        _show(client.model(model), as_json=as_json)


@app.command("set")
def set_policy(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log and with verdicts.")],
    preset: Annotated[str, typer.Option(help="balanced, strict or exploratory.")] = "balanced",
    limit: Annotated[
        list[str] | None,
        typer.Option("--set", help="A limit that differs from the preset's: source_margin=0.02."),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Give a model the policy that its later jobs take over; a job may differ, with a reason.

    Example: acclimate guard set shop --preset strict --reason "it sorts medicines"
    """
    with connect(server) as client:
        limits = settings_of(limit or [], option="--set")
        found = client.set_guard(model, preset=preset, overrides=limits, reason=reason)
        _show(found, as_json=as_json)


def _show(model: Model, *, as_json: bool) -> None:
    preset, limits = model.guard_preset or "balanced", dict(model.guard_overrides)
    if as_json:
        print_json({"model": model.name, "preset": preset, "overrides": limits})
        return
    reason = limits.pop("reason", "")
    console.print(
        f"{short(model.name)}: {preset}" + ("" if model.guard_preset else ", as none is set")
    )
    for name, value in limits.items():
        console.print(f"  {name} = {value}")
    if reason:
        console.print(f"  because: {reason}", markup=False)


@app.command()
def plan(
    margin: Annotated[
        float | None,
        typer.Option(help="The true drop to exclude: 0.01 is one point. Unset: the preset's."),
    ] = None,
    preset: Annotated[str, typer.Option(help="balanced, strict or exploratory.")] = "balanced",
    drop: Annotated[float, typer.Option(help="The true drop you expect; 0 is none.")] = 0.0,
    looks: Annotated[
        int, typer.Option(help="How many versions for the same domain were judged before.")
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
