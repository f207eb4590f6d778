"""``acclimate health``: does the service answer?"""

from __future__ import annotations

from typing import Annotated

import typer

from acclimate.cli.options import DEFAULT_SERVER, AsJson, Server, connect
from acclimate.cli.output import console, print_json
from acclimate.cli.refusals import Exit


def health(
    part: Annotated[
        str, typer.Argument(help="A gRPC service or model to ask about; empty for the whole.")
    ] = "",
    server: Server = DEFAULT_SERVER,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Ask the service whether it can answer; exit code 0 if it says so, 1 if not, 5 if nobody does.

    Example: acclimate health --server 127.0.0.1:50051
    """
    with connect(server, timeout=timeout, retries=0) as client:
        found = client.health(part)
    if as_json:
        print_json(found)
    else:
        console.print(found.status)
    if not found.serving:
        raise typer.Exit(Exit.REFUSED)
