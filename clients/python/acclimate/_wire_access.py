"""proto ↔ values of AccessService: nothing but conversion."""

from __future__ import annotations

import datetime as dt

from google.protobuf import timestamp_pb2

from acclimate.tokens import AccessRole, AuditEntry, Token
from acclimate.v1 import access_pb2


def role_number(role: AccessRole) -> access_pb2.AccessRole.ValueType:
    """The proto's number of a role."""
    return access_pb2.AccessRole.Value(f"ACCESS_ROLE_{role.name}")


def token(message: access_pb2.Token) -> Token:
    """A token as the service tells of it."""
    return Token(
        name=message.name,
        principal=message.principal,
        roles=tuple(
            AccessRole[access_pb2.AccessRole.Name(number).removeprefix("ACCESS_ROLE_")]
            for number in message.roles
        ),
        models=tuple(message.models),
        domains=tuple(message.domains),
        certificate=message.certificate,
        created_at=_time(message.create_time),
        created_by=message.created_by,
        expires_at=_time(message.expire_time) if message.HasField("expire_time") else None,
        revoked_at=_time(message.revoke_time) if message.HasField("revoke_time") else None,
    )


def audit_entry(message: access_pb2.AuditEntry) -> AuditEntry:
    """A line of the audit log."""
    return AuditEntry(
        number=message.number,
        time=_time(message.time),
        who=message.who,
        action=message.action,
        subject=message.subject,
        why=message.why,
        origin=message.origin,
    )


def _time(stamp: timestamp_pb2.Timestamp) -> dt.datetime:
    return stamp.ToDatetime(tzinfo=dt.UTC)
