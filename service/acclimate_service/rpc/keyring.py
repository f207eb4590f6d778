"""The tokens of the store, in memory: no call waits for the database to be let in.

The server asks twice a second for what has changed, so a token that is made or revoked
anywhere counts here within that time. A server that has lost the store goes on with
what it knew: predictions need no store, and everything else fails without it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping

from acclimate_service.domain.access import Token, id_in
from acclimate_service.domain.errors import Unauthenticated
from acclimate_service.rpc.bounds import Lane
from acclimate_service.store import Store

AuthContext = Mapping[str, Iterable[bytes]]  # gRPC's facts about a peer's certificate

_SUBJECTS = (("x509_common_name", "CN"), ("peer_dns", "DNS"), ("peer_uri", "URI"))
_BEARER = "bearer "


class Keyring:
    """Finds the token of a secret or of a certificate. The store is read in *lane*."""

    def __init__(self, store: Store, *, lane: Lane, clock: Callable[[], dt.datetime]) -> None:
        self._store = store
        self._lane = lane
        self._clock = clock
        self._tokens: dict[str, Token] = {}
        self._certificates: dict[str, str] = {}  # subject → id of the token made last
        self._revision = 0

    async def catch_up(self) -> None:
        """Read what has changed since the last time.

        Raises:
            StoreUnavailable: the store is out of reach; what was known stays.
        """
        changed, self._revision = await self._lane.run(
            self._store.tokens.changed_since, self._revision
        )
        for token in changed:
            self._tokens[token.id] = token
            if token.certificate:
                self._index(token)

    def _index(self, token: Token) -> None:
        # A revoked token must not hide a later one for the same certificate.
        known = self._tokens.get(self._certificates.get(token.certificate, ""))
        if known is None or token.number >= known.number:
            self._certificates[token.certificate] = token.id

    def token(self, authorization: str | None, peer: AuthContext) -> Token:
        """The token of this ``authorization`` header, or else of this certificate.

        Raises:
            Unauthenticated: nothing was shown, or what was is not (or no longer) good.
        """
        if authorization is not None:
            return self._by_secret(authorization)
        for key, kind in _SUBJECTS:
            for subject in peer.get(key, ()):
                found = self._certificates.get(f"{kind}:{subject.decode('ascii', 'replace')}")
                if found is not None:
                    return self._good(self._tokens[found])
        raise Unauthenticated(
            "this server asks for a token: send the header `authorization: Bearer ...` "
            "(ACCLIMATE_TOKEN for the command line)"
        )

    def check(self, token: Token) -> None:
        """See that *token*, let in a while ago, has not ended since.

        Raises:
            Unauthenticated: it was revoked, or it has expired.
        """
        self._good(self._tokens[token.id])

    def _by_secret(self, authorization: str) -> Token:
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise Unauthenticated("the authorization header is not of the form `Bearer ...`")
        secret = authorization[len(_BEARER) :].strip()
        token = self._tokens.get(id_in(secret) or "")
        if token is None or not token.matches(secret):
            raise Unauthenticated("the token is not known; ask an admin for one")
        return self._good(token)

    def _good(self, token: Token) -> Token:
        if token.revoked_at is not None:
            raise Unauthenticated(f"tokens/{token.id} was revoked; ask an admin for a new one")
        if not token.live(self._clock()):
            raise Unauthenticated(f"tokens/{token.id} has expired; ask an admin to rotate it")
        return token
