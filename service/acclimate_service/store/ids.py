"""Ids that the store makes up: they sort by time and never meet."""

from __future__ import annotations

import datetime as dt
import secrets


def new_id(now: dt.datetime) -> str:
    """A slug such as ``20261123-090038-4f1d9c``: when, and 24 random bits."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def new_token_id() -> str:
    """A token's public id: 80 random bits in 16 letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(16))


def new_secret() -> str:
    """The secret half of a token: 256 random bits in 43 characters."""
    return secrets.token_urlsafe(32)


_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
