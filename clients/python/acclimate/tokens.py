"""What the service tells about those who call it, and about what they did."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass


class AccessRole(enum.StrEnum):
    """What a principal may do; ADMIN may do everything."""

    PREDICT = "predict"
    UPLOAD = "upload"
    ADAPT = "adapt"
    PROMOTE = "promote"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class Token:
    """A principal's way in, without its secret. Empty limits: everything is in reach."""

    name: str
    principal: str
    roles: tuple[AccessRole, ...]
    models: tuple[str, ...]
    domains: tuple[str, ...]
    certificate: str
    created_at: dt.datetime
    created_by: str
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One change, or one refusal: who, what, when, why and from where."""

    number: int
    time: dt.datetime
    who: str
    action: str
    subject: str
    why: str
    origin: str
