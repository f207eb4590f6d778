"""``acclimate predict``: what a model says of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from acclimate.cli.options import DEFAULT_SERVER, AsJson, Server, connect
from acclimate.cli.output import console, percent, print_json, print_table, short
from acclimate.cli.refusals import Exit, complain, usage
from acclimate.errors import InvalidRequest
from acclimate.folders import images_below
from acclimate.resources import Prediction


def predict(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="shop (its production), shop@canary or shop/3.")
    ],
    given: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", help="JPEG, PNG or WebP; a folder stands for all of them in it."
        ),
    ],
    domain: Annotated[
        str, typer.Option(help="Where the images come from: the version adapted to it answers.")
    ] = "",
    top: Annotated[int, typer.Option(help="How many labels to name.", min=1)] = 3,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Predict on images; the answer names the exact version that gave it.

    Refused images are named on stderr; they cost only themselves, and exit code 1.

    Example: acclimate predict shop photo.jpg other.png --domain dock-7
    """
    images = [image for path in given for image in _images(path)]
    refused: dict[Path, InvalidRequest] = {}
    with connect(server) as client:
        ask = partial(client.predict, model, domain=domain, top_k=top)
        try:
            found = ask(images)
        except InvalidRequest as error:
            if error.reason != "BAD_IMAGE":
                raise
            images, found, refused = _one_by_one(ask, images)
    for image, why in refused.items():
        complain(why.reason, f"{image}: {why.message}")
    if as_json:
        answers = [
            {"image": image, "prediction": prediction}
            for image, prediction in zip(images, found, strict=True)
        ]
        print_json({"predictions": answers})
    elif found:
        _show(images, found)
    if refused:
        raise typer.Exit(Exit.REFUSED)


def _images(path: Path) -> list[Path]:
    """The image *path* or, of a folder, all that are in it, by name."""
    if not path.is_dir():
        return [path]
    if not (found := images_below(path)):
        raise usage(f"{path} holds no JPEG, PNG or WebP")
    return found


def _one_by_one(
    ask: Callable[[list[Path]], list[Prediction]], images: list[Path]
) -> tuple[list[Path], list[Prediction], dict[Path, InvalidRequest]]:
    """The images that were answered, their answers, and why the others were refused."""
    answered, found, refused = [], [], {}
    for image in images:
        try:
            found += ask([image])
        except InvalidRequest as error:
            refused[image] = error
        else:
            answered.append(image)
    return answered, found, refused


def _show(images: list[Path], found: list[Prediction]) -> None:
    ranks = [f"{place}." for place in range(1, max(len(p.classes) for p in found) + 1)]
    print_table(
        ("IMAGE", *ranks),
        (
            (
                image,
                *(
                    f"{ranked.label}  {percent(ranked.probability)}"
                    for ranked in prediction.classes
                ),
            )
            for image, prediction in zip(images, found, strict=True)
        ),
        empty="no images",
        spare=ranks[:0:-1],
    )
    for version, variant, sha256 in sorted({(p.version, p.variant, p.sha256) for p in found}):
        told = ", ".join(filter(None, (short(version), variant, f"sha256 {sha256[:12]}")))
        console.print(f"[dim]{told}[/dim]")
