"""The serving process: gRPC and onnxruntime, never torch.

Prints one line, ``acclimate serving on HOST:PORT``, once it is ready, and writes the
port to ``HOME/serve.port``, so that port 0 can be asked for and found. Logs are JSON
lines on the standard error stream. SIGTERM and SIGINT drain: health says NOT_SERVING
first, what runs may end within ``drain_seconds``, and the exit code is 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import structlog

from acclimate_service import streams, tracing
from acclimate_service.config import ServeSettings, read
from acclimate_service.domain.errors import (
    OpenDoor,
    ServiceError,
    StoreUnavailable,
    TLSUnusable,
    VariantUnsuitable,
)
from acclimate_service.domain.model import ModelVersion
from acclimate_service.inference.batcher import Batcher, Batching
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.loading import LOADER_NICE
from acclimate_service.inference.memory import usual_budget
from acclimate_service.inference.pool import Pool
from acclimate_service.inference.probe import probe
from acclimate_service.inference.processor import this_one_overflows
from acclimate_service.rpc.certificates import Renewal, TLSFiles
from acclimate_service.rpc.exposition import exposed
from acclimate_service.rpc.job_metrics import JobCollector
from acclimate_service.rpc.rates import USUAL, Rates
from acclimate_service.rpc.server import Admission, Limits, Server
from acclimate_service.store import Store, open_store

PORT_FILE = "serve.port"
END_SECONDS = 3.0  # after a drain in which threads may end
REFUSED = 2  # the exit code that tells a supervisor not to try again


def main() -> None:
    """Serve with settings from the environment until SIGTERM or SIGINT.

    The exit code: 0 after a drain; 2 if what the settings ask for is not to be had (the
    provider, the port, a certificate), so that starting again would not help; 1 for what may
    pass: the store is out of reach or not followed any more, or the system gives no thread. The
    log explains either.
    """
    streams.forgive()
    streams.log_json_lines()
    # Hand-overs between the event loop and the session threads are many and short;
    # measured, the default of 5 ms holds every tenth answer up.
    sys.setswitchinterval(0.0005)
    code = _run()
    _end_soon(code)
    sys.exit(code)


def _run() -> int:
    """Serve; the exit code."""
    try:
        return asyncio.run(_serve(read(ServeSettings)))
    except ServiceError as error:
        structlog.get_logger(__name__).error(
            "cannot serve", reason=error.reason, message=str(error)
        )
        return 1 if isinstance(error, StoreUnavailable) else REFUSED
    except (OSError, RuntimeError) as error:  # no thread or no descriptor to be had, say
        structlog.get_logger(__name__).error("cannot serve", message=str(error), exc_info=error)
        return 1


async def _serve(settings: ServeSettings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tls = check_door(settings)
    check_variant(settings)
    execution = _execution(settings)
    probe(execution)
    most = budget(settings, execution)
    if execution.provider != "cpu":
        execution = replace(execution, most_bytes=most)
    batcher = Batcher(
        threads=execution.threads,
        room=settings.queue,
        batching=None if execution.provider == "cpu" else Batching(),
    )
    pool: Pool[ModelVersion] = Pool(
        batcher,
        budget=most,
        # Threads that a session makes have the priority of the one that loads it.
        nice=LOADER_NICE if execution.intra_op == 1 else 0,
    )
    store = open_store(settings.store_url(), settings.blob_root())
    tidying = threading.Thread(target=_reconcile, args=(store,), name="reconcile", daemon=True)
    server = Server(
        store,
        pool,
        execution=execution,
        precision=settings.variant,
        limits=_limits(settings),
        admission=admission(settings),
        tracer=tracing.configure("acclimate-serve"),
    )
    lost = False
    try:
        credentials = None if tls is None else Renewal(tls).credentials()
        port = server.listen(settings.host, settings.port, credentials)
        if await _started(server, stop):
            tidying.start()
            with _metrics(settings, server, store, tls), _announced(settings, port):
                lost = await _lost(server, stop)
                await server.stop(settings.drain_seconds)
    finally:
        await server.stop(0)
        ended = await pool.close()
        await batcher.close()
        if ended and not tidying.is_alive():  # else the end of the process closes it
            store.close()
    return 1 if lost else 0


async def _started(server: Server, stop: asyncio.Event) -> bool:
    """Start, unless *stop* comes first: a store may take its time to answer.

    Raises:
        StoreUnavailable: it is out of reach.
    """
    starting, stopping = asyncio.create_task(server.start()), asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        return False
    starting.result()
    return True


def _end_soon(code: int) -> None:
    """End the process with *code* even if a thread hangs, in a disk or a bucket.

    Python waits for it for ever. The system takes back what it holds.
    """

    def end() -> None:
        structlog.get_logger(__name__).warning("threads hang at the end", code=code)
        os._exit(code)

    timer = threading.Timer(END_SECONDS, end)
    timer.daemon = True
    timer.start()


async def _lost(server: Server, stop: asyncio.Event) -> bool:
    """Serve until *stop*; whether something ended the following of the store before.

    Whatever that was, it is none of the settings' doing, and may be over after a start.
    """
    try:
        await server.until(stop)
    except Exception as error:  # noqa: BLE001
        structlog.get_logger(__name__).error("the store is not followed any more", exc_info=error)
        return True
    return False


def _reconcile(store: Store) -> None:
    """Collect what crashes left behind, beside serving; what is missing is told."""
    log = structlog.get_logger(__name__)
    try:
        found = store.reconcile()
    except ServiceError as error:
        log.warning("not reconciled", reason=error.reason, message=str(error))
        return
    log.info("reconciled", orphans=found.orphans, freed=found.freed, expired=len(found.expired))
    if found.missing:
        log.error("files are missing", count=len(found.missing), first=found.missing[0])


def check_door(settings: ServeSettings) -> TLSFiles | None:
    """The files for TLS, None for plain text; refuses an open door that nobody asked for.

    Raises:
        OpenDoor: the address is in reach of other machines, without TLS or without tokens,
            and ``insecure`` does not say that this is meant.
        TLSUnusable: a setting is missing or a file cannot be used.
    """
    certificate, key = settings.server_certificate, settings.server_key
    if (certificate is None) != (key is None) or (settings.client_ca and certificate is None):
        raise TLSUnusable("TLS needs both ACCLIMATE_SERVER_CERTIFICATE and ACCLIMATE_SERVER_KEY")
    if not settings.local:
        lacks = [
            *(["TLS (set ACCLIMATE_SERVER_CERTIFICATE and ACCLIMATE_SERVER_KEY)"] * (not key)),
            *(["tokens (unset ACCLIMATE_AUTH)"] * (not settings.asks_for_tokens)),
        ]
        if lacks and not settings.insecure:
            raise OpenDoor(
                f"{settings.host} is in reach of other machines, and there is no "
                f"{' and no '.join(lacks)}; or set ACCLIMATE_INSECURE=true if whoever reaches "
                "it may do everything; see docs/security.md"
            )
        if lacks:
            structlog.get_logger(__name__).warning(
                "INSECURE: in reach of other machines without protection",
                host=settings.host,
                without=lacks,
            )
    if certificate is None or key is None:
        return None
    return TLSFiles(certificate=certificate, key=key, client_ca=settings.client_ca)


def check_variant(settings: ServeSettings) -> None:
    """Whether the variant that was asked for can be run here as it was judged.

    Raises:
        VariantUnsuitable: it is judged on, and for, another kind of device.
    """
    on_cpu = settings.provider == "cpu"
    if settings.variant == "fp16" and on_cpu:
        raise VariantUnsuitable(
            "fp16 is for GPUs, and a CPU would convert at every layer; set "
            "ACCLIMATE_PROVIDER=cuda, or ACCLIMATE_VARIANT=int8"
        )
    if settings.variant == "int8" and not on_cpu:
        raise VariantUnsuitable(
            f"int8 variants are made and judged for CPUs, not for {settings.provider}; set "
            "ACCLIMATE_VARIANT=fp16"
        )
    if settings.variant == "int8" and this_one_overflows():
        structlog.get_logger(__name__).warning(
            "this processor has no VNNI: int8 answers as judged, and hardly faster than fp32"
        )


def admission(settings: ServeSettings) -> Admission:
    """Who is let in, and how often.

    Without a setting, the usual rates hold wherever callers are not all the same one: with
    tokens, or on an address that other machines reach.
    """
    tokens = settings.asks_for_tokens
    usual = USUAL if tokens or not settings.local else Rates()
    requests, mib = settings.requests_per_second, settings.upload_mib_per_second
    return Admission(
        tokens=tokens,
        rates=Rates(
            requests=usual.requests if requests is None else requests or None,
            upload_bytes=usual.upload_bytes if mib is None else mib * 2**20 or None,
        ),
    )


def budget(settings: ServeSettings, execution: Execution) -> int:
    """The bytes that loaded versions may take together; told in the log.

    Raises:
        ProviderUnavailable: the GPU does not tell how much memory it has.
    """
    set_here = settings.resident_mib
    found = usual_budget(execution) if set_here is None else set_here * 2**20
    structlog.get_logger(__name__).info(
        "memory for versions", mib=found // 2**20, by="default" if set_here is None else "setting"
    )
    return found


def _execution(settings: ServeSettings) -> Execution:
    if settings.provider != "cpu":
        return Execution.for_gpu(tensorrt=settings.provider == "tensorrt")
    if settings.prefer == "latency":
        return Execution.for_latency(settings.threads)
    return Execution.for_throughput(settings.threads)


def _limits(settings: ServeSettings) -> Limits:
    return Limits(
        message_bytes=settings.max_message_mib * 2**20,
        predictions=settings.queue,
        uploads=settings.max_uploads,
        watchers=settings.max_watchers,
        queued_jobs=settings.max_queued_jobs,
        decode_threads=settings.threads,
        poll_seconds=settings.alias_poll_seconds,
        connection_seconds=settings.connection_seconds,
    )


@contextlib.contextmanager
def _announced(settings: ServeSettings, port: int) -> Iterator[None]:
    """Tell where the server listens, for as long as it does."""
    path = settings.home.absolute() / PORT_FILE
    try:
        _write_whole(path, f"{port}\n")
    except OSError as error:
        # A full disk must not keep a server down that could answer predictions.
        structlog.get_logger(__name__).error("port not written", port=port, message=str(error))
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # an earlier server's port would mislead
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"acclimate serving on {host}:{port}", flush=True)  # noqa: T201  # for whoever started this
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _write_whole(path: Path, text: str) -> None:
    """Write a file that a reader sees whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _metrics(
    settings: ServeSettings, server: Server, store: Store, tls: TLSFiles | None
) -> Iterator[None]:
    """Answer Prometheus on its own port, where one is set."""
    if settings.metrics_port is None:
        yield
        return
    server.metrics.registry.register(JobCollector(store.jobs.census))
    with exposed(
        server.metrics.registry,
        host=settings.host,
        port=settings.metrics_port,
        keyring=server.keyring if settings.asks_for_tokens else None,
        tls=None if tls is None else tls.context,
    ):
        yield


if __name__ == "__main__":
    main()
