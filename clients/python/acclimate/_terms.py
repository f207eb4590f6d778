"""On what terms a client calls: where, how encrypted, as whom, and for how long it tries."""

from __future__ import annotations

import importlib
import ipaddress
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc

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


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What every call of a client shares; threads and tasks may, too.

    Args:
        target: ``host:port``.
        timeout: seconds for one call, its retries included.
        patience: seconds for which uploads and watches keep trying without progress.
        retries: how often a call that may be repeated is repeated.
        token: sent as a bearer token with every call.
        tls: None means plain text.

    Raises:
        ValueError: *target* has no port, or a token would leave this machine in plain text.
    """

    target: str
    timeout: float
    patience: float
    retries: int
    token: str | None
    tls: TLS | None

    def __post_init__(self) -> None:
        if ":" not in self.target:
            raise ValueError(f"{self.target!r} is not of the form HOST:PORT")
        if self.token is not None and self.tls is None and not is_loopback(self.target):
            raise ValueError(
                f"a token would travel in plain text to {self.target}; pass tls=TLS(...)"
            )

    @property
    def options(self) -> tuple[tuple[str, str | int], ...]:
        """The channel's."""
        named = self.tls is not None and self.tls.name
        return (*_OPTIONS, ("grpc.ssl_target_name_override", named)) if named else _OPTIONS

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call sends along: the token, and the caller's trace if it has one."""
        known = () if self.token is None else (("authorization", f"Bearer {self.token}"),)
        return (*known, *_trace_context())


def _trace_context() -> tuple[tuple[str, str], ...]:
    """The current span of a caller who uses OpenTelemetry, as W3C trace context."""
    # Who has not imported it has no span; the client itself does not depend on it.
    if "opentelemetry.trace" not in sys.modules:
        return ()
    propagate = importlib.import_module("opentelemetry.propagate")
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())
