"""Tokens and audit entries: only proto ↔ domain."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

from google.protobuf import duration_pb2, message, timestamp_pb2

from acclimate.v1 import access_pb2 as pb
from acclimate_service.domain.access import (
    AccessRole,
    Token,
    TokenDraft,
    principal_of,
    subject_of,
)
from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.names import check_id
from acclimate_service.rpc import fields
from acclimate_service.store import AuditEntry, AuditFilter

LONGEST: Final = dt.timedelta(days=36_500)
_ROLES_OUT: Final = {
    AccessRole.PREDICT: pb.ACCESS_ROLE_PREDICT,
    AccessRole.UPLOAD: pb.ACCESS_ROLE_UPLOAD,
    AccessRole.ADAPT: pb.ACCESS_ROLE_ADAPT,
    AccessRole.PROMOTE: pb.ACCESS_ROLE_PROMOTE,
    AccessRole.ADMIN: pb.ACCESS_ROLE_ADMIN,
}
_ROLES: Final = {number: role for role, number in _ROLES_OUT.items()}


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """A rotation as asked for."""

    principal: str
    overlap: dt.timedelta
    lifetime: dt.timedelta | None


def token_draft(request: pb.CreateTokenRequest) -> TokenDraft:
    """Read what a token is to give.

    Raises:
        InvalidSpec: a field makes no sense.
    """
    return TokenDraft(
        principal=principal_of(
            request.principal,
            roles=[_ROLES.get(role, "") for role in request.roles],
            models=request.models,
            domains=request.domains,
        ),
        certificate=subject_of(request.certificate) if request.certificate else "",
        lifetime=_duration("lifetime", request, least=dt.timedelta(seconds=1)),
    )


def rotation(request: pb.RotateTokenRequest) -> Rotation:
    """Read a rotation; without an overlap the old tokens end at once.

    Raises:
        InvalidName: the principal is not a slug.
        InvalidSpec: a length of time makes no sense.
    """
    return Rotation(
        principal=check_id(request.principal),
        overlap=_duration("overlap", request, least=dt.timedelta()) or dt.timedelta(),
        lifetime=_duration("lifetime", request, least=dt.timedelta(seconds=1)),
    )


def _duration(field: str, request: message.Message, *, least: dt.timedelta) -> dt.timedelta | None:
    if not request.HasField(field):
        return None
    given: duration_pb2.Duration = getattr(request, field)
    # Compared as whole seconds: what is out of range has no timedelta.
    seconds = given.seconds + given.nanos / 1e9
    if not least.total_seconds() <= seconds <= LONGEST.total_seconds():
        raise InvalidSpec(
            f"{field} must be from {least.total_seconds():g} s to 100 years", field=field
        )
    return dt.timedelta(seconds=seconds)


def token(value: Token) -> pb.Token:
    """Write a token; neither its secret nor its digest."""
    who = value.principal
    return pb.Token(
        name=f"tokens/{value.id}",
        principal=who.name,
        roles=[_ROLES_OUT[role] for role in AccessRole if role in who.roles],
        models=() if who.unlimited else who.models.patterns,
        domains=() if who.unlimited else who.domains.patterns,
        certificate=value.certificate,
        create_time=fields.timestamp(value.created_at),
        created_by=value.created_by,
        expire_time=fields.timestamp(value.expires_at),
        revoke_time=fields.timestamp(value.revoked_at),
    )


def audit_filter(request: pb.ListAuditEntriesRequest) -> AuditFilter:
    """Read which lines are asked for.

    Raises:
        InvalidSpec: a word is no plain line, or a moment is none.
    """
    return AuditFilter(
        who=fields.text("who", request.who, limit=200),
        action=fields.text("action", request.action, limit=200),
        subject=fields.text("subject", request.subject, limit=300),
        since=_moment("start_time", request),
        until=_moment("end_time", request),
    )


def _moment(field: str, request: message.Message) -> dt.datetime | None:
    if not request.HasField(field):
        return None
    stamp: timestamp_pb2.Timestamp = getattr(request, field)
    try:
        return stamp.ToDatetime(dt.UTC)
    except (ValueError, OverflowError):
        raise InvalidSpec(f"{field} is no moment of the years 1 to 9999", field=field) from None


def audit_entry(value: AuditEntry) -> pb.AuditEntry:
    """Write a line of the audit log."""
    return pb.AuditEntry(
        number=value.number,
        time=fields.timestamp(value.at),
        who=value.who,
        action=value.action,
        subject=value.subject,
        why=value.why,
        origin=value.origin,
    )
