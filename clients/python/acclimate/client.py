"""The client: everything the service offers, as typed calls."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from acclimate import _calls
from acclimate._access import AccessCalls
from acclimate._adaptation import AdaptationCalls
from acclimate._connection import Connection
from acclimate._inference import InferenceCalls
from acclimate._registry import RegistryCalls
from acclimate._rollout import RolloutCalls
from acclimate._terms import TLS, Terms
from acclimate.resources import Health

DEFAULT_TARGET = "127.0.0.1:50051"


class Client(RegistryCalls, AdaptationCalls, InferenceCalls, RolloutCalls, AccessCalls):
    """A connection to one Acclimate service. Threads may share it.

        with Client("127.0.0.1:50051") as client:
            client.create_domain("shop", ["mug", "pen"])
            client.upload("shop", examples_from_folder("photos/"))
            job = client.adapt("products", "shop", promote_to="production").wait()
            print(job.state, client.predict("products", "photo.jpg")[0].label)

    Names may be short (``digits``, ``digits/3``) or full
    (``models/digits/versions/3``). Every call has a deadline. Calls that may be
    repeated are repeated after transient errors: reads, and every call with a
    request_id, which is made up where none is given.

    Args:
        target: the service's ``host:port``.
        timeout: seconds for one call, its repetitions included; five minutes for those that
            load a version, an hour for those that carry a model's files.
        patience: seconds without progress after which uploads, streams of predictions, and
            those who wait for a job give up.
        retries: how often a call is repeated at most.
        token: a bearer token.
        tls: how to encrypt; None means plain text.

    Raises:
        ValueError: *target* has no port, a token would leave this machine in plain text, or
            a file of *tls* is not what it is given for.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = 30.0,
        patience: float = 120.0,
        retries: int = 5,
        token: str | None = None,
        tls: TLS | None = None,
    ) -> None:
        terms = Terms(
            target=target,
            timeout=timeout,
            patience=patience,
            retries=retries,
            token=token,
            tls=tls,
        )
        connection = Connection(terms)
        RegistryCalls.__init__(self, connection)
        AdaptationCalls.__init__(self, connection)
        RolloutCalls.__init__(self, connection)
        InferenceCalls.__init__(self, connection)
        AccessCalls.__init__(self, connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._connection.close()

    def health(self, service: str = "") -> Health:
        """Whether the service says it can answer; empty means the whole of it.

        Raises:
            Unavailable: it cannot be reached.
        """
        return self._connection.ask(_calls.health(service))
