"""The channel, and what every call on it shares: deadline, credentials, retries."""

from __future__ import annotations

import importlib
import ipaddress
import random
import ssl
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc

from acclimate._status import error_of, is_transient
from acclimate.errors import AcclimateError, DeadlineExceeded


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


Answer = TypeVar("Answer")
Page = TypeVar("Page", bound=_Page)

STREAM_SECONDS = 300.0  # the deadline of one resumable stream; the next one goes on from there
BULK_SECONDS = 3600.0  # of a call that carries a model's files, whose size sets its time
LOAD_SECONDS = 300.0  # of a call that loads a version before it answers, as the service allows
HELD_SECONDS = 60.0  # a connection that lasts so long has answered pings: see keepalive below
FIRST_DELAY = 0.1  # seconds
LAST_DELAY = 3.0

_OPTIONS = (
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.max_receive_message_length", 64 * 2**20),
    # gRPC's own waits grow to two minutes, in which every call fails at once: too
    # long for an upload that waits for a server to come back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A server that froze, or a network that is gone, is noticed within half a minute: the
    # deadlines of streams and of files are longer. Without the third it takes a minute more.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
)


@dataclass(frozen=True, kw_only=True)
class TLS:
    """How to encrypt: whose certificates to trust, and, for mTLS, which to show.

    Args:
        ca: PEM file of the trusted roots; None means the system's.
        certificate: PEM file of the client's own chain.
        key: PEM file of its private key.
        name: the name that the server's certificate must have, where it is not the
            one that is called: a service behind a tunnel or in a container.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """gRPC's form of it.

        Raises:
            ValueError: a file is not what it is given for. gRPC would take it for a service
                that is out of reach, and end the process for a certificate without a key.
            OSError: a file cannot be read.
        """
        read = [None if path is None else path.read_bytes() for path in (self.ca, self.key)]
        chain = None if self.certificate is None else self.certificate.read_bytes()
        self._check()  # last: of a file that is not there, OpenSSL does not say which
        return grpc.ssl_channel_credentials(read[0], read[1], chain)

    def _check(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client's certificate and its key go together; give both or none")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except ssl.SSLError:
                raise ValueError(f"{self.ca} holds no certificate in PEM to trust") from None
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=lambda: "")
            except ssl.SSLError as error:
                why = (error.reason or "no PEM, or the key is encrypted").lower().replace("_", " ")
                raise ValueError(f"{self.certificate} and {self.key}: {why}") from None


def is_loopback(target: str) -> bool:
    """Whether *target* cannot leave this machine."""
    if target.startswith("unix:"):
        return True
    host = target.rsplit(":", 1)[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


class Connection:
    """A channel that many threads may share.

    Args:
        target: ``host:port``.
        timeout: seconds for one call, its retries included.
        patience: seconds for which uploads and watches keep trying without progress.
        retries: how often a call that may be repeated is repeated.
        token: sent as a bearer token with every call.
        tls: None means plain text.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float,
        patience: float,
        retries: int,
        token: str | None,
        tls: TLS | None,
    ) -> None:
        if ":" not in target:
            raise ValueError(f"{target!r} is not of the form HOST:PORT")
        if token is not None and tls is None and not is_loopback(target):
            raise ValueError(f"a token would travel in plain text to {target}; pass tls=TLS(...)")
        self.target = target
        self.timeout = timeout
        self.patience = patience
        self._retries = retries
        self._credentials = () if token is None else (("authorization", f"Bearer {token}"),)
        named = (("grpc.ssl_target_name_override", tls.name),) if tls and tls.name else ()
        self.channel = (
            grpc.insecure_channel(target, options=_OPTIONS)
            if tls is None
            else grpc.secure_channel(target, tls.credentials(), options=(*_OPTIONS, *named))
        )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call sends along: the token, and the caller's trace if it has one."""
        return (*self._credentials, *_trace_context())

    def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self.channel.close()

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
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        delays = Delays()
        repeats = self._retries if idempotent else 0
        while True:
            try:
                return once(max(deadline - time.monotonic(), 0.001))
            except grpc.RpcError as failure:
                error = error_of(failure)
            delay = delays.next(error)
            if not is_transient(error) or repeats == 0 or time.monotonic() + delay >= deadline:
                raise error from None
            repeats -= 1
            time.sleep(delay)


def _trace_context() -> tuple[tuple[str, str], ...]:
    """The current span of a caller who uses OpenTelemetry, as W3C trace context."""
    # Who has not imported it has no span; the client itself does not depend on it.
    if "opentelemetry.trace" not in sys.modules:
        return ()
    propagate = importlib.import_module("opentelemetry.propagate")
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())


def new_request_id() -> str:
    """A request_id for a caller who gave none."""
    return str(uuid.uuid4())


class Delays:
    """How long to wait before each next attempt: doubling, jittered, never under what was asked."""

    def __init__(self) -> None:
        self._ceiling = FIRST_DELAY

    def next(self, error: AcclimateError) -> float:
        """The seconds to wait after *error*."""
        # Full jitter, so that the clients of a server that comes back do not come in step.
        delay = random.uniform(self._ceiling / 2, self._ceiling)  # noqa: S311  not a secret
        self._ceiling = min(self._ceiling * 2, LAST_DELAY)
        return max(delay, error.retry_after or 0.0)


class Patience:
    """How long a resumable stream keeps trying: *seconds* of failures without getting further.

    They count from the first failure: before it the stream may have been silent for long,
    as a job is that tells nothing, or a caller who asks nothing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """It got further."""
        self._until: float | None = None
        self._delays = Delays()

    def rested(self, since: float) -> None:
        """What began at *since* ended, and had nothing to tell: if it lasted, it got further."""
        if time.monotonic() - since >= HELD_SECONDS:
            self.renew()

    def wait(self, error: AcclimateError, *, resumable: bool = False) -> None:
        """Sleep before the next attempt after *error*, if that makes sense.

        Args:
            error: what ended the last attempt.
            resumable: whether another attempt makes sense though the error is not transient.

        Raises:
            AcclimateError: *error* itself, if another attempt makes no sense or
                patience has run out.
        """
        if not (resumable or is_transient(error) or isinstance(error, DeadlineExceeded)):
            raise error
        now, delay = time.monotonic(), self._delays.next(error)
        if self._until is None:
            self._until = now + self._seconds
        if now + delay >= self._until:
            raise error
        time.sleep(delay)
