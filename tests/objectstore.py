"""An object store of our own that speaks S3, and a proxy before it that misbehaves."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import itertools
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REFUSED = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>no</Message></Error>"
_numbers = itertools.count(1)


class CannotStart(Exception):
    """The server is not installed, or does not start here."""


@dataclass(frozen=True)
class ObjectStore:
    """A server, at the address of which buckets can be made."""

    address: str  # host:port

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use it."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.address}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def bucket(self) -> str:
        """A new, empty bucket, as a URL with a prefix."""
        name = f"bucket-{next(_numbers)}"
        self._ask("PUT", f"/{name}")
        return f"s3://{name}/some/where"

    def overwrite(self, url: str, key: str, content: bytes) -> None:
        """Put *content* where no service would: it rotted."""
        self._ask("PUT", f"/{url.removeprefix('s3://')}/{key}", content)

    def _ask(self, method: str, path: str, content: bytes | None = None) -> None:
        # Whose signature is not looked at.
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=key/20261125/us-east-1/s3/x"}
        connection = http.client.HTTPConnection(self.address, timeout=20)
        connection.request(method, path, content, signed)
        reply = connection.getresponse()
        assert reply.status == 200, reply.read()
        connection.close()


@contextlib.contextmanager
def object_store(log: Path) -> Iterator[ObjectStore]:
    """A server on a free port of the loopback interface, in memory; it writes to *log*.

    Raises:
        CannotStart: it is not installed, or does not start here.
    """
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"Running on http://(127\.0\.0\.1:\d+)", log.read_text())):
            if child.poll() is not None or time.monotonic() > deadline:
                raise CannotStart(log.read_text()[-1000:])
            time.sleep(0.05)
        yield ObjectStore(found[1])
    finally:
        child.kill()
        child.wait()


@dataclass
class Faults:
    """What the proxy does to those who ask it. All may be changed at any time."""

    delay: float = 0.0  # seconds before a request is passed on
    gone: bool = False  # every connection is closed at once
    silent: bool = False  # requests are taken, and never answered
    cut: int | None = None  # bytes of a body after which its connection is closed
    busy: int = 0  # so many requests are told to slow down, then no more
    deny: str = ""  # the methods that are not allowed
    code: str = "AccessDenied"  # and why
    cuts: int = 10**9  # so many bodies are cut, then no more
    asked: list[str] = field(default_factory=list)  # the methods of all requests


class FaultProxy:
    """Stands before an object store. ``faults`` says how it misbehaves."""

    def __init__(self, behind: str) -> None:
        self.faults = Faults()
        self._ended = threading.Event()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def answer(self) -> None:
                proxy._answer(self, behind)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - http.server's

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # whoever asked has gone away

        self._server = Server(("127.0.0.1", 0), Handler)
        self.store = ObjectStore(f"127.0.0.1:{self._server.server_address[1]}")
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop, and end every request that is kept waiting."""
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, asked: http.server.BaseHTTPRequestHandler, behind: str) -> None:
        faults = self.faults
        body = asked.rfile.read(int(asked.headers.get("Content-Length", 0)))
        faults.asked.append(asked.command)
        asked.close_connection = faults.gone or faults.silent
        if faults.silent:
            self._ended.wait(60)
        if faults.gone or faults.silent:
            return
        if faults.busy or asked.command in faults.deny.split():
            faults.busy = max(0, faults.busy - 1)
            code = faults.code if asked.command in faults.deny.split() else "SlowDown"
            self._reply(asked, 503 if code == "SlowDown" else 403, REFUSED % code.encode(), {})
            return
        self._ended.wait(faults.delay)
        onward = http.client.HTTPConnection(behind, timeout=60)
        onward.request(asked.command, asked.path, body, dict(asked.headers))
        reply = onward.getresponse()
        headers = {k: v for k, v in reply.getheaders() if k.lower() not in {"connection", "date"}}
        self._reply(asked, reply.status, reply.read(), headers)
        onward.close()

    def _reply(
        self,
        asked: http.server.BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str],
    ) -> None:
        faults = self.faults
        asked.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in {"content-length", "transfer-encoding"}:
                asked.send_header(name, value)
        length = headers.get("Content-Length", str(len(body)))  # HEAD has a length and no body
        asked.send_header("Content-Length", length)
        asked.end_headers()
        if faults.cut is not None and len(body) > faults.cut and faults.cuts > 0:
            faults.cuts -= 1
            body = body[: faults.cut]
            asked.close_connection = True
        asked.wfile.write(body)


@contextlib.contextmanager
def fault_proxy(store: ObjectStore) -> Iterator[FaultProxy]:
    """A proxy before *store*, on a free port of the loopback interface."""
    proxy = FaultProxy(store.address)
    try:
        yield proxy
    finally:
        proxy.close()
