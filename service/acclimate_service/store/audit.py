"""Who did what, when, why and from where: appended to, never changed."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa

from acclimate_service.store import schema
from acclimate_service.store.engine import Database, Transaction, line
from acclimate_service.store.pages import Page, page_limit, page_number


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One change. ``action`` is an RPC or a command, ``subject`` a resource name."""

    number: int
    at: dt.datetime
    who: str
    action: str
    subject: str
    why: str
    origin: str


class Audit:
    """The audit log of a store. The database itself refuses to change or delete a line."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self, *, who: str, action: str, subject: str, why: str = "", origin: str = ""
    ) -> None:
        """Append a line. *origin* is from where: a peer's address, or ``cli``.

        Raises:
            StoreUnavailable: the database is out of reach.
        """
        self._database.write(
            record, who=who, action=action, subject=subject, why=why, origin=origin
        )

    def list(
        self, *, subject: str = "", page_size: int = 0, page_token: str = ""
    ) -> Page[AuditEntry]:
        """The lines, newest first; all, or those on one *subject*."""
        return self._database.read(_page, subject, page_size, page_token)


def record(tx: Transaction, *, who: str, action: str, subject: str, why: str, origin: str) -> None:
    """Append a line, in a transaction with what it tells of."""
    tx.run(
        sa.insert(schema.audit).values(
            at=tx.now,
            who=line(who, 200),
            action=line(action, 200),
            subject=line(subject, 300),
            why=line(why),
            origin=line(origin, 200),
        )
    )


def _page(tx: Transaction, subject: str, page_size: int, token: str) -> Page[AuditEntry]:
    table, limit, before = schema.audit, page_limit(page_size), page_number(token)
    query = sa.select(table)
    if subject:
        query = query.where(table.c.subject == subject)
    if before is not None:
        query = query.where(table.c.number < before)
    rows = tx.rows(query.order_by(table.c.number.desc()).limit(limit + 1))
    return Page(
        items=tuple(AuditEntry(**row._asdict()) for row in rows[:limit]),
        next_token=str(rows[limit - 1].number) if len(rows) > limit else "",
    )
