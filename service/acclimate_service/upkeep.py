"""Upkeep of a store by whoever runs it: backup, tidy, erase, ... ``acclimate store``.

These act on the database and the blobs themselves, beside running servers and
workers, and need no server. They print JSON; a refusal is one line on the standard
error stream and exit code 1.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pydantic
import typer

from acclimate_service import imaging
from acclimate_service.config import Settings, made
from acclimate_service.domain.errors import InvalidSpec, ServiceError
from acclimate_service.domain.retention import RetentionPolicy
from acclimate_service.rpc import fields
from acclimate_service.store import Store, backup, erasure, open_store
from acclimate_service.training import cache

app = typer.Typer(
    name="acclimate store",
    help="Upkeep of a store, on the machine that holds it. Prints JSON.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Home = Annotated[
    Path | None, typer.Option(help="Unset: ACCLIMATE_HOME or acclimate-data.", show_default=False)
]
DatabaseUrl = Annotated[
    str | None, typer.Option(help="Unset: ACCLIMATE_DATABASE_URL or SQLite in the home folder.")
]

BlobsAt = Annotated[
    str | None,
    typer.Option("--blobs", help="Unset: ACCLIMATE_BLOBS or a folder in the home folder."),
]
# How one image is named, and why something is done to it.
ImageFile = Annotated[
    Path | None, typer.Option(help="The image itself, in any file format.", exists=True)
]
Content = Annotated[str, typer.Option(help="The sha256 of its pixels.")]
HoldingDomain = Annotated[str, typer.Option(help="With --id: a domain that holds it.")]
UploadersId = Annotated[str, typer.Option("--id", help="What its uploader called it.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit log.")]


@app.command("backup")
def back_up(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where to write; must not be there yet.")
    ],
    home: Home = None,
    database_url: DatabaseUrl = None,
    blobs: BlobsAt = None,
) -> None:
    """Back up everything into one file, while the service runs.

    Example: acclimate store backup /backups/2026-11-25.tar
    """
    with _store(_settings(home, database_url, blobs)) as store:
        _print(store.save(file).model_dump(mode="json"))


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` wrote.", exists=True)],
    home: Home = None,
    database_url: DatabaseUrl = None,
    blobs: BlobsAt = None,
) -> None:
    """Fill an empty store from a backup, whichever database either is in.

    Example: acclimate store restore /backups/2026-11-25.tar --home /var/lib/acclimate
    """
    settings = _settings(home, database_url, blobs)
    backup.read(file)  # before anything is made
    with _store(settings, make=True) as store:
        _print(store.restore(file).model_dump(mode="json"))


@app.command()
def tidy(
    versions: Annotated[
        int, typer.Option(help="Newest versions kept of each model; 0: all.", min=0)
    ] = 20,
    candidate_days: Annotated[
        float | None, typer.Option(help="How long a refused candidate can still be forced.")
    ] = 30,
    report_days: Annotated[
        float | None, typer.Option(help="How long reports are kept; unset: for ever.")
    ] = None,
    batch_days: Annotated[
        float | None,
        typer.Option(help="How long images are kept that no model and no version rests on."),
    ] = None,
    rehearse: Annotated[bool, typer.Option(help="Only say what would go.")] = False,
    home: Home = None,
    database_url: DatabaseUrl = None,
    blobs: BlobsAt = None,
) -> None:
    """Remove what nobody needs, then the files that nothing names.

    What an alias, a rollback, a job or a live lineage needs always stays. Files less than
    a day old go the next time.

    Example: acclimate store tidy --versions 10 --report-days 365 --rehearse
    """
    asked = {
        "versions": versions or None,
        "candidate_days": candidate_days,
        "report_days": report_days,
        "batch_days": batch_days,
    }
    policy = fields.checked(RetentionPolicy, asked, field="tidy")
    with _store(_settings(home, database_url, blobs)) as store:
        removed = store.tidy(policy, rehearse=rehearse)
        told: dict[str, pydantic.JsonValue] = {
            what: [str(name) for name in names] for what, names in vars(removed).items()
        }
        if not rehearse:
            found = store.reconcile()
            told |= {"files": found.orphans, "freed_bytes": found.freed}
        _print(told)


@app.command()
def erase(
    reason: Reason,
    image: ImageFile = None,
    content: Content = "",
    domain: HoldingDomain = "",
    id_: UploadersId = "",
    cancel_jobs: Annotated[
        bool, typer.Option("--cancel-jobs", help="Cancel the jobs that may have read it.")
    ] = False,
    wait: Annotated[
        float, typer.Option(help="With --cancel-jobs: for how many seconds to await their ends.")
    ] = 300,
    home: Home = None,
    database_url: DatabaseUrl = None,
    blobs: BlobsAt = None,
) -> None:
    """Erase one image everywhere, and list the versions that learnt from it.

    Backups made before still hold it, and so do trunk caches on other machines' workers.

    Example: acclimate store erase --domain webcam --id mug/17.jpg --reason "ticket 4711"
    """
    settings = _settings(home, database_url, blobs)
    with _store(settings) as store:
        content = _named(store, image, content, domain, id_)
        patience = wait if cancel_jobs else None
        erased = store.erase(content, who=getpass.getuser(), why=reason, cancel_jobs=patience)
    shards = cache.forget(settings.home / cache.FOLDER, content)
    _print(
        {
            "content": erased.content,
            "batches": [str(name) for name in erased.batches],
            "files": len(erased.files),
            "cache_shards": shards,
            "cancelled": [str(name) for name in erased.cancelled],
            "reports": [str(name) for name in erased.reports],
            "candidates": [str(name) for name in erased.candidates],
            "trained": [str(name) for name in erased.trained],
            "measured": [str(name) for name in erased.measured],
        }
    )


@app.command("give-back")
def give_back(
    reason: Reason,
    image: ImageFile = None,
    content: Content = "",
    domain: HoldingDomain = "",
    id_: UploadersId = "",
    home: Home = None,
    database_url: DatabaseUrl = None,
    blobs: BlobsAt = None,
) -> None:
    """Let jobs have an image again that an erasure withheld and did not come to erase.

    `erase --cancel-jobs` withholds it at once; if a job does not end in time, it stays so.

    Example: acclimate store give-back --domain webcam --id mug/17.jpg --reason "ticket 4712"
    """
    with _store(_settings(home, database_url, blobs)) as store:
        content = _named(store, image, content, domain, id_)
        found = store.give_back(content, who=getpass.getuser(), why=reason)
        _print({"content": content, "batches": [str(name) for name in found]})


def _named(store: Store, image: Path | None, content: str, domain: str, id_: str) -> str:
    """The content of the image that one of the ways to name it names.

    Raises:
        BadImage: the file is none.
        InvalidSpec: none of the ways is taken, or the id is that of several images.
        NotFound: the domain holds nothing under the id.
    """
    if image is not None:
        return imaging.content_digest(imaging.decode(image.read_bytes()))
    if domain and id_:
        return erasure.content_of(store.database, domain.removeprefix("domains/"), id_)
    if not content:
        raise InvalidSpec("name the image: --image, --content, or --domain with --id")
    return content


@contextlib.contextmanager
def _store(settings: Settings, *, make: bool = False) -> Iterator[Store]:
    # A mistyped home must not become an empty store, whose backups look like good ones.
    store = open_store(settings.store_url(), settings.blob_root(), make=make)
    try:
        yield store
    finally:
        store.close()


def _settings(home: Path | None, database_url: str | None, blobs: str | None) -> Settings:
    given = {"home": home, "database_url": database_url, "blobs": blobs}
    return made(Settings, **{name: value for name, value in given.items() if value is not None})


def _print(told: object) -> None:
    typer.echo(json.dumps(told, indent=2))


def main() -> None:
    """Run one command; the exit code says whether it was done."""
    try:
        app(prog_name="acclimate store")
    except ServiceError as error:
        typer.echo(f"acclimate: {error.reason}: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
