"""The channel, and what every call on it shares: deadline, credentials, retries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import grpc

from acclimate._calls import Call
from acclimate._status import error_of
from acclimate._terms import Terms
from acclimate._waiting import Repeats


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


Answer = TypeVar("Answer")
Found = TypeVar("Found")
Page = TypeVar("Page", bound=_Page)


class Connection:
    """A channel that many threads may share.

    Raises:
        ValueError: a file of the terms' TLS is not what it is given for.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.timeout = terms.timeout
        self.patience = terms.patience
        self.channel = (
            grpc.insecure_channel(terms.target, options=terms.options)
            if terms.tls is None
            else grpc.secure_channel(terms.target, terms.tls.credentials(), options=terms.options)
        )
        self._methods: dict[str, Callable[..., Any]] = {}

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call sends along: the token, and the caller's trace if it has one."""
        return self._terms.metadata

    def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self.channel.close()

    def ask(self, call: Call[Any, Found]) -> Found:
        """Make *call*, and read its answer.

        Raises:
            AcclimateError: what the service or the connection answered instead.
        """
        method = self._methods.get(call.method)
        if method is None:
            method = self._methods[call.method] = self.channel.unary_unary(
                call.method,
                request_serializer=type(call.request).SerializeToString,
                response_deserializer=call.answer.FromString,
            )
        answer = self.call(method, call.request, idempotent=call.repeatable, timeout=call.seconds)
        return call.read(answer)

    def call(
        self,
        method: Callable[..., Answer],
        request: Any,
        *,
        idempotent: bool,
        timeout: float | None = None,
    ) -> Answer:
        """One unary call.

        Raises:
            AcclimateError: what the service or the connection answered instead.
        """
        return self.attempt(
            lambda left: method(request, timeout=left, metadata=self.metadata),
            idempotent=idempotent,
            timeout=timeout,
        )

    def pages(self, method: Callable[..., Page], request: Any) -> Iterator[Page]:
        """Every page of a listing; *request* is turned from page to page.

        Raises:
            AcclimateError: as `call`.
        """
        while True:
            page = self.call(method, request, idempotent=True)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def attempt(
        self,
        once: Callable[[float], Answer],
        *,
        idempotent: bool,
        timeout: float | None = None,
    ) -> Answer:
        """*once*, given the seconds that are left, and again after transient errors.

        Raises:
            AcclimateError: the last error, when it is not transient, the call may
                not be repeated, or neither time nor retries are left.
        """
        repeats = Repeats(
            seconds=self.timeout if timeout is None else timeout,
            most=self._terms.retries if idempotent else 0,
        )
        while True:
            try:
                return once(repeats.seconds)
            except grpc.RpcError as failure:
                error = error_of(failure)
            time.sleep(repeats.delay(error))
