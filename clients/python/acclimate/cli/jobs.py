"""Adaptation jobs: start, follow, list, cancel, force; and their reports."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from acclimate.cli import progress
from acclimate.cli.options import (
    DEFAULT_SERVER,
    AsJson,
    RequestId,
    Server,
    belongs_to,
    connect,
    settings_of,
)
from acclimate.cli.output import ago, console, print_json, print_table, short, words
from acclimate.cli.refusals import Exit, complain, exit_of_job, usage
from acclimate.resources import JobState

if TYPE_CHECKING:
    from acclimate.job import Job

app = typer.Typer(invoke_without_command=True)

SHOWN = 50  # jobs in a table, unless more are asked for

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


def adapt(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="The domain to learn.")],
    strategy: Annotated[
        str, typer.Option(help="auto measures and chooses; others: docs/strategies.md.")
    ] = "auto",
    base: Annotated[
        str, typer.Option(help="The version or alias to adapt from; empty: production.")
    ] = "",
    promote_to: Annotated[
        str, typer.Option(help="The alias to move when, and only when, the guard accepts.")
    ] = "",
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Also make int8 (for CPUs) or fp16 (for GPUs); the guard judges each."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs at most.")] = None,
    budget_seconds: Annotated[float | None, typer.Option(help="Seconds at most.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    replay_per_class: Annotated[
        int | None, typer.Option(help="Source images a class shown again, against forgetting.")
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Augmented views of every training image.")
    ] = None,
    extend_labels: Annotated[
        bool, typer.Option("--extend-labels", help="Let new labels grow the head.")
    ] = False,
    guard_preset: Annotated[
        str,
        typer.Option("--guard", help="balanced, strict or exploratory; unset: the model's policy."),
    ] = "",
    guard_set: Annotated[
        list[str] | None,
        typer.Option(help="Override one limit of the guard: source_margin=0.02; needs reason=…"),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    request_id: RequestId = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Start a job that adapts a model to a domain; for a bare backbone, its bootstrap.

    With --watch the exit code says how it ended.

    Example: acclimate adapt shop night --promote-to production --watch
    """
    with connect(server) as client:
        job = client.adapt(
            model,
            domain,
            strategy=strategy,
            epochs=epochs,
            budget_seconds=budget_seconds,
            batch_size=batch_size,
            seed=seed,
            replay_per_class=replay_per_class,
            views=views,
            extend_labels=extend_labels,
            base=base,
            promote_to=promote_to,
            variants=variant or (),
            guard_preset=guard_preset,
            guard=settings_of(guard_set or [], option="--guard-set"),
            request_id=request_id or None,
        )
        if watch:
            _follow(job, as_json=as_json)
        elif as_json:
            print_json(job.snapshot)
        else:
            console.print(f"{job.name}; follow it with `acclimate jobs watch {short(job.name)}`")


def _follow(job: Job, *, as_json: bool) -> None:
    """Show *job*'s story to its end, and end with its exit code."""
    from acclimate.errors import Unavailable

    try:
        if as_json:
            for event in progress.watched(job):
                print_json({"event": event}, indent=None)
            print_json({"job": job.refresh().snapshot}, indent=None)
        else:
            progress.show(job)
    except Unavailable:
        complain("RESUME", f"{job.name} goes on; see `acclimate jobs watch {short(job.name)}`")
        raise
    raise typer.Exit(exit_of_job(job.state))


@app.callback()
def jobs(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Only those of this model.")] = "",
    domain: Annotated[str, typer.Option(help="Only those that learn this domain.")] = "",
    state: Annotated[
        JobState | None, typer.Option(case_sensitive=False, help="Only those in this state.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="So many of the newest. Unset: 50, with --json all."),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """List the jobs, newest first. Its commands follow, show, cancel and force one.

    Example: acclimate jobs --domain night --state running
    """
    if belongs_to(context):
        return
    with connect(server) as client:
        most = limit if as_json or limit else SHOWN
        found = client.jobs(model=model, domain=domain, state=state, limit=most and most + 1)
        if not found:  # an empty list would hide a mistyped name
            if model:
                client.model(model)
            if domain:
                client.domain(domain)
    more, found = most is not None and len(found) > most, found[:most]
    if as_json:
        print_json({"jobs": [job.snapshot for job in found]})
        return
    print_table(
        ("JOB", "KIND", "MODEL", "DOMAIN", "STATE", "PHASE", "VERSION", "AGE"),
        (
            (
                short(job.name),
                job.kind.value,
                short(job.snapshot.model),
                short(job.snapshot.target_domain or job.snapshot.source_domain),
                Text.from_markup(progress.state_text(job.state)),
                job.phase.value if job.phase and not job.state.ended else "",
                short(job.version),
                ago(job.snapshot.created_at),
            )
            for job in found
        ),
        empty="no jobs; see `acclimate adapt --help`",
        spare=("KIND", "PHASE"),
    )
    if more:
        console.print(f"[dim]and older ones; --limit {2 * len(found)} lists more[/dim]")


@app.command()
def get(job: JobArgument, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Show where a job stands, and how it ended.

    Example: acclimate jobs get 5f3a
    """
    with connect(server) as client:
        found = client.job(job)
    if as_json:
        print_json(found.snapshot)
    else:
        progress.show_end(found)


@app.command()
def watch(job: JobArgument, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Follow a job to its end; the exit code says how it ended.

    Example: acclimate jobs watch 5f3a
    """
    with connect(server) as client:
        _follow(client.job(job), as_json=as_json)


@app.command()
def cancel(
    job: JobArgument,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")] = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Ask for a job's end as CANCELLED.

    Example: acclimate jobs cancel 5f3a
    """
    with connect(server) as client:
        found = client.job(job).cancel(reason=reason)
    if as_json:
        print_json(found.snapshot)
    else:
        asked = "" if found.state.ended else ": asked to stop"
        console.print(f"{found.name} {progress.state_text(found.state)}{asked}")


@app.command()
def force(
    job: JobArgument,
    reason: Annotated[str, typer.Option(help="Why the guard is overruled; kept for ever.")],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Make a version of what the guard did not accept. Who and why is recorded.

    Example: acclimate jobs force 5f3a --reason "the lost class is discontinued"
    """
    with connect(server) as client:
        version = client.force(job, reason=reason)
    if as_json:
        print_json(version)
    else:
        console.print(f"{version.name} ({version.origin.value})")


def report(
    job: JobArgument,
    out: Annotated[Path | None, typer.Option(help="Where to write; unset: JOB.html here.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    form: Annotated[
        Literal["html", "json"], typer.Option("--format", help="A page, or JSON.")
    ] = "html",
    server: Server = DEFAULT_SERVER,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, and write no file.")
    ] = False,
) -> None:
    """Fetch a job's report: one self-contained page that opens offline.

    Example: acclimate report 5f3a --open
    """
    if as_json and (out is not None or show):
        raise usage("--json prints; it goes with neither --out nor --open")
    with connect(server) as client:
        content = client.job(job).report("json" if as_json else form)
    if as_json:
        print_json(json.loads(content))
        return
    path = (out or Path(f"{short(job)}.{form}")).absolute()
    path.write_bytes(content)
    console.print(words(path))
    if show and not webbrowser.open(path.as_uri()):
        typer.echo("acclimate: NO_BROWSER: found no browser to open it in", err=True)
        raise typer.Exit(Exit.REFUSED)
