"""Models, their versions, and the aliases that decide what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acclimate.cli.options import DEFAULT_SERVER, AsJson, RequestId, Server, connect
from acclimate.cli.output import ago, console, print_json, print_table, short, words
from acclimate.cli.refusals import exit_of_job, usage
from acclimate.cli.spoken import spoken
from acclimate.resources import Decoding, Preprocessing, WeightsSource

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="Its version: 3.")]
Alias = Annotated[str, typer.Option(help="Which pointer.")]


def register(
    model: ModelArgument,
    architecture: Annotated[
        str,
        typer.Argument(metavar="LIBRARY/NAME", help="Such as timm/tf_efficientnet_lite0."),
    ],
    weights: Annotated[
        str,
        typer.Option(
            help="Where the first weights come from: a file (safetensors or a state dict), "
            "hub, hub:TAG, or package:NAME."
        ),
    ] = "hub",
    labels: Annotated[
        str, typer.Option(help="What its head answers, in order: cat,dog. None for a backbone.")
    ] = "",
    labels_file: Annotated[
        Path | None, typer.Option(help="The same, from a file with one label a line.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels a side of its input; unset: the library's own.")
    ] = None,
    decoding: Annotated[
        Decoding | None,
        typer.Option(
            help="How JPEGs much larger than its input are decoded: scaled costs half or less. "
            "Unset: scaled for a backbone, full for weights that come with their labels."
        ),
    ] = None,
    source: Annotated[
        str, typer.Option(help="The domain whose holdout forgetting is weighed on.")
    ] = "",
    promote_to: Annotated[
        str | None,
        typer.Option(help="The alias to set when the first version exists; unset: production."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the first version, if one is made.")] = True,
    request_id: RequestId = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Register a model: an architecture, its first weights, and what they answer.

    Without labels it is a bare backbone, whose first version `acclimate adapt` makes.

    Example: acclimate register shop timm/tf_efficientnet_lite0 --weights hub --source studio
    """
    if "/" not in architecture:
        raise usage(f"{architecture!r} names no library; write it as timm/{architecture}")
    names = [label for label in labels.split(",") if label]
    if labels_file is not None:
        names = [line.strip() for line in labels_file.read_text().splitlines() if line.strip()]
    with connect(server) as client:
        registered, job = client.register_model(
            model,
            architecture,
            weights=_weights(weights),
            labels=names,
            preprocessing=None if size is None else Preprocessing(size=size),
            source_domain=source,
            # A backbone gets its first version, and the alias, from its bootstrap job.
            promote_to=promote_to or ("production" if names else ""),
            decoding=decoding,
            request_id=request_id or None,
        )
        if job is not None and wait:
            job.wait()
    if as_json:
        print_json({"model": registered, "job": None if job is None else job.snapshot})
    elif job is None:
        console.print(
            f"{registered.name}: a backbone; make its first version with "
            f"`acclimate adapt {model} DOMAIN`"
        )
    else:
        console.print(f"{registered.name}: {job.name} {job.state.value} {short(job.version)}")
        if job.snapshot.failure_message:
            console.print(words(spoken(job.snapshot.failure_message)), style="red")
    if job is not None and job.state.ended:
        raise typer.Exit(exit_of_job(job.state))


def _weights(text: str) -> WeightsSource | Path:
    kind, _, reference = text.partition(":")
    if kind == "hub":
        return WeightsSource(kind="HUB", reference=reference)
    if kind == "package" and reference:
        return WeightsSource(kind="PACKAGE", reference=reference)
    if Path(text).is_file():
        return Path(text)
    raise usage(f"--weights {text!r} is neither a file, nor hub[:TAG], nor package:NAME")


def models(server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List the models.

    Example: acclimate models
    """
    with connect(server) as client:
        found = client.models()
    if as_json:
        print_json({"models": found})
        return
    print_table(
        ("MODEL", "ARCHITECTURE", "LABELS", "SOURCE", "AGE"),
        (
            (
                short(model.name),
                model.architecture,
                len(model.labels) or "backbone",
                short(model.source_domain),
                ago(model.created_at),
            )
            for model in found
        ),
        empty="no models; see `acclimate register --help`",
    )


def versions(
    model: ModelArgument, server: Server = DEFAULT_SERVER, as_json: AsJson = False
) -> None:
    """List a model's versions, and which aliases point at them.

    Example: acclimate versions shop
    """
    with connect(server) as client:
        found = client.versions(model)
        unreadable = client.unreadable_versions(model)
        pointers = client.aliases(model)
    if as_json:
        print_json({"versions": found, "aliases": pointers, "unreadable": unreadable})
        return
    print_table(
        ("VERSION", "FROM", "ORIGIN", "JOB", "MB", "SHA256", "VARIANTS", "ALIASES", "AGE"),
        (
            (
                short(version.name),
                short(version.parent),
                version.origin.value,
                short(version.job),
                f"{version.onnx_bytes / 1e6:.1f}",
                version.sha256[:12],
                " ".join(version.variants) or "–",
                " ".join(
                    alias.name.rpartition("/")[2]
                    for alias in pointers
                    if alias.version == version.name
                ),
                ago(version.created_at),
            )
            for version in found
        ),
        empty="no versions yet; see `acclimate adapt --help`",
        spare=("SHA256", "MB", "ORIGIN", "JOB"),
    )
    for version in found:
        if version.forced_by:
            told = f"{short(version.name)} was forced by {version.forced_by}: "
            console.print(told + version.forced_reason, markup=False, highlight=False)
    for name in unreadable:
        told = f"{short(name)} is of a format that is newer than the server: upgrade it"
        console.print(told, markup=False, highlight=False)


def aliases(model: ModelArgument, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List a model's aliases.

    Example: acclimate aliases shop
    """
    with connect(server) as client:
        found = client.aliases(model)
    if as_json:
        print_json({"aliases": found})
        return
    print_table(
        ("ALIAS", "VERSION", "BEFORE", "MOVED"),
        (
            (
                alias.name.rpartition("/")[2],
                short(alias.version),
                short(alias.previous),
                ago(alias.moved_at),
            )
            for alias in found
        ),
        empty="no aliases; see `acclimate promote --help`",
    )


def promote(
    model: ModelArgument,
    version: VersionArgument,
    alias: Alias = "production",
    expected: Annotated[
        str | None, typer.Option(help="Only if the alias points at this version now.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")] = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Load and warm a version, then serve it under an alias.

    Example: acclimate promote shop 3
    """
    with connect(server) as client:
        moved = client.promote(model, version, alias=alias, expected=expected, reason=reason)
    if as_json:
        print_json(moved)
    else:
        console.print(f"{alias} → {short(moved.version)} (before: {short(moved.previous) or '–'})")


def rollback(
    model: ModelArgument,
    alias: Alias = "production",
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")] = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Point an alias back at where it pointed before.

    Example: acclimate rollback shop --reason "night images got worse"
    """
    with connect(server) as client:
        moved = client.rollback(model, alias=alias, reason=reason)
    if as_json:
        print_json(moved)
    else:
        console.print(f"{alias} → {short(moved.version)}")


def export(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A version: shop/3.")],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to write; made if it is not there.")
    ],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Write a version's model.onnx, weights.safetensors and manifest.json into a folder.

    Example: acclimate export shop/3 ./shop-3
    """
    with connect(server) as client:
        files = client.export(version, folder)
    if as_json:
        print_json(files)
    else:
        print_table(
            ("FILE", "SHA256"),
            ((str(folder / name), files.sha256[name]) for name in files.files),
            empty="the version has no files",
        )
