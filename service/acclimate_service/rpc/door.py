"""The door: who is let in to which method, to what, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import grpc.aio

from acclimate_service.domain.access import ANONYMOUS, Token
from acclimate_service.domain.errors import (
    NotFound,
    PermissionDenied,
    ServiceError,
    Unauthenticated,
)
from acclimate_service.domain.names import JobName
from acclimate_service.rpc import fields, status
from acclimate_service.rpc.bounds import Lane
from acclimate_service.rpc.caller import CALLER, Caller
from acclimate_service.rpc.denials import Denial, Denials
from acclimate_service.rpc.keyring import Keyring
from acclimate_service.rpc.rates import Meter, Rates
from acclimate_service.rpc.rights import RIGHTS, Right
from acclimate_service.store import Actor, Store, act_as

Context = grpc.aio.ServicerContext[Any, Any]
AUTHORIZATION: Final = "authorization"
REASON_LENGTH: Final = 1000  # characters


class Door:
    """Opens to those on the *keyring*; without one (``None``), to everyone who gets here.

    Jobs are looked up in *lane*. *rights* are by full method name; what has none stays shut.
    """

    def __init__(
        self,
        store: Store,
        *,
        lane: Lane,
        keyring: Keyring | None,
        rates: Rates,
        rights: Mapping[str, Right] = RIGHTS,
    ) -> None:
        self._store = store
        self._lane = lane
        self._keyring = keyring
        self._rights = rights
        self.denials = Denials(store, lane=lane)
        self.requests = Meter("requests", rates.requests)
        self.uploaded = Meter("uploaded bytes", rates.upload_bytes)

    def knock(self, method: str, metadata: Mapping[str, object], context: Context) -> Visit:
        """Let a call in.

        Raises:
            Unauthenticated: nobody known makes it.
            PermissionDenied: whoever makes it may not call this method.
            RateExceeded: the caller has made too many.
        """
        peer = status.printable(context.peer(), 100)
        principal, token = ANONYMOUS, None
        try:
            right = self._right(method)
            if self._keyring is not None and not right.open:
                token = self._keyring.token(_shown(metadata), context.auth_context())
                principal = token.principal
            right.check_role(principal, method)
        except (Unauthenticated, PermissionDenied) as error:
            self.deny(Caller(principal=principal, peer=peer), method, error)
            raise
        visit = Visit(self, Caller(principal=principal, peer=peer), method, right, token)
        if not right.open:
            self.requests.spend(visit.caller.share, 1)
        if right.uploads:
            self.uploaded.spend(visit.caller.share, 0)
        return visit

    def deny(self, caller: Caller, method: str, error: ServiceError) -> None:
        """Count a refusal for the audit log."""
        host = caller.peer.rpartition(":")[0]
        name = caller.principal.name if caller.known else "nobody known"
        self.denials.count(Denial(name, method, error.reason, host))

    async def job_model(self, name: JobName) -> str:
        """The id of the model whose job it is.

        Raises:
            NotFound: there is no such job.
        """
        job = await self._lane.run(self._store.jobs.get, name)
        return job.draft.model.model

    async def note(self, actor: Actor, subject: str) -> None:
        """Append a line to the audit log.

        Raises:
            StoreUnavailable: the store is out of reach.
        """
        await self._lane.run(
            self._store.audit.record,
            who=actor.who,
            action=actor.action,
            subject=subject,
            why=actor.why,
            origin=actor.origin,
        )

    def _right(self, method: str) -> Right:
        right = self._rights.get(method)
        if right is None:
            raise PermissionDenied(f"{method} is open to nobody; give it a row in rpc/rights")
        return right

    def check(self, token: Token | None) -> None:
        """See that a token that was let in is still good.

        Raises:
            Unauthenticated: it has ended.
        """
        if self._keyring is not None and token is not None:
            self._keyring.check(token)


def _shown(metadata: Mapping[str, object]) -> str | None:
    shown = metadata.get(AUTHORIZATION)
    return None if shown is None else str(shown)


class Visit:
    """One call that was let in."""

    def __init__(
        self, door: Door, caller: Caller, method: str, right: Right, token: Token | None
    ) -> None:
        self.caller = caller
        self._token = token
        self._door = door
        self._method = method
        self._right = right
        self._messages = 0
        self._subject = ""
        self._actor = (
            Actor(who=caller.who, origin=caller.peer, action=method.rpartition("/")[2])
            if right.changes
            else None
        )

    def enter(self) -> None:
        """Make the rest of this context the call's: who asks, and for whom it changes things."""
        CALLER.set(self.caller)
        if self._actor is not None:
            act_as(self._actor)

    @property
    def changes(self) -> bool:
        """Whether what the call does is to be noted when it ends: see ``leave``."""
        return self._actor is not None

    def check(self) -> None:
        """See that the caller may stay: a stream outlives the token that opened it.

        Raises:
            Unauthenticated: the token has ended meanwhile.
        """
        self._door.check(self._token)

    async def admit(self, message: Any, size: int) -> None:
        """Let a message of the call in, of *size* bytes; where the caller is too fast, later.

        Raises:
            Unauthenticated: see ``check``.
            InvalidSpec: its reason is no line of plain text.
            PermissionDenied: it names what the caller may not reach.
            NotFound: it names a job of a model that the caller may not reach; the
                answer is that to a job which does not exist, since a job's name does
                not say whose it is.
        """
        self.check()
        try:
            self._right.check_message(self.caller.principal, message)
            if not self.caller.models.everything:
                for job in self._right.jobs_in(message):
                    await self._check_job(job)
        except PermissionDenied as error:
            self._door.deny(self.caller, self._method, error)
            raise
        if self._actor is not None:
            self._subject = self._subject or self._right.subject(message)
            why = fields.text("reason", getattr(message, "reason", ""), limit=REASON_LENGTH)
            self._actor.why = self._actor.why or why
        if wait := self._pace(size):
            await asyncio.sleep(wait)

    async def leave(self) -> None:
        """Note what the call did, if nothing that it wrote was noted.

        That is a change of this server alone, or a repeated call that found its work done.

        Raises:
            StoreUnavailable: it cannot be noted.
        """
        actor = self._actor
        if actor is not None and not actor.noted:
            await self._door.note(actor, self._subject)

    async def _check_job(self, job: JobName) -> None:
        if await self._door.job_model(job) not in self.caller.models:
            self._door.deny(self.caller, self._method, PermissionDenied("a job out of reach"))
            raise NotFound(str(job), see="ListAdaptationJobs")

    def _pace(self, size: int) -> float:
        """The seconds that the next message waits for this one."""
        self._messages += 1
        if self._right.uploads:
            return self._door.uploaded.pace(self.caller.share, size)
        if self._messages > 1:  # the first is the call itself
            return self._door.requests.pace(self.caller.share, 1)
        return 0.0
