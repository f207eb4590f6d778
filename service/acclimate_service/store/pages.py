"""One page of a list (AIP-158)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import sqlalchemy as sa

from acclimate_service.domain.access import Scope
from acclimate_service.domain.errors import InvalidSpec

T = TypeVar("T")

MAX_PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """Some items, and the token of the page after them (empty on the last).

    ``unreadable`` names what stands among them and only a newer Acclimate can read.
    """

    items: tuple[T, ...]
    next_token: str
    unreadable: tuple[str, ...] = ()


def page_limit(page_size: int) -> int:
    """How many items a page holds: 50 if *page_size* is 0, at most ``MAX_PAGE``.

    Raises:
        InvalidSpec: *page_size* is negative.
    """
    if page_size < 0:
        raise InvalidSpec("page_size must not be negative")
    return min(page_size or 50, MAX_PAGE)


def page_number(token: str) -> int | None:
    """The ordinal that a list goes on from, or None at its beginning.

    Raises:
        InvalidSpec: this token was never given out.
    """
    if token == "":
        return None
    if not (token.isascii() and token.isdigit() and len(token) <= 18):
        raise InvalidSpec("page_token is not one that a list request returned")
    return int(token)


def in_scope(column: sa.ColumnElement[str], scope: Scope) -> sa.ColumnElement[bool]:
    """The condition that an id is in *scope*.

    In the query, not afterwards: a page's size and its token must not tell of what the
    caller may not see.
    """
    if scope.everything:
        return sa.true()
    conditions = [
        column.startswith(pattern[:-1], autoescape=True)
        if pattern.endswith("*")
        else column == pattern
        for pattern in scope.patterns
    ]
    return sa.or_(sa.false(), *conditions)
