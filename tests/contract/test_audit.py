"""The audit log over both databases: written with the change, and never again."""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
from tests.contract.builders import FakeClock, furnish

from acclimate_service.domain.access import TokenDraft, principal_of
from acclimate_service.domain.errors import NotFound, ServiceError
from acclimate_service.domain.names import DomainName, TokenName
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.denials import KINDS, Denial, Denials
from acclimate_service.store import Actor, AuditFilter, Store, act_as


def as_ada(act: Any, *arguments: Any, **options: Any) -> Any:
    """Do something in a context of its own, for a caller."""

    def acting() -> Any:
        act_as(Actor(who="ada", origin="ipv4:10.0.0.7:1", action="CreateDomain", why="ticket 7"))
        return act(*arguments, **options)

    return contextvars.copy_context().run(acting)


INTO = "INTO audit (number, at, who, action, subject, why, origin)"
LINE = "VALUES (1, 0, 'nobody', 'Nothing', 'nobody', '', '')"
UPSERT = f"INSERT {INTO} {LINE} ON CONFLICT (number) DO UPDATE SET who = 'nobody'"
# Every way that the database has to change or to take away its first line.
CHANGES = {
    "sqlite": (
        "UPDATE audit SET who = 'nobody'",
        "DELETE FROM audit",
        f"INSERT OR REPLACE {INTO} {LINE}",
        f"REPLACE {INTO} {LINE}",
        UPSERT,
    ),
    "postgresql": (
        "UPDATE audit SET who = 'nobody'",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "TRUNCATE tokens, audit RESTART IDENTITY CASCADE",
        UPSERT,
    ),
}


def test_no_line_can_be_changed_or_taken_away(store: Store) -> None:
    store.audit.record(who="ada", action="SetAlias", subject="models/m/aliases/production")
    before = store.audit.list().items
    assert before[0].number == 1
    for statement in CHANGES[store.database.engine.dialect.name]:
        with (
            pytest.raises(sa.exc.DBAPIError, match="append"),
            store.database.engine.begin() as connection,
        ):
            connection.execute(sa.text(statement))
        assert store.audit.list().items == before, statement


def test_a_change_and_its_line_are_one_and_what_fails_leaves_neither(store: Store) -> None:
    as_ada(store.domains.create, DomainName("site"), ("a", "b"))
    (line,) = store.audit.list().items
    assert (line.who, line.action, line.subject) == ("ada", "CreateDomain", "domains/site")
    assert (line.why, line.origin) == ("ticket 7", "ipv4:10.0.0.7:1")
    with pytest.raises(ServiceError):
        as_ada(store.domains.create, DomainName("site"), ("a", "c"))
    with pytest.raises(NotFound):
        as_ada(store.tokens.revoke, TokenName("a" * 16))
    assert store.audit.list().items == (line,)


def test_lines_are_found_by_who_what_and_when_and_by_what_lies_under(
    store: Store, clock: FakeClock
) -> None:
    furnish(store)
    start = store.audit.list().items[0].number
    began = clock()
    for who, subject in (
        ("ada", "models/shop"),
        ("bob", "models/shop/aliases/production"),
        ("ada", "models/shop-2"),
        ("ada", "models/shop%/versions/1"),
    ):
        store.audit.record(who=who, action="Act", subject=subject)
        clock.advance(60)

    def found(**wanted: Any) -> list[str]:
        lines = store.audit.list(AuditFilter(action="Act", **wanted)).items
        assert all(line.number > start for line in lines)
        return [line.subject.removeprefix("models/") for line in lines]

    assert found(subject="models/shop") == ["shop/aliases/production", "shop"]
    assert found(who="ada") == ["shop%/versions/1", "shop-2", "shop"]
    assert found(
        since=began + dt.timedelta(seconds=60), until=began + dt.timedelta(seconds=150)
    ) == [
        "shop-2",
        "shop/aliases/production",
    ]
    page = store.audit.list(AuditFilter(action="Act"), page_size=3)
    rest = store.audit.list(AuditFilter(action="Act"), page_size=3, page_token=page.next_token)
    assert len({line.number for line in (*page.items, *rest.items)}) == 4
    assert rest.next_token == ""
    assert store.audit.list(page_token="9" * 18).items == store.audit.list().items


def test_hostile_text_becomes_a_line_that_either_database_holds(store: Store) -> None:
    text = "a\0b\ud800\n" + "x" * 10_000
    store.audit.record(who=text, action=text, subject=text, why=text, origin=text)
    (line,) = store.audit.list().items
    assert len(line.who) == len(line.origin) == 200
    assert "\0" not in line.why


def test_refusals_are_written_once_a_kind_and_counted(store: Store) -> None:
    now = [100.0]
    lane = Lane("audit", threads=1, waiting=10)
    denials = Denials(store, lane=lane, clock=lambda: now[0])
    for number in range(KINDS + 50):
        denials.count(Denial("nobody known", f"/s/M{number}", "UNAUTHENTICATED", "ipv4:10.0.0.7"))
    for _ in range(999):
        denials.count(Denial("eve", "/s/SetAlias", "PERMISSION_DENIED", "ipv4:10.0.0.8"))
    asyncio.run(denials.flush())
    assert len(store.audit.list(page_size=1000).items) == KINDS + 1
    now[0] += 61
    asyncio.run(denials.flush())
    lines = store.audit.list(page_size=1000).items
    assert len(lines) == KINDS + 2
    assert lines[0].why == "refused: of many kinds, 1048 times more"
    lane.close()


def test_a_tokens_line_says_what_it_gives_and_to_whom(store: Store) -> None:
    principal = principal_of("camera", roles=["upload"], models=(), domains=["night-*"])
    draft = TokenDraft(principal=principal, certificate="CN:camera-7")
    store.tokens.create(draft, by="ada")
    (line,) = store.audit.list().items
    assert line.why == "camera: upload within ['night-*'] by CN:camera-7"
