"""``acclimate stats``: what a server was asked of a model, and where the time went."""

from __future__ import annotations

from acclimate.cli.models import ModelArgument
from acclimate.cli.options import DEFAULT_SERVER, AsJson, Server, connect
from acclimate.cli.output import console, print_json, print_table, short
from acclimate.resources import Stage

_STAGES = ("QUEUE", "DECODE", "INFER", "ENCODE")


def stats(model: ModelArgument, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Requests of each version since the server started, and the mean milliseconds of each stage.

    QUEUE, DECODE and INFER are work within TOTAL, which they exceed where a request's images
    run side by side; ENCODE comes after it. Every replica has its own counts; Prometheus has
    the same ones as nv_inference_*.

    Example: acclimate stats shop
    """
    with connect(server) as client:
        found = client.statistics(model)
    if as_json:
        print_json({"statistics": found})
        return
    rows = []
    for version in found:
        stages = version.succeeded, version.queue, version.decode, version.infer, version.encode
        unanswered = version.failed.count + version.cancelled.count
        counts = version.succeeded.count, unanswered, version.pending, version.images
        file = version.variant, version.sha256[:12]
        rows.append((short(version.version), *file, *counts, *map(_milliseconds, stages)))
    print_table(
        ("VERSION", "FILE", "SHA256", "OK", "FAILED", "PENDING", "IMAGES", "TOTAL", *_STAGES),
        rows,
        empty="nothing of this model was loaded since the server started",
        spare=("SHA256", "PENDING", "FILE"),
    )
    if rows:
        console.print("[dim]milliseconds a request, the mean of the answered ones[/dim]")


def _milliseconds(stage: Stage) -> str:
    return f"{stage.mean * 1000:.1f}" if stage.count else "–"
