"""Requests to an object store (S3, GCS, Azure), and what its answers mean.

Every request ends in a bounded time: what fails in a way that may pass is tried again
with growing pauses, and then is an outage (``StoreUnavailable``). obstore, which sends
them, is imported only where blobs are kept in such a store.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import secrets
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

import obstore
import obstore.exceptions
import obstore.store

from acclimate_service.domain.errors import InvalidSpec, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

SCHEMES: Final = ("s3", "gs", "az")
PART = 8 * 2**20  # bytes of one part of a large object; up to one part goes in one request
PARTS = 4  # of one object, sent side by side
PAGE = 1000  # objects a page of a listing

# A request may take long as a whole, since files are large, but must go on moving.
CLIENT: Final[ClientConfig] = {
    "connect_timeout": dt.timedelta(seconds=3),
    "read_timeout": dt.timedelta(seconds=10),
    "timeout": dt.timedelta(minutes=15),
}
RETRY: Final[RetryConfig] = {
    "max_retries": 5,
    "retry_timeout": dt.timedelta(seconds=20),
    "backoff": {
        "init_backoff": dt.timedelta(seconds=0.2),
        "max_backoff": dt.timedelta(seconds=4),
        "base": 2,
    },
}
# For asking whether it is there at all: one try, within what the server's probe waits.
PING_CLIENT: Final[ClientConfig] = {
    "connect_timeout": dt.timedelta(seconds=2),
    "timeout": dt.timedelta(seconds=4),
}
PING_RETRY: Final[RetryConfig] = {"max_retries": 0, "retry_timeout": dt.timedelta(seconds=4)}

_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role of this machine"
_REGION = "set AWS_REGION to the bucket's region"
ADVICE: Final = {  # by the code that S3 gives, and who speaks like it
    "NoSuchBucket": "make the bucket, or correct ACCLIMATE_BLOBS",
    "InvalidBucketName": "correct ACCLIMATE_BLOBS",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidToken": _KEYS,
    "NoCredentials": _KEYS,
    "ExpiredToken": "renew AWS_SESSION_TOKEN and what belongs to it",
    "AccessDenied": "allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket",
    "RequestTimeTooSkewed": "set this machine's clock (NTP)",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
}


class Absent(Exception):
    """There is no object of this key."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known of an object without reading it."""

    size: int
    stored_at: float  # Unix seconds, by the store's clock


class Objects:
    """One place in an object store: keys below a URL's prefix. Thread-safe."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = _opened(url, CLIENT, RETRY)
        self._pinged = _opened(url, PING_CLIENT, PING_RETRY)

    def examine(self) -> None:
        """Try all that will be asked of the store, so that what is not allowed is known at once.

        Raises:
            InvalidSpec: it refuses, for a reason that will not pass; what to do is said.
            StoreUnavailable: it does not answer.
        """
        key = f"tried/{secrets.token_hex(8)}"
        doing = "write"
        try:
            self.put(key, b"acclimate")
            doing = "read"
            self.get(key)
            doing = "list"
            next(self.keys("tried"), None)
            doing = "delete"
            self.delete(key)
        except (Absent, StoreUnavailable) as error:
            code = error.metadata.get("code", "") if isinstance(error, StoreUnavailable) else ""
            if code in ADVICE:
                raise InvalidSpec(
                    f"blobs cannot be kept in {self.url}, which refuses to {doing}: {code}; "
                    f"{ADVICE[code]}"
                ) from error
            raise StoreUnavailable(
                f"{self.url} did not {doing}: {error}; is it running, and AWS_ENDPOINT_URL right "
                "(unset for Amazon's own)?"
            ) from error

    def ping(self) -> None:
        """Ask whether the store answers, once and for a few seconds.

        Raises:
            StoreUnavailable: it does not, or the bucket is gone.
        """
        # Not HEAD, whose answer is the same where the bucket is missing.
        with contextlib.suppress(Absent), _translated():
            obstore.get(self._pinged, "ping")

    def put(self, key: str, content: bytes | BinaryIO) -> None:
        """Store an object, whole or not at all, in place of what is there.

        Raises:
            StoreUnavailable: see :func:`_translated`, as for all that follow.
        """
        with _translated():
            # Several parts become an object when the last request completes them.
            obstore.put(self._store, key, content, chunk_size=PART, max_concurrency=PARTS)

    def get(self, key: str) -> bytes:
        """The content.

        Raises:
            Absent: there is none.
        """
        with _translated():
            return obstore.get(self._store, key).bytes().to_bytes()

    def copy(self, key: str, file: BinaryIO) -> None:
        """Append the content to *file*, in bounded memory.

        Raises:
            Absent: there is none.
        """
        with _translated():
            file.writelines(obstore.get(self._store, key).stream(min_chunk_size=PART))

    def find(self, key: str) -> Found:
        """How large the object is, and since when.

        Raises:
            Absent: there is none.
        """
        with _translated():
            found = obstore.head(self._store, key)
        return Found(size=found["size"], stored_at=found["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is removed already."""
        with contextlib.suppress(Absent), _translated():
            obstore.delete(self._store, key)

    def keys(self, folder: str, *, after: str | None = None) -> Iterator[str]:
        """The keys below *folder*, sorted, from the first one that comes after *after*."""
        with _translated():
            for page in obstore.list(self._store, folder, offset=after, chunk_size=PAGE):
                yield from (found["path"] for found in page)


def _opened(url: str, client: ClientConfig, retry: RetryConfig) -> obstore.store.ObjectStore:
    """The library's store; region, endpoint and keys are the environment's (AWS_REGION, …).

    Raises:
        InvalidSpec: the URL is of another kind, or the environment lacks something.
    """
    parsed = urllib.parse.urlsplit(url)
    if parsed.scheme not in SCHEMES or not parsed.netloc or "@" in parsed.netloc:
        raise InvalidSpec(
            "ACCLIMATE_BLOBS must be s3://BUCKET/PREFIX (or gs://, az://) or a folder; keys come "
            "from the environment"
        )
    # Whoever names an endpoint in plain text has been asked once.
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    if any(os.environ.get(name, "").startswith("http://") for name in names):
        client = {**client, "allow_http": True}
    try:
        return obstore.store.from_url(url, client_options=client, retry_config=retry)
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise InvalidSpec(f"{url} cannot be opened: {_first_line(error)}") from error


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise what the library says as what it means for a caller.

    Raises:
        Absent: there is no such object.
        StoreUnavailable: the store does not answer, or refuses; ``code`` says what it said.
    """
    try:
        yield
    except (obstore.exceptions.BaseError, OSError) as error:
        code = _code_of(error)
        if isinstance(error, FileNotFoundError) and code in {"", "NoSuchKey"}:
            raise Absent from error
        why = f"refuses: {code}" if code else "does not answer"
        facts = {"code": code} if code else {}
        raise StoreUnavailable(
            f"the object store {why}", detail=_first_line(error), **facts
        ) from error


def _code_of(error: Exception) -> str:
    """The error code that the store gave, if it gave one."""
    text = str(error)
    if found := re.search(r"<Code>(\w+)</Code>", text):
        return found[1]
    if "169.254." in text:  # where a machine's role is asked for, in place of keys
        return "NoCredentials"
    refusals = (
        obstore.exceptions.PermissionDeniedError,
        obstore.exceptions.UnauthenticatedError,
    )
    return "AccessDenied" if isinstance(error, refusals) else ""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]
