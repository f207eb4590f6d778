"""The ``work`` process: one worker for one device. Logs are JSON lines, as those of ``serve``."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading

import structlog

from acclimate_service import streams
from acclimate_service.config import WorkSettings, read
from acclimate_service.domain.errors import ServiceError, StoreUnavailable
from acclimate_service.store import open_store
from acclimate_service.worker.loop import Loop
from acclimate_service.worker.trainer import ChildTrainer, Workplace

log = structlog.get_logger(__name__)
REFUSED = 2  # the exit code that tells a supervisor not to try again


def run(settings: WorkSettings, stop: threading.Event) -> None:
    """Work until *stop* is set.

    Raises:
        ProviderUnavailable: the device is not there.
        InvalidSpec, StoreUnavailable: the store cannot be opened.
    """
    store = open_store(settings.store_url(), settings.blob_root())
    worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    workplace = Workplace(
        store_url=settings.store_url(),
        blob_root=settings.blob_root(),
        home=settings.home.absolute(),
        device=settings.device,
        threads=settings.threads,
        gpu_memory_share=settings.gpu_memory_share,
        cache_bytes=int(settings.cache_gib * 2**30),
        priority="idle" if settings.idle_priority else "usual",
    )

    def spawn(starved: bool) -> ChildTrainer:
        return ChildTrainer(workplace.model_copy(update={"priority": "low"} if starved else {}))

    loop = Loop(
        store.jobs,
        worker=worker,
        spawn=spawn,
        lease_seconds=settings.lease_seconds,
        poll_seconds=settings.poll_seconds,
        stall_seconds=settings.stall_seconds,
        max_attempts=settings.max_attempts,
    )
    log.info("worker ready", worker=worker, device=settings.device)
    try:
        loop.run(stop)
    finally:
        store.close()


def main() -> None:
    """Run with settings from the environment until SIGTERM or SIGINT.

    The exit code: 0 after that; 2 if the settings ask for what is not to be had (a device
    that is not there), so that starting again would not help; 1 if the store is out of reach.
    """
    streams.forgive()
    streams.log_json_lines()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run(read(WorkSettings), stop)
    except ServiceError as error:
        structlog.get_logger(__name__).error("cannot work", reason=error.reason, message=str(error))
        sys.exit(1 if isinstance(error, StoreUnavailable) else REFUSED)


if __name__ == "__main__":
    main()
