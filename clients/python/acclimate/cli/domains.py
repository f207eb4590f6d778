"""Domains, and the images uploaded to them."""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acclimate.cli.options import DEFAULT_SERVER, AsJson, Server, belongs_to, connect
from acclimate.cli.output import ago, console, plain, print_json, print_table, short, words
from acclimate.cli.refusals import complain, usage
from acclimate.cli.spoken import spoken
from acclimate.resources import Acknowledgement, Domain, Example, Role

if TYPE_CHECKING:
    from acclimate.client import Client
    from acclimate.errors import AcclimateError
    from acclimate.folders import Leftovers

NAMED = 20  # refused images of one reason; more of a thousand tell nobody more

app = typer.Typer(invoke_without_command=True)


@app.callback()
def domains(
    context: typer.Context, server: Server = DEFAULT_SERVER, as_json: AsJson = False
) -> None:
    """List the domains: where images come from. Its commands create and show one.

    Example: acclimate domains
    """
    if belongs_to(context):
        return
    with connect(server) as client:
        found = client.domains()
    if as_json:
        print_json({"domains": found})
        return
    print_table(
        ("DOMAIN", "LABELS", "AGE", "DESCRIPTION"),
        (
            (short(domain.name), len(domain.labels), ago(domain.created_at), domain.description)
            for domain in found
        ),
        empty="no domains; see `acclimate upload --help`",
    )


@app.command()
def create(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="Its id: a lower-case slug.")],
    labels: Annotated[str, typer.Option(help="What its images may show: cat,dog.")] = "",
    labels_from: Annotated[
        Path | None, typer.Option(help="A folder whose subfolders' names are the labels.")
    ] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Create a domain.

    Example: acclimate domains create night --labels cat,dog
    """
    from acclimate.folders import labels_of_folder

    names: Iterable[str] = [label for label in labels.split(",") if label]
    if labels_from is not None:
        names = labels_of_folder(labels_from)
    with connect(server) as client:
        created = client.create_domain(domain, names, description=description)
    _show(created, as_json)


@app.command()
def get(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="Its id.")],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Show a domain: its labels, how many images it has of each, and the uploads.

    Example: acclimate domains get night
    """
    with connect(server) as client:
        found = client.domain(domain)
        batches = client.batches(domain)
    if as_json:
        print_json({**plain(found), "batches": batches})
        return
    _show(found, as_json)
    if batches:
        console.print()
        print_table(
            ("UPLOAD", "ROLE", "IMAGES", "AGE"),
            (
                (
                    batch.name,
                    batch.role.value,
                    batch.accepted if batch.committed else "not committed",
                    ago(batch.created_at),
                )
                for batch in batches
            ),
            empty="",
        )


def _show(domain: Domain, as_json: bool) -> None:
    if as_json:
        print_json(domain)
        return
    console.print(f"[bold]{domain.name}[/bold]", words(domain.description))
    counts = {count.label: count for count in domain.counts}
    print_table(
        ("LABEL", "TRAIN", "SELECT", "VERIFY"),
        (
            (label, c.train, c.select, c.verify) if (c := counts.get(label)) else (label, 0, 0, 0)
            for label in domain.labels
        ),
        empty="no labels",
    )


