"""Who makes the call that is being answered: a value of its context, set by the interceptor."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from acclimate_service.domain.access import ANONYMOUS, Principal, Scope


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A principal at an address."""

    principal: Principal
    peer: str  # as gRPC writes it: ipv4:127.0.0.1:57834

    @property
    def who(self) -> str:
        """The name for the record of changes."""
        return self.principal.name if self.known else f"anonymous at {self.peer}"

    @property
    def known(self) -> bool:
        """Whether a token or a certificate was shown."""
        return self.principal is not ANONYMOUS

    @property
    def share(self) -> str:
        """Whose rate the call counts towards: without a name, the address's."""
        return self.principal.name if self.known else self.peer.rpartition(":")[0]

    @property
    def models(self) -> Scope:
        """The models in reach."""
        return self.principal.models

    @property
    def domains(self) -> Scope:
        """The domains in reach."""
        return self.principal.domains


CALLER: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """The caller of the call that this runs for.

    Raises:
        LookupError: this runs for no call.
    """
    return CALLER.get()
