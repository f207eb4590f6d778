"""Whether what comes in still looks like what the model knows."""

from __future__ import annotations

from typing import Annotated

import typer

from acclimate.cli.options import DEFAULT_SERVER, AsJson, Server, connect
from acclimate.cli.output import console, print_json, print_table, short, words


def drift(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="shop (its production), shop@canary or shop/3.")
    ],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """How far live images lie from the domains that a model knows; whether to adapt again.

    Example: acclimate drift shop
    """
    with connect(server) as client:
        found = client.drift(model)
    if as_json:
        print_json(found)
        return
    of = f", {found.images} live images" if found.domains else ""  # else the message counts them
    console.print(words(f"{short(found.version)}{of}: {found.message}"))
    if found.domains:
        print_table(
            ("DOMAIN", "DISTANCE", "P", ""),
            (
                (
                    short(domain),
                    f"{distance:.3f}",
                    "<0.001" if p < 0.001 else f"{p:.3f}",
                    "unlike" if unlike else "",
                )
                for domain, distance, p, unlike in found.domains
            ),
            empty="",
        )