def upload(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Its subfolders are the labels. Or a .csv with the columns image and label, and "
            "tags if need be.",
        ),
    ],
    domain: Annotated[str, typer.Option("--domain", "-d", help="Where the images come from.")],
    role: Annotated[
        Role,
        typer.Option(
            case_sensitive=False,
            help="What they are given for: to learn from, to hold out, to replay, or let each "
            "image's content decide whether it is held out.",
        ),
    ] = Role.AUTO,
    make: Annotated[
        bool, typer.Option("--create", help="Create the domain first, if it is not there.")
    ] = False,
    limit_per_class: Annotated[
        int | None, typer.Option(min=1, help="At most so many of each.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A slice they belong to: camera=3.")] = None,
    request_id: Annotated[
        str, typer.Option(help="Of an upload that broke off, to go on with it.")
    ] = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Upload labelled images, as one batch. Broken connections are resumed.

    Refused images are named on stderr, the first 20 of each reason; they cost only themselves.

    Example: acclimate upload photos/night --domain night --role train --create
    """
    from acclimate.errors import AcclimateError, NotFound

    labels, examples_of = _read(images)
    request_id = request_id or str(uuid.uuid4())
    examples = examples_of(images, limit_per_class=limit_per_class, tags=tuple(tag or ()))
    with connect(server) as client:
        if make:
            _create_if_missing(client, domain, labels)
        begun = False

        def told(answer: Acknowledgement) -> None:
            nonlocal begun
            begun = True
            count(answer)

        try:
            with _counter() as count:
                result = client.upload(
                    domain,
                    examples,
                    role=role,
                    request_id=request_id,
                    on_acknowledgement=told,
                    on_wait=_say_what_is_waited_for,
                )
        except NotFound:
            raise usage(
                f"there is no domain {domain!r}; add --create to make it with the labels of "
                f"{images}, or see `acclimate domains`"
            ) from None
        except (AcclimateError, OSError, KeyboardInterrupt) as error:
            if not isinstance(error, AcclimateError) or _goes_on(error, begun=begun):
                complain("RESUME", f"go on with this upload by --request-id {request_id}")
            raise
    if as_json:
        print_json(result)
    else:
        console.print(
            f"{result.batch.name}: {result.accepted} accepted, {result.duplicates} there already, "
            f"{result.batch.rejected} refused"
        )


def _say_what_is_waited_for(error: AcclimateError, seconds: float) -> None:
    """A line on stderr, so that minutes of trying again are not silence."""
    told = f"{error.reason}: {spoken(error.message)}; trying again for up to {seconds:.0f} s"
    complain("WAITING", told)


def _goes_on(error: AcclimateError, *, begun: bool) -> bool:
    """Whether an upload that ended with *error* is still open, and may be gone on with."""
    from acclimate.errors import DeadlineExceeded, NotAllowed, Overloaded, Unavailable

    if isinstance(error, NotAllowed):  # while it ran: the token ended
        return begun
    passing = isinstance(error, DeadlineExceeded | Overloaded | Unavailable)
    return passing or error.reason == "UPLOAD_INCOMPLETE"


def _read(images: Path) -> tuple[tuple[str, ...], Callable[..., Iterator[Example]]]:
    """The labels in a folder or a sheet, and what reads its examples."""
    from acclimate import folders, sheets

    if images.suffix.lower() == ".csv":
        try:
            return sheets.labels_of_sheet(images), sheets.examples_from_sheet
        except ValueError as error:
            raise usage(str(error)) from None
    _tell(folders.leftovers(images))
    return folders.labels_of_folder(images), folders.examples_from_folder


def _tell(left: Leftovers) -> None:
    """Name on stderr what will not be uploaded, and labels without an image."""
    if left.other_files:
        kinds = Counter(path.suffix.lower() or path.name for path in left.other_files)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        complain("PASSED_OVER", f"no JPEG, PNG or WebP: {told}; convert what is an image")
    if left.outside:
        first = left.outside[0].name
        complain(
            "PASSED_OVER",
            f"{len(left.outside)} images without a label, such as {first}; put each into the "
            "subfolder of its label",
        )
    for label in left.empty_labels:
        complain("NO_IMAGES", f"the subfolder {label!r} holds no image that can be uploaded")


def _create_if_missing(client: Client, domain: str, labels: tuple[str, ...]) -> None:
    from acclimate.errors import NotFound

    try:
        client.domain(domain)
    except NotFound:
        client.create_domain(domain, labels)


@contextlib.contextmanager
def _counter() -> Iterator[Callable[[Acknowledgement], None]]:
    """Counts answers on a terminal's stderr, and names the first refused images there."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    errors = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn()
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("images stored", total=None)
        refused: Counter[str] = Counter()

        def count(answer: Acknowledgement) -> None:
            bar.advance(task)
            if answer.outcome == "REJECTED":
                refused[answer.reason] += 1
                if refused[answer.reason] <= NAMED:
                    complain(answer.reason, f"{answer.id or answer.index}: {answer.message}")

        yield count
    for reason, number in refused.items():
        if number > NAMED:
            complain(reason, f"{number - NAMED} more images were refused for this; --json has all")
