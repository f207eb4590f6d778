"""Tokens over both databases: made once, rotated, revoked, and learnt by every server."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.contract.builders import FakeClock
from tests.contract.conftest import Opener, Place

from acclimate_service.config import Settings
from acclimate_service.domain.access import AccessRole, Token, TokenDraft, principal_of
from acclimate_service.domain.errors import AlreadyExists, InvalidSpec, NotFound, Unauthenticated
from acclimate_service.domain.names import TokenName
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.keyring import Keyring
from acclimate_service.store import Store, schema
from acclimate_service.tokens import Asked, create

DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)


def asked(name: str = "camera", *roles: AccessRole, certificate: str = "") -> TokenDraft:
    principal = principal_of(
        name, roles=roles or [AccessRole.UPLOAD], models=["night-*"], domains=["night-1", "site-*"]
    )
    return TokenDraft(principal=principal, certificate=certificate)


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("keys", threads=1, waiting=10)
    yield lane
    lane.close()


class Server:
    """What a server knows of the tokens: only what it learnt."""

    def __init__(self, store: Store, lane: Lane, clock: Callable[[], dt.datetime]) -> None:
        self._keyring = Keyring(store, lane=lane, clock=clock)

    def learn(self) -> None:
        asyncio.run(self._keyring.catch_up())

    def lets_in(self, secret: str) -> bool:
        try:
            self._keyring.token(f"Bearer {secret}", {})
        except Unauthenticated:
            return False
        return True

    def who_shows(self, certificate: str) -> str | None:
        """The id of the token of whoever shows a certificate with this common name."""
        try:
            return self._keyring.token(None, {"x509_common_name": [certificate.encode()]}).id
        except Unauthenticated:
            return None


def test_a_token_comes_back_as_it_was_made_and_its_secret_is_nowhere(
    store: Store, clock: FakeClock
) -> None:
    made = store.tokens.create(dataclasses.replace(asked(), lifetime=DAY), by="ada")
    (found,) = store.tokens.list().items
    assert found == made.token
    assert found.expires_at == clock() + DAY
    assert found.matches(made.secret)
    assert not found.matches(made.secret[:-1] + ("A" if made.secret[-1] != "A" else "B"))
    with store.database.engine.connect() as connection:
        everything = "".join(
            repr(connection.execute(sa.select(table)).all())
            for table in schema.metadata.sorted_tables
        )
    assert made.token.id in everything
    assert made.secret[-43:] not in everything


def test_a_rotated_token_is_good_until_its_overlap_ends(
    store: Store, clock: FakeClock, lane: Lane
) -> None:
    server = Server(store, lane, clock)
    old = store.tokens.create(asked(), by="ada")
    new = store.tokens.rotate("camera", overlap=DAY, lifetime=None, by="ada")
    server.learn()
    assert server.lets_in(old.secret)
    assert server.lets_in(new.secret)
    assert new.token.principal == old.token.principal
    clock.advance(DAY.total_seconds() + 1)
    assert not server.lets_in(old.secret)
    assert server.lets_in(new.secret)
    with pytest.raises(NotFound, match="live token of 'nobody'"):
        store.tokens.rotate("nobody", overlap=DAY, lifetime=None, by="ada")


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_a_clock_that_jumps_changes_neither_the_order_of_tokens_nor_what_was_revoked(
    store: Store, clock: FakeClock, lane: Lane, jump: dt.timedelta
) -> None:
    at_once, later = Server(store, lane, clock), Server(store, lane, clock)
    shown = asked("gate", certificate="CN:gate")
    first = store.tokens.create(shown, by="ada").token
    secret = store.tokens.create(asked(), by="ada")
    store.tokens.revoke(TokenName(first.id))
    at_once.learn()
    clock.advance(jump.total_seconds())
    second = store.tokens.create(shown, by="ada").token
    wider = dataclasses.replace(asked("camera", AccessRole.ADMIN))
    store.tokens.create(wider, by="ada")
    rotated = store.tokens.rotate("camera", overlap=DAY, lifetime=None, by="ada")
    at_once.learn()
    later.learn()
    for server in (at_once, later):
        assert server.who_shows("gate") == second.id
        assert server.lets_in(secret.secret)
        assert server.lets_in(rotated.secret)
    assert rotated.token.principal == wider.principal  # as the one that was made last
    clock.advance(-jump.total_seconds())
    assert later.who_shows("gate") == second.id
    assert first.number < secret.token.number < second.number < rotated.token.number


def test_what_a_turned_clock_let_two_have_is_the_later_ones(
    store: Store, clock: FakeClock, lane: Lane
) -> None:
    shown = dataclasses.replace(asked("gate", certificate="CN:gate"), lifetime=HOUR / 2)
    first = store.tokens.create(shown, by="ada").token
    clock.advance(HOUR.total_seconds())
    second = store.tokens.create(shown, by="ada").token  # the first seems to have ended
    clock.advance(-HOUR.total_seconds())  # and is alive again
    server = Server(store, lane, clock)
    server.learn()
    assert server.who_shows("gate") == second.id
    store.tokens.revoke(TokenName(second.id))
    server.learn()
    assert server.who_shows("gate") is None  # never the older one instead
    with pytest.raises(AlreadyExists, match=first.id):
        store.tokens.create(shown, by="ada")


def test_tokens_rotated_without_an_overlap_have_ended_whatever_the_clock_says(
    store: Store, clock: FakeClock, lane: Lane
) -> None:
    old = store.tokens.create(asked(), by="ada")
    clock.advance(HOUR.total_seconds())
    new = store.tokens.rotate("camera", overlap=dt.timedelta(), lifetime=None, by="ada")
    clock.advance(-HOUR.total_seconds())
    server = Server(store, lane, clock)
    server.learn()
    assert not server.lets_in(old.secret)
    assert server.lets_in(new.secret)


def test_ends_are_dates_and_each_server_reads_them_off_its_own_clock(
    store: Store, clock: FakeClock, lane: Lane
) -> None:
    made = store.tokens.create(dataclasses.replace(asked(), lifetime=HOUR / 2), by="ada")
    ahead = Server(store, lane, lambda: clock() + HOUR)
    behind = Server(store, lane, lambda: clock() - HOUR)
    for server in (ahead, behind):
        server.learn()
    assert not ahead.lets_in(made.secret)
    assert behind.lets_in(made.secret)
    clock.advance(HOUR.total_seconds())
    assert behind.lets_in(made.secret)  # for as long as it is wrong
    store.tokens.revoke(TokenName(made.token.id))
    behind.learn()
    assert not behind.lets_in(made.secret)


def test_what_one_server_revokes_every_server_learns_and_only_once(
    opener: Opener, clock: FakeClock, lane: Lane
) -> None:
    one, other = opener(), opener()
    server = Server(other, lane, clock)
    made = one.tokens.create(asked(), by="ada")
    server.learn()
    assert server.lets_in(made.secret)
    ended = one.tokens.revoke(TokenName(made.token.id))
    server.learn()
    assert not server.lets_in(made.secret)
    changed, revision = other.tokens.changed_since(0)
    assert changed == [ended]
    assert other.tokens.revoke(TokenName(made.token.id)) == ended
    assert other.tokens.changed_since(revision) == ([], revision)
    with pytest.raises(NotFound):
        one.tokens.revoke(TokenName("a" * 16))


def test_a_certificate_names_one_live_token_however_many_ask_at_once(opener: Opener) -> None:
    stores = [opener() for _ in range(4)]

    def make(store: Store) -> Token | None:
        try:
            return store.tokens.create(asked(certificate="CN:camera-7"), by="ada").token
        except AlreadyExists:
            return None

    with ThreadPoolExecutor(4) as crowd:
        made = [token for token in crowd.map(make, stores) if token is not None]
    assert len(made) == 1
    assert made[0].digest == ""
    stores[0].tokens.revoke(TokenName(made[0].id))
    assert make(stores[1]) is not None


def test_who_follows_the_changes_misses_none_of_those_that_were_made_at_once(
    opener: Opener,
) -> None:
    writers, follower = [opener() for _ in range(4)], opener()
    seen, revision = set[str](), 0
    with ThreadPoolExecutor(4) as crowd:
        made = [
            crowd.submit(writers[number % 4].tokens.create, asked(f"p{number}"), by="ada")
            for number in range(24)
        ]
        while not all(each.done() for each in made):
            changed, revision = follower.tokens.changed_since(revision)
            seen |= {token.id for token in changed}
    changed, revision = follower.tokens.changed_since(revision)
    seen |= {token.id for token in changed}
    assert seen == {each.result().token.id for each in made}
    assert revision == 24


def test_pages_of_tokens_hold_each_once_in_order(store: Store) -> None:
    names = ["b", "a_1", "a-1", "a1", "a", "b", "a", "0"]
    for name in names:
        store.tokens.create(asked(name), by="ada")
    found, token = list[Token](), ""
    while True:
        page = store.tokens.list(3, token)
        found += page.items
        token = page.next_token
        if not token:
            break
    assert sorted(each.principal.name for each in found) == sorted(names)
    assert len({each.id for each in found}) == len(names)
    with pytest.raises(InvalidSpec):
        store.tokens.list(3, "nothing that was given out")


def test_the_first_token_is_made_beside_either_store(
    place: Place, store: Store, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path / "home", database_url=place.url)
    answer = create(
        settings,
        Asked(
            principal="root", roles=["admin"], models=[], domains=[], certificate="", lifetime=None
        ),
    )
    (token,) = store.tokens.list().items
    assert token.matches(answer["secret"])
    (line,) = store.audit.list().items
    assert (line.action, line.subject, line.origin) == ("CreateToken", f"tokens/{token.id}", "cli")
    assert answer["secret"] not in repr(line)
