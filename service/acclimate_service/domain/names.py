"""Resource names (AIP-122): the one place that parses and formats them.

Ids are lower-case slugs of 1–63 characters. Nothing else is ever let through,
so an id is safe in a path, a log line, a metric label and a URL.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import ClassVar, Self

from acclimate_service.domain.errors import InvalidName

SLUG = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_SLUG = re.compile(SLUG)


def check_id(text: str) -> str:
    """*text* itself, if it is a slug.

    Raises:
        InvalidName: it is not.
    """
    if not _SLUG.fullmatch(text):
        raise InvalidName(text, "{id}")
    return text


@dataclass(frozen=True, order=True)
class _Name:
    """A name made of collection ids and slugs, in the order of the fields."""

    pattern: ClassVar[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a full resource name.

        Raises:
            InvalidName: it does not have the form of ``pattern``.
        """
        match = _expression(cls.pattern).fullmatch(text)
        if match is None:
            raise InvalidName(text, cls.pattern)
        return cls(*match.groups())

    def __post_init__(self) -> None:
        for part in vars(self).values():
            check_id(part)

    def __str__(self) -> str:
        return self.pattern.format_map(vars(self))


@functools.cache  # once for each kind of name: every request has one to read
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{\w+\}", f"({SLUG})", pattern))


@dataclass(frozen=True, order=True)
class ModelName(_Name):
    """A model: one architecture, one label space, many versions."""

    pattern: ClassVar[str] = "models/{model}"
    model: str

    __str__ = _Name.__str__


@dataclass(frozen=True, order=True)
class VersionName(_Name):
    """An immutable model version; ids count from 1 within a model."""

    pattern: ClassVar[str] = "models/{model}/versions/{version}"
    model: str
    version: str

    __str__ = _Name.__str__


@dataclass(frozen=True, order=True)
class AliasName(_Name):
    """A movable pointer to a version."""

    pattern: ClassVar[str] = "models/{model}/aliases/{alias}"
    model: str
    alias: str

    __str__ = _Name.__str__


@dataclass(frozen=True, order=True)
class RolloutName(_Name):
    """One trial of a version on an alias's traffic."""

    pattern: ClassVar[str] = "models/{model}/rollouts/{rollout}"
    model: str
    rollout: str

    __str__ = _Name.__str__


@dataclass(frozen=True, order=True)
class DomainName(_Name):
    """Where images come from: a camera, a site, a season."""

    pattern: ClassVar[str] = "domains/{domain}"
    domain: str

    __str__ = _Name.__str__


@dataclass(frozen=True, order=True)
class BatchName(_Name):
    """One immutable upload of labelled images."""

    pattern: ClassVar[str] = "domains/{domain}/batches/{batch}"
    domain: str
    batch: str

    __str__ = _Name.__str__


@dataclass(frozen=True, order=True)
class JobName(_Name):
    """One adaptation, bootstrap or registration."""

    pattern: ClassVar[str] = "jobs/{job}"
    job: str

    __str__ = _Name.__str__


@dataclass(frozen=True, order=True)
class TokenName(_Name):
    """One way in: a secret's, or a client certificate's."""

    pattern: ClassVar[str] = "tokens/{token}"
    token: str

    __str__ = _Name.__str__
