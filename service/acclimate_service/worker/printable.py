"""Text that users gave, made safe to show: the types that documents are read with."""

from __future__ import annotations

import unicodedata
from typing import Annotated

import pydantic

NAME_LENGTH = 120
PROSE_LENGTH = 2000

# They make text run in another order than it is stored, and so say what it does not.
_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, most: int) -> str:
    """*text* without control characters and lone surrogates, of at most *most* characters."""
    shown = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI else c
        for c in text[: most + 1]
    )
    return shown if len(shown) <= most else f"{shown[: most - 1].rstrip()}…"


Name = Annotated[str, pydantic.AfterValidator(lambda text: printable(text, NAME_LENGTH))]
Prose = Annotated[str, pydantic.AfterValidator(lambda text: printable(text, PROSE_LENGTH))]


class Part(pydantic.BaseModel, frozen=True, extra="ignore"):
    """A part of the document."""
