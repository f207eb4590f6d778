"""Who did what, when, why and from where: appended to, never changed.

A change and its line are one transaction: whatever changes something calls ``note``.
For whom it acts is said once, when a call begins (``act_as``), not handed through every
function; the worker, for which nobody says it, is named by what it writes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from contextvars import ContextVar
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


@dataclass(kw_only=True)
class Actor:
    """For whom the changes of a call are made. Not frozen: it remembers that it was noted.

    ``action`` names the call; empty, each change says for itself what it is.
    """

    who: str
    origin: str
    action: str = ""
    why: str = ""
    noted: bool = False


@dataclass(frozen=True, kw_only=True)
class AuditFilter:
    """Which lines to read; what is empty or None does not narrow.

    ``subject`` also finds what lies under it: ``models/shop`` its versions and aliases.
    """

    who: str = ""
    action: str = ""
    subject: str = ""
    since: dt.datetime | None = None
    until: dt.datetime | None = None


ERASED = "EraseImage"  # the action by which an image went
GIVEN_BACK = "GiveImageBack"  # the action by which a withheld one was kept after all

_ACTOR: ContextVar[Actor | None] = ContextVar("actor", default=None)


def act_as(actor: Actor) -> None:
    """Note what follows in this context (of a call, of a command) as *actor*'s."""
    _ACTOR.set(actor)


@contextlib.contextmanager
def acting_as(actor: Actor) -> Iterator[None]:
    """Note what is changed within the block as *actor*'s."""
    before = _ACTOR.set(actor)
    try:
        yield
    finally:
        _ACTOR.reset(before)


def note(
    tx: Transaction,
    action: str,
    subject: object,
    *,
    detail: str = "",
    who: str = "",
    why: str = "",
) -> None:
    """Append a line, in the transaction of the change itself.

    Args:
        tx: The transaction.
        action: What was done, unless the actor's call says it.
        subject: The resource name of what was changed.
        detail: What else is worth knowing; stands before the reason.
        who: Who did it, where nobody acts through a call.
        why: The reason, where the actor gave none.
    """
    actor = _ACTOR.get() or Actor(who=who or "acclimate", origin="")
    given = actor.why or ("" if why == actor.action else why)
    record(
        tx,
        who=actor.who,
        action=actor.action or action,
        subject=str(subject),
        why="; ".join(part for part in (detail, given) if part),
        origin=actor.origin,
    )
    actor.noted = True


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
        self,
        wanted: AuditFilter = AuditFilter(),
        *,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[AuditEntry]:
        """The lines that are *wanted*, newest first."""
        return self._database.read(_page, wanted, page_size, page_token)


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


def image(content: str) -> str:
    """The subject of lines about one image, by the digest of its pixels."""
    return f"content/{content}"


def _page(tx: Transaction, wanted: AuditFilter, page_size: int, token: str) -> Page[AuditEntry]:
    table, limit, before = schema.audit, page_limit(page_size), page_number(token)
    query = sa.select(table)
    if wanted.who:
        query = query.where(table.c.who == wanted.who)
    if wanted.action:
        query = query.where(table.c.action == wanted.action)
    if wanted.subject:
        under = table.c.subject.startswith(wanted.subject + "/", autoescape=True)
        query = query.where(sa.or_(table.c.subject == wanted.subject, under))
    if wanted.since is not None:
        query = query.where(table.c.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(table.c.at < wanted.until)
    if before is not None:
        query = query.where(table.c.number < before)
    rows = tx.rows(query.order_by(table.c.number.desc()).limit(limit + 1))
    return Page(
        items=tuple(AuditEntry(**row._asdict()) for row in rows[:limit]),
        next_token=str(rows[limit - 1].number) if len(rows) > limit else "",
    )
