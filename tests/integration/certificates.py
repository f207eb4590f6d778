"""Certificates for tests, made by openssl as docs/security.md shows it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True, kw_only=True)
class Authority:
    """An authority of its own, in a folder."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """A new authority; skips the test where there is no openssl."""
        if shutil.which("openssl") is None:
            pytest.skip("openssl, which makes the certificates, is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        authority = cls(folder=folder)
        authority._openssl(
            "req",
            "-x509",
            *_NEW_KEY,
            "-days",
            "30",
            "-subj",
            "/CN=test authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        )
        return authority

    @property
    def pem(self) -> Path:
        """The authority's own certificate."""
        return self.folder / "ca.pem"

    def issue(self, name: str, *, days: int = 30, uri: str = "") -> tuple[Path, Path]:
        """A certificate for *name* on the loopback, and its key. 0 days: it has expired."""
        names = "DNS:localhost,IP:127.0.0.1" + (f",URI:{uri}" if uri else "")
        self._openssl(
            "req",
            *_NEW_KEY,
            "-subj",
            f"/CN={name}",
            "-addext",
            f"subjectAltName={names}",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
        )
        self._openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-copy_extensions",
            "copyall",
            "-days",
            str(days),
            "-out",
            f"{name}.pem",
        )
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def trust(self, client: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
        """Credentials that trust this authority and show *client*'s certificate."""
        shown = (None, None) if client is None else (client[1].read_bytes(), client[0].read_bytes())
        return grpc.ssl_channel_credentials(self.pem.read_bytes(), *shown)

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)
