"""Ids that the store makes up: they sort by time and never meet."""

from __future__ import annotations

import datetime as dt
import secrets


def new_id(now: dt.datetime) -> str:
    """A slug such as ``20261123-090038-4f1d9c``: when, and 24 random bits."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
