"""``acclimate up``: the whole service on one machine."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from acclimate.cli.options import AsJson
from acclimate.cli.output import console, print_json, words
from acclimate.cli.processes import (
    PORT_FILE,
    BlobsAt,
    DatabaseUrl,
    Insecure,
    environment,
    require_both,
)
from acclimate.cli.refusals import Exit, complain, usage
from acclimate.cli.supervisor import TEND_SECONDS, Supervisor, free_port, is_taken

START_FAILURES = 3  # of the server, before it was ever ready: then it will not be


class _Asked:
    """How often we were asked to end."""

    def __init__(self) -> None:
        self.times = 0

        def took(*_: object) -> None:
            self.times += 1

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, took)


def up(
    home: Annotated[
        Path, typer.Option(envvar="ACCLIMATE_HOME", help="The folder of everything stored.")
    ] = Path("acclimate-data"),
    host: Annotated[
        str, typer.Option(envvar="ACCLIMATE_HOST", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(envvar="ACCLIMATE_PORT", min=0, max=65535, help="0: any free one, printed."),
    ] = 50051,
    device: Annotated[
        str, typer.Option(envvar="ACCLIMATE_DEVICE", help="Where to train: auto, cpu, cuda.")
    ] = "auto",
    provider: Annotated[
        str,
        typer.Option(envvar="ACCLIMATE_PROVIDER", help="Where to predict: cpu, cuda, tensorrt."),
    ] = "cpu",
    database_url: DatabaseUrl = None,
    blobs: BlobsAt = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole service on this machine: one server, one worker, one folder.

    Both write their logs to stderr. What dies is started again, unless it says that its
    settings cannot be met; SIGTERM or Ctrl-C ends both in order, a second one at once.
    Every further setting is an environment variable ACCLIMATE_<NAME>, see docs/settings.md.

    Example: acclimate up --home ./acclimate-data
    """
    require_both(extra="train,cpu", what="`acclimate up`")
    port = port or free_port(host)
    if is_taken(host, port):
        raise usage(f"something listens on {host}:{port} already; choose another --port")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    env = environment(
        home=home.absolute(),
        host=host,
        port=port,
        device=device,
        provider=provider,
        database_url=database_url,
        blobs=blobs,
        insecure=insecure or None,
    )
    # The server writes it once it is ready. Its health would say as much, but not to us
    # where it asks for a client's certificate.
    announced = home / PORT_FILE
    announced.unlink(missing_ok=True)
    asked = _Asked()
    supervisor = Supervisor(env, sys.stderr)
    ready = False
    while not asked.times:
        supervisor.tend()
        if supervisor.refused:
            _give_up(
                supervisor,
                f"{supervisor.refused} cannot run as it is set up; its log above says why",
                Exit.USAGE,
            )
        if not ready:
            ready = announced.is_file()
            if ready:
                _announce(supervisor, target, home, as_json=as_json)
            elif supervisor.serve.failures >= START_FAILURES:
                _give_up(
                    supervisor,
                    "the server does not start; its last words are above",
                    Exit.REFUSED,
                )
        time.sleep(TEND_SECONDS)
    supervisor.stop(hurry=lambda: asked.times > 1)


def _give_up(supervisor: Supervisor, why: str, code: Exit) -> NoReturn:
    supervisor.stop()
    complain("NOT_STARTED", why)
    raise typer.Exit(code)


def _announce(supervisor: Supervisor, target: str, home: Path, *, as_json: bool) -> None:
    if as_json:
        pids = {"serve": supervisor.serve.pid, "work": supervisor.work.pid}
        print_json({"listening": target, "home": home.absolute(), "pids": pids}, indent=None)
        sys.stdout.flush()
    else:
        console.print(
            f"Listening on [bold]{target}[/bold], everything is kept in",
            words(f"{home}. Ctrl-C ends it."),
        )
