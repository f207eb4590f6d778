"""``acclimate serve`` and ``acclimate work``: one process of the service each."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from acclimate.cli.extras import require

SERVE_NEEDS = ("grpc_health", "numpy", "onnxruntime", "PIL", "pydantic_settings", "sqlalchemy")
WORK_NEEDS = ("onnx", "safetensors", "timm", "torch", "torchvision")
# In the home folder, written by the server once it is ready.
PORT_FILE = "serve.port"

Home = Annotated[
    Path | None,
    typer.Option(help="The folder of everything stored; unset: ACCLIMATE_HOME or acclimate-data."),
]
DatabaseUrl = Annotated[
    str | None, typer.Option(help="An SQLAlchemy URL; unset: SQLite in the home folder.")
]
BlobsAt = Annotated[
    str | None,
    typer.Option(
        "--blobs",
        help="Where files are kept: a folder, or s3://BUCKET/PREFIX; unset: ACCLIMATE_BLOBS or "
        "a folder in the home folder.",
    ),
]


Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Allow an address that other machines reach without TLS or tokens.",
    ),
]


def require_both(*more: str, extra: str, what: str) -> None:
    """Stop unless what ``serve`` and ``work`` need, and *more*, is installed."""
    require(*SERVE_NEEDS, *WORK_NEEDS, *more, extra=extra, what=what)


def environment(**settings: object) -> dict[str, str]:
    """The environment of a process of the service: ours, and *settings* that are not None."""
    given = {f"ACCLIMATE_{k.upper()}": str(v) for k, v in settings.items() if v is not None}
    return os.environ | given


def command(process: str) -> list[str]:
    """How to start ``serve`` or ``work``."""
    return [sys.executable, "-m", f"acclimate_service.{process}"]


def become(process: str, *words: str, **settings: object) -> NoReturn:
    """Turn this process into one of the service, so that signals reach it directly."""
    sys.stdout.flush()
    sys.stderr.flush()
    words = (*command(process), *words)
    os.execve(words[0], list(words), environment(**settings))  # noqa: S606  our own interpreter


def serve(
    home: Home = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: any free one, printed.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="For Prometheus; unset: off.")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="cpu, cuda or tensorrt; never falls back silently.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Predictions at once.")] = None,
    database_url: DatabaseUrl = None,
    blobs: BlobsAt = None,
    insecure: Insecure = False,
) -> None:
    """Run the serving process: gRPC, predictions, uploads. It never loads torch.

    Every further setting is an environment variable ACCLIMATE_<NAME>, see docs/settings.md;
    TLS and tokens are in docs/security.md.

    Example: acclimate serve --home /var/lib/acclimate --port 50051
    """
    require(*SERVE_NEEDS, extra="serve,cpu", what="`acclimate serve`")
    become(
        "serve",
        home=home,
        host=host,
        port=port,
        metrics_port=metrics_port,
        provider=provider,
        threads=threads,
        database_url=database_url,
        blobs=blobs,
        insecure=insecure or None,
    )


def work(
    home: Home = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:1; auto takes CUDA if present.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of the training on a CPU.")] = None,
    database_url: DatabaseUrl = None,
    blobs: BlobsAt = None,
) -> None:
    """Run a worker: it claims jobs one by one and works on them.

    Every further setting is an environment variable ACCLIMATE_<NAME>, see docs/settings.md.

    Example: acclimate work --home /var/lib/acclimate --device cuda:0
    """
    require_both(extra="train,cpu", what="`acclimate work`")
    become(
        "work", home=home, device=device, threads=threads, database_url=database_url, blobs=blobs
    )
