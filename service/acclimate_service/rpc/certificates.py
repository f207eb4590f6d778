"""The server's certificate: checked when it is read, renewed without a restart.

gRPC asks for the certificate at every handshake. The files are read again when one of
them has changed; what cannot be used is logged, and the certificate before it goes on.
"""

from __future__ import annotations

import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import structlog

from acclimate_service.domain.errors import TLSUnusable

_Stamp = tuple[tuple[int, int, int], ...]  # of each file: when, how long, which
_ROUNDS: Final = 8  # of an in-memory handshake; TLS 1.3 takes three


@dataclass(frozen=True, kw_only=True)
class TLSFiles:
    """PEM files: the server's chain, its key, and, for mTLS, who signs clients' certificates."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that there are."""
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path)

    def context(self) -> ssl.SSLContext:
        """The files as Python's own TLS takes them; for the metrics' port, and to check them.

        Raises:
            TLSUnusable: a file cannot be read, is no PEM, is encrypted, or does not match.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # of 1.2; all of 1.3 are as good
        self._load(context)
        return context

    def check(self) -> None:
        """Use the certificate once, against itself.

        Raises:
            TLSUnusable: as ``context``; or it is expired, or not valid yet.
        """
        server = self.context()
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        # The certificate vouches for itself: whether clients trust its signer is theirs.
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        client.load_verify_locations(cadata=self.certificate.read_text("ascii", "replace"))
        server.verify_mode = ssl.CERT_NONE
        try:
            _shake_hands(server, client)
        except ssl.SSLCertVerificationError as error:
            raise TLSUnusable(f"{self.certificate}: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise TLSUnusable(f"{self.certificate}: {error.reason or error}") from None
        if self.client_ca is not None:
            _check_authorities(self.client_ca)

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            for path in self.paths:
                path.read_bytes()
        except OSError as error:
            raise TLSUnusable(f"{error.filename}: {error.strerror}") from None
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except ssl.SSLError as error:
            why = {
                "KEY_VALUES_MISMATCH": f"{self.key} is not the key of {self.certificate}",
                "NO_START_LINE": f"{self.certificate} or {self.key} is not in PEM",
            }.get(error.reason or "", f"{self.certificate}, {self.key}: {error.reason or error}")
            raise TLSUnusable(why) from None
        except _Encrypted:
            raise TLSUnusable(
                f"{self.key} is encrypted; give a key without a password, readable by this "
                "service alone"
            ) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise TLSUnusable(f"{self.client_ca}: {error.reason or error}") from None
            context.verify_mode = ssl.CERT_REQUIRED

    def stamp(self) -> _Stamp:
        """What tells whether a file has changed.

        Raises:
            OSError: one is gone.
        """
        found = (path.stat() for path in self.paths)
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The files as gRPC takes them.

        Raises:
            OSError: one cannot be read.
        """
        roots = None if self.client_ca is None else self.client_ca.read_bytes()
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], roots)


class _Encrypted(Exception):
    """A key asks for a password."""


def _no_password() -> str:
    raise _Encrypted


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A handshake in memory.

    Raises:
        ssl.SSLError: one side refuses the other.
    """
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = client.wrap_bio(back, there, server_hostname=None)
    right = server.wrap_bio(there, back, server_side=True)
    for _ in range(_ROUNDS):
        waiting = 0
        for side in (left, right):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
        if not waiting:
            return
    raise ssl.SSLError("the handshake does not end")


def _check_authorities(path: Path) -> None:
    """See that *path* holds an authority that is still good.

    Raises:
        TLSUnusable: it holds none, or every one has expired.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    ends = [ssl.cert_time_to_seconds(str(ca["notAfter"])) for ca in context.get_ca_certs()]
    if not ends:
        raise TLSUnusable(f"{path} holds no certificate of an authority (CA:TRUE)")
    if max(ends) < time.time():
        raise TLSUnusable(f"{path}: every authority in it has expired")


class Renewal:
    """Gives out the newest usable certificate. Called on gRPC's own threads."""

    def __init__(self, files: TLSFiles) -> None:
        """Read *files*.

        Raises:
            TLSUnusable: they cannot be used.
        """
        files.check()
        self._files = files
        self._lock = threading.Lock()
        self._stamp = files.stamp()
        self._first = files.configuration()

    def credentials(self) -> grpc.ServerCredentials:
        """What a port is opened with."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self.renewed,  # type: ignore[arg-type]  # None: go on with what there is
            require_client_authentication=self._files.client_ca is not None,
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The files' new content; None while they have not changed or cannot be used."""
        with self._lock:
            try:
                stamp = self._files.stamp()
                if stamp == self._stamp:
                    return None
                self._stamp = stamp  # also of what is refused: told once, not at every handshake
                self._files.check()
                configuration = self._files.configuration()
                if self._files.stamp() != stamp:  # changed between two of the reads
                    self._stamp = ()
                    return None
            except (OSError, TLSUnusable) as error:
                structlog.get_logger(__name__).error("certificate not renewed", message=str(error))
                return None
        structlog.get_logger(__name__).info("certificate renewed")
        return configuration
