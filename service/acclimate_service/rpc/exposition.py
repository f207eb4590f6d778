"""The metrics' own port, behind the same certificate and the same tokens as the rest."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import prometheus_client
import structlog

from acclimate_service.domain.errors import AddressUnusable, Unauthenticated
from acclimate_service.rpc.keyring import Keyring

CONNECTIONS = 32  # at once
LONGEST_SECONDS = 30.0  # of one
_SECONDS = 5.0  # in which a client must have said what it wants


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = CONNECTIONS  # before a client's system tries again, a second later

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._free = threading.Semaphore(CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        # A crowd at this port must not take the server's threads and memory.
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Not a traceback for everyone who connects and says nothing.
        error = sys.exception()
        if not isinstance(error, OSError):
            structlog.get_logger(__name__).error("metrics not told", exc_info=error)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with _ended_in_time(request):
            super().finish_request(request, client_address)


@contextlib.contextmanager
def _ended_in_time(connection: socket.socket) -> Iterator[None]:
    """Break *connection* off when it lasts too long, however busily its client sends.

    Its own time limit is for each read.
    """

    def end() -> None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # TLS's own would wait

    timer = threading.Timer(LONGEST_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Handler(WSGIRequestHandler):
    timeout = _SECONDS

    def log_message(self, *args: Any) -> None:
        """Keep quiet: whoever scrapes does so every few seconds."""


class _TLSServer(_Server):
    """Shakes hands on the connection's thread, so that who does not costs only itself."""

    renew: Callable[[], ssl.SSLContext]

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(_SECONDS)
        context = type(self).renew()
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(request, True, do_handshake_on_connect=False) as wrapped,
            _ended_in_time(wrapped),
        ):
            wrapped.do_handshake()
            super().finish_request(wrapped, client_address)


@contextlib.contextmanager
def exposed(
    registry: prometheus_client.CollectorRegistry,
    *,
    host: str,
    port: int,
    keyring: Keyring | None,
    tls: Callable[[], ssl.SSLContext] | None,
) -> Iterator[int]:
    """Answer ``/metrics`` for the length of a block; the port is given.

    Args:
        registry: What is told.
        host: The address to listen on.
        port: 0 for any free one.
        keyring: Who may ask (a good token of any role, without limits: the metrics name every
            model); None: everyone.
        tls: Makes the context of each connection; None: plain text.

    Raises:
        AddressUnusable: the address is taken or is not this machine's.
    """
    metrics = prometheus_client.make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if keyring is not None:
            try:
                who = keyring.token(environ.get("HTTP_AUTHORIZATION"), {}).principal
            except Unauthenticated as error:
                start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
                return [f"{error}\n".encode()]
            if not who.unlimited:
                start_response("403 Forbidden", [])
                return [b"the metrics tell of every model; ask with a token without limits\n"]
        answer: Iterable[bytes] = metrics(environ, start_response)
        return answer

    kind = _Server if tls is None else type("_Server", (_TLSServer,), {"renew": staticmethod(tls)})
    try:
        server: WSGIServer = make_server(host, port, app, kind, handler_class=_Handler)
    except OSError as error:
        raise AddressUnusable(
            f"cannot answer Prometheus on {host}:{port}: {error.strerror}; choose another port by "
            "ACCLIMATE_METRICS_PORT"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
