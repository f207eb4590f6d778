"""The metrics' own port, behind the same certificate and the same tokens as the rest."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import prometheus_client

from acclimate_service.domain.errors import Unauthenticated
from acclimate_service.rpc.keyring import Keyring

_SECONDS = 5.0  # in which a client must have said what it wants


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = _SECONDS

    def log_message(self, *args: Any) -> None:
        """Keep quiet: whoever scrapes does so every few seconds."""


class _TLSServer(_Server):
    """Shakes hands on the connection's thread, so that who does not costs only itself."""

    renew: Callable[[], ssl.SSLContext]

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(_SECONDS)
        with (
            contextlib.suppress(OSError),
            type(self).renew().wrap_socket(request, server_side=True) as wrapped,
        ):
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
        keyring: Who may ask (a good token of any role); None: everyone.
        tls: Makes the context of each connection; None: plain text.
    """
    metrics = prometheus_client.make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if keyring is not None:
            try:
                keyring.token(environ.get("HTTP_AUTHORIZATION"), {})
            except Unauthenticated as error:
                start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
                return [f"{error}\n".encode()]
        answer: Iterable[bytes] = metrics(environ, start_response)
        return answer

    kind = _Server if tls is None else type("_Server", (_TLSServer,), {"renew": staticmethod(tls)})
    server: WSGIServer = make_server(host, port, app, kind, handler_class=_Handler)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
