"""Tokens: made, rotated with an overlap, revoked, and followed by every server.

A token is never deleted, so that the audit log's ids keep their meaning. Each change
takes the next revision, by which a server asks for what it has not seen.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.access import (
    AccessRole,
    Principal,
    Scope,
    Token,
    TokenDraft,
    digest_of,
    expiring,
    secret_text,
)
from acclimate_service.domain.errors import AlreadyExists, InvalidSpec, NotFound
from acclimate_service.domain.names import TokenName
from acclimate_service.store import audit, schema
from acclimate_service.store.engine import Database, Transaction, line
from acclimate_service.store.ids import new_secret, new_token_id
from acclimate_service.store.pages import Page, page_limit


@dataclass(frozen=True, kw_only=True)
class Minted:
    """A new token, and its secret, which is known here and nowhere else; empty if it has none."""

    token: Token
    secret: str = dataclasses.field(repr=False)


class Tokens:
    """The tokens of a store. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, draft: TokenDraft, *, by: str) -> Minted:
        """Make a token.

        Raises:
            AlreadyExists: a live token names this certificate.
            StoreUnavailable: the database is out of reach.
        """
        return self._database.write(_create, draft, by)

    def rotate(
        self, principal: str, *, overlap: dt.timedelta, lifetime: dt.timedelta | None, by: str
    ) -> Minted:
        """Make a principal's next token; the ones it has end after *overlap* at the latest.

        Without an overlap they are revoked.

        Raises:
            NotFound: the principal has no live token with a secret.
        """
        return self._database.write(_rotate, principal, overlap, lifetime, by)

    def revoke(self, name: TokenName) -> Token:
        """End a token now. Repeated, it changes nothing.

        Raises:
            NotFound: there is no such token.
        """
        return self._database.write(_revoke, name)

    def list(self, page_size: int = 0, page_token: str = "") -> Page[Token]:
        """The tokens, by principal."""
        return self._database.read(_page, page_size, page_token)

    def changed_since(self, revision: int) -> tuple[Sequence[Token], int]:
        """What changed after *revision* (0: everything), and the revision to go on from."""
        return self._database.follow(_changed_since, revision)


def _create(tx: Transaction, draft: TokenDraft, by: str) -> Minted:
    tx.serialize("tokens")
    if draft.certificate:
        for token in _live(tx, schema.tokens.c.certificate == draft.certificate):
            raise AlreadyExists(f"tokens/{token.id}")
    secret = "" if draft.certificate else secret_text(id_ := new_token_id(), new_secret())
    revision = _next_revision(tx)
    token = Token(
        id=id_ if secret else new_token_id(),
        number=revision,
        principal=draft.principal,
        certificate=draft.certificate,
        created_at=tx.now,
        created_by=line(by, 200),
        expires_at=None if draft.lifetime is None else tx.now + draft.lifetime,
        revoked_at=None,
        digest=digest_of(secret) if secret else "",
    )
    tx.run(sa.insert(schema.tokens).values(**_row_of(token), revision=revision))
    audit.note(tx, "CreateToken", f"tokens/{token.id}", who=by, detail=_told(token))
    return Minted(token=token, secret=secret)


def _rotate(
    tx: Transaction,
    principal: str,
    overlap: dt.timedelta,
    lifetime: dt.timedelta | None,
    by: str,
) -> Minted:
    tx.serialize("tokens")
    table = schema.tokens
    old = _live(tx, table.c.principal == principal, table.c.certificate == "")
    if not old:
        raise NotFound(principal, kind="live token of ", see="ListTokens")
    newest = max(old, key=lambda token: token.number)
    minted = _create(tx, TokenDraft(principal=newest.principal, lifetime=lifetime), by)
    for token in old:
        # An end at once is no date, which would move with a clock that was wrong just now.
        ended = expiring(token, tx.now + overlap) if overlap else _revoked(token, tx.now)
        _write(tx, ended)
    return minted


def _revoke(tx: Transaction, name: TokenName) -> Token:
    tx.serialize("tokens")
    row = tx.row(sa.select(schema.tokens).where(schema.tokens.c.id == name.token))
    if row is None:
        raise NotFound(str(name), see="ListTokens")
    token = _token_of(row)
    if token.revoked_at is not None:
        return token
    token = _revoked(token, tx.now)
    _write(tx, token)
    audit.note(tx, "RevokeToken", name, detail=f"of {token.principal.name}")
    return token


def _page(tx: Transaction, page_size: int, page_token: str) -> Page[Token]:
    table, limit = schema.tokens, page_limit(page_size)
    query = sa.select(table).order_by(table.c.principal, table.c.id)
    if page_token:
        principal, found, id_ = page_token.partition("/")
        if not found:
            raise InvalidSpec("page_token is not one that a list request returned")
        after = sa.and_(table.c.principal == principal, table.c.id > id_)
        query = query.where(sa.or_(table.c.principal > principal, after))
    rows = tx.rows(query.limit(limit + 1))
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(
        items=tuple(_token_of(row) for row in rows[:limit]),
        next_token="" if last is None else f"{last.principal}/{last.id}",
    )


def _changed_since(tx: Transaction, revision: int) -> tuple[Sequence[Token], int]:
    table = schema.tokens
    rows = tx.rows(sa.select(table).where(table.c.revision > revision).order_by(table.c.revision))
    return [_token_of(row) for row in rows], rows[-1].revision if rows else revision


def _live(tx: Transaction, *conditions: sa.ColumnElement[bool]) -> list[Token]:
    rows = tx.rows(sa.select(schema.tokens).where(*conditions))
    return [token for token in map(_token_of, rows) if token.live(tx.now)]


def _revoked(token: Token, at: dt.datetime) -> Token:
    return dataclasses.replace(token, revoked_at=at)


def _write(tx: Transaction, token: Token) -> None:
    values = _row_of(token) | {"revision": _next_revision(tx)}
    tx.run(sa.update(schema.tokens).where(schema.tokens.c.id == token.id).values(**values))


def _next_revision(tx: Transaction) -> int:
    # Under the lock that every change takes, so revisions come in the order of commits.
    newest: int = tx.scalar(sa.select(sa.func.coalesce(sa.func.max(schema.tokens.c.revision), 0)))
    return newest + 1


def _told(token: Token) -> str:
    """What a token gives, for the audit log."""
    who = token.principal
    reach = "" if who.unlimited else f" within {[*who.models.patterns, *who.domains.patterns]}"
    shown = f" by {token.certificate}" if token.certificate else ""
    return f"{who.name}: {', '.join(sorted(who.roles))}{reach}{shown}"


def _row_of(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "number": token.number,
        "principal": token.principal.name,
        "roles": sorted(token.principal.roles),
        "models": list(token.principal.models.patterns),
        "domains": list(token.principal.domains.patterns),
        "certificate": token.certificate,
        "digest": token.digest,
        "created_at": token.created_at,
        "created_by": token.created_by,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
    }


def _token_of(row: Any) -> Token:
    return Token(
        id=row.id,
        # 0 is the column's default: made by an Acclimate that does not count them.
        number=row.number or row.revision,
        principal=Principal(
            name=row.principal,
            roles=frozenset(AccessRole(role) for role in row.roles),
            models=Scope(tuple(row.models)),
            domains=Scope(tuple(row.domains)),
        ),
        certificate=row.certificate,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        digest=row.digest,
    )
