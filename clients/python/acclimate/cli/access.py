"""Tokens, and the audit log."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from acclimate.cli.extras import require
from acclimate.cli.options import DEFAULT_SERVER, AsJson, Server, connect
from acclimate.cli.output import console, plain, print_json, print_table
from acclimate.cli.processes import SERVE_NEEDS, DatabaseUrl, environment
from acclimate.cli.refusals import Exit, complain, usage
from acclimate.tokens import AccessRole, Token

app = typer.Typer(help="Who may do what: make, list, rotate and end tokens.", no_args_is_help=True)

PrincipalArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Who the token stands for; a lower-case slug.")
]
Lifetime = Annotated[
    str | None, typer.Option(help="Such as 12h or 90d; unset: until it is revoked.")
]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@app.command()
def create(
    name: PrincipalArgument,
    role: Annotated[list[AccessRole], typer.Option(help="May be given several times.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Limit to a model, or a prefix: 'shop-*'.")
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="Limit to a domain, or a prefix: 'shop-*'.")
    ] = None,
    lifetime: Lifetime = None,
    certificate: Annotated[
        str,
        typer.Option(help="In place of a secret: CN:…, DNS:… or URI:… of a client certificate."),
    ] = "",
    local: Annotated[
        bool, typer.Option("--local", help="Write to the store itself: for the first token.")
    ] = False,
    home: Annotated[
        Path, typer.Option(envvar="ACCLIMATE_HOME", help="With --local: the store's folder.")
    ] = Path("acclimate-data"),
    database_url: DatabaseUrl = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Make a token. Its secret is printed once, and kept nowhere.

    With --model alone no domain is in reach, and the other way round.

    Example: acclimate tokens create camera-7 --role upload --domain 'night-*' --lifetime 90d
    """
    span = None if lifetime is None else duration(lifetime)
    if local:
        asked = {
            "principal": name,
            "roles": list(role),
            "models": model or [],
            "domains": domain or [],
            "certificate": certificate,
            "lifetime": None if span is None else span.total_seconds(),
        }
        made = _create_locally(asked, home=home.absolute(), database_url=database_url)
        _show(made["token"], made["secret"], as_json=as_json)
        return
    with connect(server) as client:
        token, secret = client.create_token(
            name,
            role,
            models=model or (),
            domains=domain or (),
            certificate=certificate,
            lifetime=span,
        )
    _show(plain(token), secret, as_json=as_json)


@app.command("list")
def list_tokens(
    server: Server = DEFAULT_SERVER,
    every: Annotated[bool, typer.Option("--all", help="Those that have ended too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the tokens.

    Example: acclimate tokens list
    """
    now = dt.datetime.now(dt.UTC)
    with connect(server) as client:
        tokens = [token for token in client.tokens() if every or _ended(token, now) is None]
    if as_json:
        print_json({"tokens": tokens})
        return
    print_table(
        ("TOKEN", "PRINCIPAL", "ROLES", "MODELS", "DOMAINS", "SHOWN BY", "ENDS"),
        (
            (
                token.name.removeprefix("tokens/"),
                token.principal,
                ",".join(token.roles),
                *_limits(token),
                token.certificate or "secret",
                _ended(token, now) or (token.expires_at and f"{token.expires_at:%Y-%m-%d %H:%M}"),
            )
            for token in tokens
        ),
        empty="No token yet; make one with `acclimate tokens create`.",
        spare=("SHOWN BY",),
    )


@app.command()
def rotate(
    name: PrincipalArgument,
    overlap: Annotated[str, typer.Option(help="For how long the old ones stay good.")] = "1h",
    lifetime: Lifetime = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Make a principal's next token; those it has end after the overlap.

    Example: acclimate tokens rotate camera-7 --overlap 1d
    """
    with connect(server) as client:
        token, secret = client.rotate_token(
            name,
            overlap=duration(overlap),
            lifetime=None if lifetime is None else duration(lifetime),
        )
    _show(plain(token), secret, as_json=as_json)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="Its id; see `tokens list`.")],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """End a token, on every server within seconds.

    Example: acclimate tokens revoke 3kq7y2m5d4xw6p2n
    """
    with connect(server) as client:
        ended = client.revoke_token(token)
    if as_json:
        print_json({"token": ended})
    else:
        console.print(f"{ended.name} of {ended.principal} is good for nothing any more.")


def audit(
    who: Annotated[str, typer.Option(help="A principal, or jobs/ID.")] = "",
    action: Annotated[str, typer.Option(help="An RPC, such as SetAlias.")] = "",
    subject: Annotated[str, typer.Option(help="A full name, and what lies under it.")] = "",
    since: Annotated[str, typer.Option(help="How long back: 30m, 12h, 7d.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many lines.")] = 50,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Show who changed what, newest first; callers that were refused too.

    Example: acclimate audit --subject models/shop --since 7d
    """
    start = dt.datetime.now(dt.UTC) - duration(since) if since else None
    with connect(server) as client:
        found = client.audit(who=who, action=action, subject=subject, since=start)
        entries = list(islice(found, limit))
    if as_json:
        print_json({"entries": entries})
        return
    for entry in entries:  # whole lines, since a table would cut them where it matters
        subject = f" {entry.subject}" if entry.subject else ""
        why = f" ({entry.why})" if entry.why else ""
        known = not entry.origin or entry.origin in entry.who  # who shows no token is its address
        origin = "" if known else f" from {entry.origin}"
        typer.echo(
            f"{entry.time:%Y-%m-%d %H:%M:%SZ}  {entry.who}: {entry.action}{subject}{why}{origin}"
        )


def duration(text: str) -> dt.timedelta:
    """``90d`` as a length of time.

    Raises:
        typer.Exit: it is none.
    """
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise usage(f"{text!r} is no length of time; write 30m, 12h or 90d")
    return dt.timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def _create_locally(asked: dict[str, Any], **settings: object) -> dict[str, Any]:
    """Have a process of the service write to the store; the secret comes through a pipe."""
    require(*SERVE_NEEDS, extra="serve,cpu", what="`acclimate tokens create --local`")
    done = subprocess.run(
        [sys.executable, "-m", "acclimate_service.tokens"],
        input=json.dumps(asked),
        env=environment(**settings),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    if "token" not in answer:
        complain(answer.get("reason", "NOT_MADE"), answer.get("message", "see above"))
        raise typer.Exit(Exit.REFUSED)
    return answer


def _show(token: dict[str, Any], secret: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"token": token, "secret": secret})
        return
    console.print(f"[dim]{token['name']}, for {token['principal']}; it counts within a second.[/]")
    if secret:
        console.print("[dim]Keep this secret, nobody can tell it again:[/]")
        typer.echo(secret)


def _limits(token: Token) -> tuple[str, str]:
    if not (token.models or token.domains):
        return "all", "all"
    return ",".join(token.models) or "none", ",".join(token.domains) or "none"


def _ended(token: Token, now: dt.datetime) -> str | None:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= now else None
