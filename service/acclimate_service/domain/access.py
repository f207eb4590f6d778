"""Who may do what: roles, the models and domains they reach, and tokens.

A *principal* is whoever makes a call: a name, some roles, and a scope of models and one
of domains. A *token* gives a principal to the holder of a secret, or, if it names a
certificate, to whoever shows a client certificate of that subject.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import hashlib
import hmac
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Self

from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.names import SLUG

PATTERN_LIMIT: Final = 100  # patterns of one scope
_PATTERN: Final = re.compile(rf"\*|{SLUG}|[a-z0-9][a-z0-9_-]{{0,61}}\*")
_SECRET: Final = re.compile(r"acclimate_([a-z0-9]{16})_[A-Za-z0-9_-]{43}")
_SUBJECT: Final = re.compile(r"(?:CN|DNS|URI):[!-~](?:[ -~]{0,198}[!-~])?")


class AccessRole(enum.StrEnum):
    """What a principal may do. ADMIN may do all; the others do not include each other."""

    PREDICT = "predict"
    UPLOAD = "upload"
    ADAPT = "adapt"
    PROMOTE = "promote"
    ADMIN = "admin"


@dataclass(frozen=True)
class Scope:
    """A set of ids: each pattern is one id, or a prefix of ids that ends in ``*``."""

    patterns: tuple[str, ...]

    @classmethod
    def parse(cls, name: str, patterns: Collection[str]) -> Self:
        """Read *patterns*; *name* is the field that an error points at.

        Raises:
            InvalidSpec: one is neither an id nor a prefix with ``*``, or they are too many.
        """
        if len(patterns) > PATTERN_LIMIT:
            raise InvalidSpec(f"{name}: at most {PATTERN_LIMIT} patterns", field=name)
        for pattern in patterns:
            if not _PATTERN.fullmatch(pattern):
                raise InvalidSpec(
                    f"{name}: {pattern[:80]!r} is neither an id (shop) nor a prefix (shop-*)",
                    field=name,
                )
        return cls(tuple(dict.fromkeys(patterns)))

    @property
    def everything(self) -> bool:
        """Whether every id is in it."""
        return "*" in self.patterns

    def __contains__(self, id_: str) -> bool:
        return any(
            id_.startswith(pattern[:-1]) if pattern.endswith("*") else id_ == pattern
            for pattern in self.patterns
        )


EVERYTHING: Final = Scope(("*",))
NOTHING: Final = Scope(())


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who makes a call, and what they may do."""

    name: str
    roles: frozenset[AccessRole]
    models: Scope = EVERYTHING
    domains: Scope = EVERYTHING

    def has(self, role: AccessRole) -> bool:
        """Whether the principal may act in *role*."""
        return role in self.roles or AccessRole.ADMIN in self.roles

    @property
    def unlimited(self) -> bool:
        """Whether every model and every domain is in reach."""
        return self.models.everything and self.domains.everything


# Everyone, where nobody is asked for a token.
ANONYMOUS: Final = Principal(name="anonymous", roles=frozenset({AccessRole.ADMIN}))


@dataclass(frozen=True, kw_only=True)
class Token:
    """A principal's way in. ``id`` is public; the secret is kept nowhere, only its digest.

    Of two tokens the one with the larger ``number`` was made later, whatever the clock said.
    ``certificate`` is empty, or ``CN:…``, ``DNS:…`` or ``URI:…`` of a client certificate;
    such a token has no secret.
    """

    id: str
    number: int
    principal: Principal
    certificate: str
    created_at: dt.datetime
    created_by: str
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    digest: str = field(repr=False)

    def live(self, now: dt.datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def matches(self, secret: str) -> bool:
        """Whether *secret* is this token's; takes as long for a wrong one."""
        return hmac.compare_digest(digest_of(secret), self.digest)


@dataclass(frozen=True, kw_only=True)
class TokenDraft:
    """A token as asked for."""

    principal: Principal
    certificate: str = ""
    lifetime: dt.timedelta | None = None  # None: until it is revoked


def principal_of(
    name: str, *, roles: Collection[str], models: Collection[str], domains: Collection[str]
) -> Principal:
    """A principal from plain words.

    Without any pattern everything is in reach. With patterns of one kind only, nothing
    of the other kind is: a limit must never be wider than it reads.

    Raises:
        InvalidSpec: no role, an unknown one, a pattern or a name of the wrong form.
    """
    if not re.fullmatch(SLUG, name):
        raise InvalidSpec(
            f"principal: {name[:80]!r} is not a lower-case slug of 1-63 of a-z 0-9 _ -",
            field="principal",
        )
    known = set(AccessRole)
    if not roles or not known.issuperset(roles):
        names = ", ".join(AccessRole)
        raise InvalidSpec(f"roles: give one or more of {names}", field="roles")
    limited = bool(models or domains)
    return Principal(
        name=name,
        roles=frozenset(AccessRole(role) for role in roles),
        models=Scope.parse("models", models) if limited else EVERYTHING,
        domains=Scope.parse("domains", domains) if limited else EVERYTHING,
    )


def subject_of(text: str) -> str:
    """A certificate's subject in its full form; a bare word is a common name.

    Raises:
        InvalidSpec: it is too long, or not one line of plain ASCII.
    """
    subject = text if re.match(r"(?:CN|DNS|URI):", text) else f"CN:{text}"
    if not _SUBJECT.fullmatch(subject):
        raise InvalidSpec(
            "certificate: give CN:name, DNS:name or URI:name of the client's certificate",
            field="certificate",
        )
    return subject


def secret_text(id_: str, random: str) -> str:
    """The secret of the token *id_*; *random* are 43 characters of base64, 256 bits."""
    secret = f"acclimate_{id_}_{random}"
    assert _SECRET.fullmatch(secret)
    return secret


def id_in(secret: str) -> str | None:
    """The id of the token that *secret* claims to be of; None if it is no secret at all."""
    match = _SECRET.fullmatch(secret)
    return None if match is None else match[1]


def digest_of(secret: str) -> str:
    """What is kept of a secret.

    One round of sha256 is enough: a slow hash protects what people choose, and nobody
    guesses 256 random bits.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def expiring(token: Token, at: dt.datetime) -> Token:
    """*token*, which ends at *at* at the latest."""
    ends = at if token.expires_at is None else min(at, token.expires_at)
    return dataclasses.replace(token, expires_at=ends)
