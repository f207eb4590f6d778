"""Versions tried on live traffic."""

from __future__ import annotations

from typing import Annotated

import typer

from acclimate.cli.models import Alias, ModelArgument, VersionArgument
from acclimate.cli.options import DEFAULT_SERVER, AsJson, Server, connect
from acclimate.cli.output import ago, console, percent, print_json, print_table, short, words
from acclimate.cli.refusals import usage
from acclimate.rollouts import Rollout, RolloutMode

LIMITS = ("error_rate", "disagreement", "confidence_drop", "latency_ratio", "minimum")

app = typer.Typer(no_args_is_help=True, help="Versions tried on live traffic before they serve.")


@app.command()
def start(
    model: ModelArgument,
    version: VersionArgument,
    alias: Alias = "production",
    mode: Annotated[
        RolloutMode,
        typer.Option(
            case_sensitive=False,
            help="SHADOW asks it beside the incumbent; CANARY answers with it.",
        ),
    ] = RolloutMode.CANARY,
    share: Annotated[float, typer.Option(help="Of the requests, in (0, 1].")] = 0.1,
    promote: Annotated[
        bool, typer.Option(help="Move the alias once enough images kept within the limits.")
    ] = False,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as error_rate=0.02; also disagreement, confidence_drop, latency_ratio, "
            "minimum. Give it once for each."
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")] = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Try a version on a share of an alias's traffic; it ends by itself if a limit breaks.

    Example: acclimate rollout start shop 3 --share 0.05 --promote
    """
    with connect(server) as client:
        begun = client.start_rollout(
            model,
            version,
            alias=alias,
            mode=mode,
            share=share,
            promote=promote,
            limits=_limits(limit or []),
            reason=reason,
        )
    _show(begun, as_json=as_json)


@app.command()
def show(
    rollout: Annotated[str, typer.Argument(metavar="ROLLOUT", help="As `rollout list` shows it.")],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """What a rollout has seen so far, and how it ended.

    Example: acclimate rollout show shop/20261125-101500-1a2b3c
    """
    with connect(server) as client:
        found = client.rollout(rollout)
    _show(found, as_json=as_json)


@app.command()
def stop(
    rollout: Annotated[str, typer.Argument(metavar="ROLLOUT", help="As `rollout list` shows it.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")] = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """End a rollout; the alias stays where it is.

    Example: acclimate rollout stop shop/20261125-101500-1a2b3c
    """
    with connect(server) as client:
        ended = client.stop_rollout(rollout, reason=reason)
    _show(ended, as_json=as_json)


@app.command("list")
def list_(model: ModelArgument, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """A model's rollouts, newest first.

    Example: acclimate rollout list shop
    """
    with connect(server) as client:
        found = client.rollouts(model)
    if as_json:
        print_json({"rollouts": found})
        return
    print_table(
        ("ROLLOUT", "MODE", "CANDIDATE", "ALIAS", "STATE", "AGE"),
        (
            (
                short(one.name),
                one.mode.value,
                short(one.candidate),
                one.alias.rpartition("/")[2],
                one.state.value,
                ago(one.created_at),
            )
            for one in found
        ),
        empty="no rollouts; see `acclimate rollout start --help`",
        spare=("MODE", "AGE"),
    )


def _limits(given: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in LIMITS:
            raise usage(f"--limit {text!r} names none of {', '.join(LIMITS)}")
        try:
            found[name] = int(value) if name == "minimum" else float(value)
        except ValueError:
            raise usage(f"--limit {text!r} is not NAME=NUMBER") from None
    return found


def _show(rollout: Rollout, *, as_json: bool) -> None:
    if as_json:
        print_json(rollout)
        return
    counts = rollout.counts
    console.print(words(f"{rollout.name}: {rollout.state.value} {rollout.reason}".rstrip()))
    console.print(
        f"{rollout.mode.value} of {short(rollout.candidate)} beside {short(rollout.incumbent)} at "
        f"{percent(rollout.share)}: {counts['requests']} requests, {counts['errors']} failed, "
        f"{counts['images']} images"
    )
    if rollout.agreement is not None:
        console.print(
            f"answered alike: {percent(rollout.agreement)} of {counts['compared']} images"
        )
