"""``acclimate delete``: taking back what nothing rests on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from acclimate import _names
from acclimate.cli.options import DEFAULT_SERVER, AsJson, Server, connect
from acclimate.cli.output import console, print_json, words
from acclimate.cli.refusals import usage

if TYPE_CHECKING:
    from acclimate.client import Client

_ID = "[^/@]+"


def delete(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="shop/3, shop@canary, models/shop, domains/night, or an upload's "
            "domains/night/batches/ID.",
        ),
    ],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")] = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Delete what nothing rests on: a version, an alias, a model, a domain, an upload.

    A version goes if no alias, job or later version needs it; a model if it never had a version;
    a domain if it is no model's source and no job was judged with it; an upload if no job has
    learnt from it. What is refused says what is in the way.

    Example: acclimate delete models/shpo --reason "a typo"
    """
    with connect(server) as client:
        full, call = _meant(client, name)
        call(reason)
    if as_json:
        print_json({"deleted": full})
    else:
        console.print(words(f"{full} is deleted"))


def _meant(client: Client, name: str) -> tuple[str, Callable[[str], None]]:
    """The full name of what is to be deleted, and the call that does it for a reason."""
    if re.fullmatch(f"domains/{_ID}/batches/{_ID}", name):
        return name, lambda why: client.delete_batch(name, reason=why)
    if re.fullmatch(f"domains/{_ID}", name):
        return name, lambda why: client.delete_domain(name, reason=why)
    if re.fullmatch(f"models/{_ID}", name):
        return name, lambda why: client.delete_model(name, reason=why)
    if found := re.fullmatch(f"({_ID})@({_ID})|models/({_ID})/aliases/({_ID})", name):
        model, alias = found[1] or found[3], found[2] or found[4]
        full = _names.alias_name(model, alias)
        return full, lambda why: client.delete_alias(model, alias, reason=why)
    if re.fullmatch(f"{_ID}/{_ID}|models/{_ID}/versions/{_ID}", name):
        return _names.version_name(name), lambda why: client.delete_version(name, reason=why)
    raise usage(
        f"{name!r} could be many things; write shop/3 (a version), shop@canary (an alias), "
        f"models/{name} or domains/{name}"
    )
