"""A token made beside the store, by whoever may write to it: the first one.

Reads one JSON object from standard input and answers with one on standard output, so
that no secret stands on a command line. ``acclimate tokens create --local`` calls it.
"""

from __future__ import annotations

import datetime as dt
import getpass
import json
import sys
from typing import Any

import pydantic

from acclimate_service.config import Settings, made
from acclimate_service.domain.access import TokenDraft, principal_of, subject_of
from acclimate_service.domain.errors import ServiceError
from acclimate_service.store import Actor, acting_as, open_store


class Asked(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What is read. ``lifetime`` is in seconds."""

    principal: str
    roles: list[str]
    models: list[str]
    domains: list[str]
    certificate: str
    lifetime: float | None


def create(settings: Settings, asked: Asked) -> dict[str, Any]:
    """Make the token; what is answered.

    Raises:
        ServiceError: the store is out of reach, or what was asked for makes no sense.
    """
    draft = TokenDraft(
        principal=principal_of(
            asked.principal, roles=asked.roles, models=asked.models, domains=asked.domains
        ),
        certificate=subject_of(asked.certificate) if asked.certificate else "",
        lifetime=None if asked.lifetime is None else dt.timedelta(seconds=asked.lifetime),
    )
    who = f"{getpass.getuser()}, beside the store"
    store = open_store(settings.store_url(), settings.blob_root())
    try:
        with acting_as(Actor(who=who, origin="cli", action="CreateToken")):
            minted = store.tokens.create(draft, by=who)
    finally:
        store.close()
    token, principal = minted.token, minted.token.principal
    limited = not principal.unlimited
    return {
        "token": {
            "name": f"tokens/{token.id}",
            "principal": principal.name,
            "roles": sorted(principal.roles),
            "models": principal.models.patterns if limited else (),
            "domains": principal.domains.patterns if limited else (),
            "certificate": token.certificate,
            "created_at": token.created_at.isoformat(),
            "created_by": token.created_by,
            "expires_at": token.expires_at and token.expires_at.isoformat(),
            "revoked_at": None,
        },
        "secret": minted.secret,
    }


def main() -> None:
    """Answer on standard output; exit with 1 if nothing was made."""
    try:
        answer = create(made(Settings), Asked.model_validate_json(sys.stdin.read()))
    except ServiceError as error:
        answer = {"reason": error.reason, "message": str(error)}
    json.dump(answer, sys.stdout)
    sys.exit(0 if "token" in answer else 1)


if __name__ == "__main__":
    main()
