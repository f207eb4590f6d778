"""``acclimate doctor``: what on this machine would keep the service from working."""

from __future__ import annotations

import typer

from acclimate.cli.processes import BlobsAt, DatabaseUrl, Home, become


def doctor(
    home: Home = None,
    database_url: DatabaseUrl = None,
    blobs: BlobsAt = None,
    as_json: bool = typer.Option(False, "--json", help="Print JSON, for machines."),
) -> None:
    """Look for what would keep the service from working here; exit code 1 if anything would.

    Libraries, runtimes, GPU, disk, permissions, store, clock, limits.

    Example: acclimate doctor --home /var/lib/acclimate
    """
    words = ["--json"] if as_json else []
    become("doctor", *words, home=home, database_url=database_url, blobs=blobs)
