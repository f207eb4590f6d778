"""The client's calls to AccessService: tokens and the audit log."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator

from google.protobuf import duration_pb2

from acclimate import _wire_access
from acclimate._connection import Connection
from acclimate.tokens import AccessRole, AuditEntry, Token
from acclimate.v1 import access_pb2, access_pb2_grpc


class AccessCalls:
    """Who may do what, and who did. Every call needs an admin without limits."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._access = access_pb2_grpc.AccessServiceStub(connection.channel)

    def create_token(
        self,
        principal: str,
        roles: Iterable[AccessRole | str],
        *,
        models: Iterable[str] = (),
        domains: Iterable[str] = (),
        certificate: str = "",
        lifetime: dt.timedelta | None = None,
    ) -> tuple[Token, str]:
        """Make a token.

        Args:
            principal: who it stands for, a lower-case slug.
            roles: such as ``["predict"]``.
            models: ids, or prefixes that end in ``*``, that it is limited to.
            domains: the same of domains; with limits of one kind only, nothing of the
                other kind is in reach.
            certificate: ``CN:…``, ``DNS:…`` or ``URI:…`` of a client certificate that
                stands for the principal in place of a secret.
            lifetime: None means until it is revoked.

        Returns:
            The token, and its secret, which nobody can tell again.
        """
        request = access_pb2.CreateTokenRequest(
            principal=principal,
            roles=[_wire_access.role_number(AccessRole(role)) for role in roles],
            models=models,
            domains=domains,
            certificate=certificate,
            lifetime=_duration(lifetime),
        )
        # Not repeated: a second one would be made if only the answer got lost.
        answer = self._connection.call(self._access.CreateToken, request, idempotent=False)
        return _wire_access.token(answer.token), answer.secret

    def rotate_token(
        self,
        principal: str,
        *,
        overlap: dt.timedelta = dt.timedelta(),
        lifetime: dt.timedelta | None = None,
    ) -> tuple[Token, str]:
        """Make a principal's next token, with the same roles and limits.

        Args:
            principal: who has one already.
            overlap: for how long the old ones stay good.
            lifetime: of the new one; None means until it is revoked.
        """
        request = access_pb2.RotateTokenRequest(
            principal=principal, overlap=_duration(overlap), lifetime=_duration(lifetime)
        )
        answer = self._connection.call(self._access.RotateToken, request, idempotent=False)
        return _wire_access.token(answer.token), answer.secret

    def revoke_token(self, token: str) -> Token:
        """End a token, on every server within seconds."""
        name = token if "/" in token else f"tokens/{token}"
        request = access_pb2.RevokeTokenRequest(name=name)
        return _wire_access.token(
            self._connection.call(self._access.RevokeToken, request, idempotent=True)
        )

    def tokens(self) -> Iterator[Token]:
        """All tokens, by principal; those that have ended too."""
        for page in self._connection.pages(self._access.ListTokens, access_pb2.ListTokensRequest()):
            yield from map(_wire_access.token, page.tokens)

    def audit(
        self,
        *,
        who: str = "",
        action: str = "",
        subject: str = "",
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
    ) -> Iterator[AuditEntry]:
        """The audit log, newest first; *subject* also finds what lies under it."""
        request = access_pb2.ListAuditEntriesRequest(
            who=who, action=action, subject=subject, page_size=200
        )
        if since is not None:
            request.start_time.FromDatetime(since)
        if until is not None:
            request.end_time.FromDatetime(until)
        for page in self._connection.pages(self._access.ListAuditEntries, request):
            yield from map(_wire_access.audit_entry, page.entries)


def _duration(span: dt.timedelta | None) -> duration_pb2.Duration | None:
    if span is None:
        return None
    duration = duration_pb2.Duration()
    duration.FromTimedelta(span)
    return duration
