"""Options that many commands share, and the connection they describe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acclimate.cli.refusals import usage

if TYPE_CHECKING:
    from acclimate.client import Client
    from acclimate.resources import Json

DEFAULT_SERVER = "127.0.0.1:50051"
PATIENCE = 120.0  # seconds without progress after which uploads and watches give up

Server = Annotated[
    str,
    typer.Option(
        "--server", "-s", envvar="ACCLIMATE_SERVER", metavar="HOST:PORT", help="Where it listens."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
RequestId = Annotated[
    str,
    typer.Option(
        help="A name of your own for this request: a script that is run again with it gets what "
        "the first run made."
    ),
]


def connect(server: str, *, timeout: float = 30.0, retries: int = 5) -> Client:
    """A client for *server*.

    Secrets come from the environment, since a command line is for all to see:
    ``ACCLIMATE_TOKEN``, and for TLS ``ACCLIMATE_TLS_CA`` with, for mTLS,
    ``ACCLIMATE_TLS_CERTIFICATE`` and ``ACCLIMATE_TLS_KEY``. ``ACCLIMATE_TLS_NAME`` is the
    name in the server's certificate where it is not the one that is called.
    """
    # What is refused is one line on stderr; gRPC's own log would add some of its source.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from acclimate import TLS, Client

    def path(name: str) -> Path | None:
        return Path(os.environ[name]) if os.environ.get(name) else None

    ca, certificate = path("ACCLIMATE_TLS_CA"), path("ACCLIMATE_TLS_CERTIFICATE")
    name = os.environ.get("ACCLIMATE_TLS_NAME", "")
    tls = TLS(ca=ca, certificate=certificate, key=path("ACCLIMATE_TLS_KEY"), name=name)
    try:
        return Client(
            server,
            timeout=timeout,
            patience=PATIENCE,
            retries=retries,
            token=os.environ.get("ACCLIMATE_TOKEN") or None,
            tls=tls if ca or certificate else None,
        )
    except ValueError as error:
        told = str(error).replace("pass tls=TLS(...)", "set ACCLIMATE_TLS_CA")
        raise usage(told) from None


def belongs_to(context: typer.Context) -> bool:
    """Whether a group's own options are for the command that follows it, which is then not us.

    Raises:
        typer.Exit: some were given. They would be dropped without a word, and ``jobs --server
            A cancel 5f3a`` would cancel a job of another server.
    """
    command = context.invoked_subcommand
    if command is None:
        return False
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source is not None and source.name == "COMMANDLINE":
            raise usage(f"write {param.opts[0]} after `{command}`: before it, it is not read")
    return True


def settings_of(given: list[str], *, option: str) -> dict[str, Json]:
    """``["source_margin=0.02"]`` → ``{"source_margin": 0.02}``; what is no JSON is a string."""
    found: dict[str, Json] = {}
    for setting in given:
        name, equals, text = setting.partition("=")
        if not equals:
            raise usage(f"{option} {setting!r} is not of the form field=value")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
    return found
