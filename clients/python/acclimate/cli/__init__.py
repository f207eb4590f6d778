"""The command line: ``acclimate``, one module for each noun.

What a command needs is imported when it runs: ``acclimate --help`` waits for
neither gRPC nor anything of an extra.
"""

from __future__ import annotations

from typing import Annotated

import typer

from acclimate.cli import (
    access,
    delete,
    demo,
    doctor,
    domains,
    drift,
    guard,
    health,
    jobs,
    models,
    predict,
    processes,
    rollout,
    stats,
    store,
    up,
)
from acclimate.cli.refusals import Refusals

app = typer.Typer(
    name="acclimate",
    cls=Refusals,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done · 1 refused · 2 wrong usage · 3 the guard did not accept · "
    "4 the job failed or was cancelled · 5 the service is out of reach. See docs/cli.md.",
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("acclimate"))
        raise typer.Exit


@app.callback()
def acclimate(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version."),
    ] = False,
) -> None:
    """Adapt a served image classifier to a new domain without letting it forget the old one."""


_RUNNING = "Run the service"
_ACCESS = "Who may do what"
_MODELS = "Models and what is served"
_IMAGES = "Images and domains"
_JOBS = "Adaptation"

app.command(rich_help_panel=_RUNNING)(up.up)
app.command(rich_help_panel=_RUNNING)(processes.serve)
app.command(rich_help_panel=_RUNNING)(processes.work)
app.command(rich_help_panel=_RUNNING)(health.health)
app.command(rich_help_panel=_RUNNING)(doctor.doctor)
app.command(rich_help_panel=_RUNNING, **store.PASSED_ON)(store.store)
app.command(rich_help_panel=_RUNNING)(demo.demo)

app.command(rich_help_panel=_MODELS)(models.register)
app.command(rich_help_panel=_MODELS)(models.models)
app.command(rich_help_panel=_MODELS)(models.versions)
app.command(rich_help_panel=_MODELS)(models.aliases)
app.command(rich_help_panel=_MODELS)(models.promote)
app.command(rich_help_panel=_MODELS)(models.rollback)
app.command(rich_help_panel=_MODELS)(models.export)
app.command(rich_help_panel=_MODELS)(predict.predict)
app.command(rich_help_panel=_MODELS)(drift.drift)
app.add_typer(rollout.app, name="rollout", rich_help_panel=_MODELS)
app.command(rich_help_panel=_MODELS)(stats.stats)
app.command(rich_help_panel=_MODELS)(delete.delete)

app.add_typer(domains.app, name="domains", rich_help_panel=_IMAGES)
app.command(rich_help_panel=_IMAGES)(domains.upload)

app.command(rich_help_panel=_JOBS)(jobs.adapt)
app.add_typer(jobs.app, name="jobs", rich_help_panel=_JOBS)
app.command(rich_help_panel=_JOBS)(jobs.report)
app.add_typer(guard.app, name="guard", rich_help_panel=_JOBS)

app.add_typer(access.app, name="tokens", rich_help_panel=_ACCESS)
app.command(rich_help_panel=_ACCESS)(access.audit)


def main() -> None:
    """The console script."""
    app()
