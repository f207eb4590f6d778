"""``acclimate health``: does the service answer?"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from acclimate._names import model_name
from acclimate.cli.options import DEFAULT_SERVER, AsJson, Server, connect
from acclimate.cli.output import console, print_json
from acclimate.cli.refusals import Exit, complain
from acclimate.errors import NotFound


def health(
    part: Annotated[
        str,
        typer.Argument(
            metavar="PART", help="A model, or a gRPC service, to ask about; unset: the whole."
        ),
    ] = "",
    server: Server = DEFAULT_SERVER,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Ask the service whether it can answer; exit code 0 if it says so, 1 if not, 5 if nobody does.

    Example: acclimate health --server 127.0.0.1:50051
    """
    # A gRPC service's name has dots; what has none, and no path, is a model's id.
    asked = model_name(part) if part and not re.search(r"[./]", part) else part
    with connect(server, timeout=timeout, retries=0) as client:
        try:
            found = client.health(asked)
        except NotFound:
            complain("NOT_FOUND", f"no model or gRPC service {part!r} is served here")
            raise typer.Exit(Exit.REFUSED) from None
    if as_json:
        print_json(found)
    else:
        console.print(found.status)
    if not found.serving:
        raise typer.Exit(Exit.REFUSED)
