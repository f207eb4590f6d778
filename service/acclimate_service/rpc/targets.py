"""What the name that a caller asks by stands for."""

from __future__ import annotations

import functools
from typing import NamedTuple

from acclimate_service.domain.errors import InvalidName
from acclimate_service.domain.model import PRODUCTION
from acclimate_service.domain.names import AliasName, ModelName, VersionName

NAMES = 1024  # read once


class Target(NamedTuple):
    """What a caller asks by. ``text`` is its full name: every request needs it, written once."""

    name: AliasName | VersionName
    text: str


@functools.lru_cache(maxsize=NAMES)
def target_of(name: str, domain: str = "") -> Target:
    """The alias or the version.

    A model's name stands for its alias "production", or, with the id of a *domain*, for
    its alias of that id.

    Raises:
        InvalidName: it is none of the three, or, with a domain, no model's.
    """
    found = _read(name, domain)
    return Target(found, str(found))


def _read(name: str, domain: str) -> AliasName | VersionName:
    if domain:
        return AliasName(ModelName.parse(name).model, domain)
    if name.count("/") == 1:
        return AliasName(ModelName.parse(name).model, PRODUCTION)
    if "/aliases/" in name:
        return AliasName.parse(name)
    if "/versions/" in name:
        return VersionName.parse(name)
    raise InvalidName(name, "models/{model}, .../aliases/{alias} or .../versions/{version}")
