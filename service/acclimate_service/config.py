"""Settings: read once at a process's edge, handed down as plain values.

Every setting is an environment variable ``ACCLIMATE_<NAME>`` or a command-line
option of the same name. The defaults are the embedded form: SQLite and a folder.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar

import pydantic
import pydantic_settings
import structlog

from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.model import Precision
from acclimate_service.inference import cores
from acclimate_service.store import Bucket

PREFIX = "ACCLIMATE_"
# The command line's own, which may share an environment with the processes that it starts.
CLIENT = ("SERVER", "TOKEN", "TLS_CA", "TLS_NAME", "TLS_CERTIFICATE", "TLS_KEY")
# What Kubernetes puts into every container for a Service named "acclimate".
LINKS = ("SERVICE_HOST", "SERVICE_PORT", "PORT_")


class Settings(pydantic_settings.BaseSettings):
    """What both processes need: where things are kept."""

    model_config = pydantic_settings.SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore"
    )

    home: Path = Path("acclimate-data")  # the blob folder, the SQLite file, caches
    # Empty: SQLite in `home`. Kept out of every repr: it may hold a password.
    database_url: str = pydantic.Field(default="", repr=False)
    # Where the files are: a folder, or s3://BUCKET/PREFIX (gs://, az://) with the extra
    # `bucket`, whose endpoint and keys are the environment's own. Empty: a folder in `home`.
    blobs: str = ""
    blob_cache_gib: float = pydantic.Field(default=4.0, ge=0)  # of a bucket's, kept in `home`

    def store_url(self) -> str:
        """The SQLAlchemy URL of the store."""
        return self.database_url or f"sqlite:///{self.home.absolute() / 'acclimate.db'}"

    def blob_root(self) -> Path | Bucket:
        """The folder or the bucket of the content-addressed blobs."""
        home = self.home.absolute()
        if "://" not in self.blobs:
            return Path(self.blobs).absolute() if self.blobs else home / "blobs"
        cache_bytes = int(self.blob_cache_gib * 2**30)
        return Bucket(url=self.blobs, cache=home / "blob-cache", cache_bytes=cache_bytes)


class ServeSettings(Settings):
    """What ``serve`` needs beside the store."""

    host: str = "127.0.0.1"
    port: int = pydantic.Field(default=50051, ge=0, le=65535)  # 0: any free port, printed
    metrics_port: int | None = pydantic.Field(default=None, ge=1, le=65535)  # Prometheus; None: off
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    # Which file of a version answers here, where the guard accepted one; else fp32 does.
    variant: Precision = "fp32"
    threads: int = pydantic.Field(default_factory=cores.usable, ge=1)
    # On a CPU, what the threads do: each an image of its own, or all the same one, which
    # answers a lone request sooner and many together later.
    prefer: Literal["throughput", "latency"] = "throughput"
    queue: int = pydantic.Field(default=512, ge=1)  # predictions waiting, over all versions
    # What loaded versions may take together, of the GPU's memory where one serves. None: half
    # of what the machine or the control group has, a fifth of a GPU's.
    resident_mib: int | None = pydantic.Field(default=None, ge=1)
    max_message_mib: int = pydantic.Field(default=64, ge=4)
    max_uploads: int = pydantic.Field(default=16, ge=1)  # upload streams at once
    max_watchers: int = pydantic.Field(default=1000, ge=1)
    max_queued_jobs: int = pydantic.Field(default=1000, ge=1)
    # A client's connection is to be made anew after about so long, so that a balancer spreads the
    # clients of few long ones over replicas that came later. None: it lasts as long as it does.
    connection_seconds: float | None = pydantic.Field(default=None, ge=1)
    alias_poll_seconds: float = pydantic.Field(default=0.5, gt=0)
    drain_seconds: float = pydantic.Field(default=20.0, gt=0)
    # Who may come in; see docs/security.md.
    server_certificate: Path | None = None  # PEM: the server's chain; with `server_key`, TLS
    server_key: Path | None = None
    client_ca: Path | None = None  # PEM: who signs clients' certificates; asks for one (mTLS)
    auth: bool | None = None  # whether tokens are asked for; None: see `asks_for_tokens`
    insecure: bool = False  # allow to listen beyond this machine without TLS or tokens
    # Of one principal; 0: no limit; None: `rpc/rates.USUAL` where callers are told apart.
    requests_per_second: float | None = pydantic.Field(default=None, ge=0)
    upload_mib_per_second: float | None = pydantic.Field(default=None, ge=0)

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def asks_for_tokens(self) -> bool:
        """Whether a caller must be known: by default, unless it is plain text on loopback."""
        if self.auth is not None:
            return self.auth
        return not self.insecure and not (self.local and self.server_certificate is None)


class WorkSettings(Settings):
    """What ``work`` needs beside the store."""

    # "auto": CUDA if present, else the CPU.
    device: str = pydantic.Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")
    threads: int = pydantic.Field(default_factory=cores.usable, ge=1)
    lease_seconds: float = pydantic.Field(default=30.0, ge=2)
    poll_seconds: float = pydantic.Field(default=0.5, gt=0)
    stall_seconds: float = pydantic.Field(default=600.0, gt=0)  # no sign of life: killed
    max_attempts: int = pydantic.Field(default=3, ge=1)
    cache_gib: float = pydantic.Field(default=4.0, gt=0)  # trunk activations in memory and on disk
    # Of a GPU's memory, the most that training takes: what serves beside it keeps the rest.
    gpu_memory_share: float = pydantic.Field(default=0.8, gt=0, le=1)
    # Train on a CPU with what serving leaves (Linux SCHED_IDLE); where that is next to
    # nothing for half a minute, at nice 10.
    idle_priority: bool = True


Read = TypeVar("Read", bound=Settings)


def read(kind: type[Read]) -> Read:
    """The settings of the environment; names in it that are none are told in the log.

    Raises:
        InvalidSpec: one has a value that it cannot have; its variable is named, and what is
            wrong, but not the value, which may be a secret.
    """
    if strange := unknown(os.environ):
        structlog.get_logger(__name__).warning("no settings, ignored", names=strange)
    return made(kind)


def made(kind: type[Read], **given: object) -> Read:
    """The settings of the environment, but for those that are *given*.

    Raises:
        InvalidSpec: as :func:`read`.
    """
    try:
        return kind(**given)  # type: ignore[arg-type]  # checked by pydantic
    except pydantic.ValidationError as error:
        told = "; ".join(
            f"{PREFIX}{'.'.join(str(part) for part in each['loc']).upper()}: {each['msg']}"
            for each in error.errors(include_url=False, include_input=False)
        )
        raise InvalidSpec(told) from None


def unknown(names: Iterable[str]) -> list[str]:
    """Of these environment variables, those meant for Acclimate that are no settings of it.

    Each with the setting that was likely meant, where one is near: ``ACCLIMATE_QUEU
    (ACCLIMATE_QUEUE?)``.
    """
    fields = {**ServeSettings.model_fields, **WorkSettings.model_fields}
    known = {PREFIX + name for name in (*CLIENT, *(field.upper() for field in fields))}
    strange = []
    for name in sorted(names):
        rest = name.removeprefix(PREFIX)
        if rest == name or name in known or rest.startswith(LINKS):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        strange.append(f"{name} ({near[0]}?)" if near else name)
    return strange
