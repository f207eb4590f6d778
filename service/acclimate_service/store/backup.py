"""A whole store in one file, and back: a tar of rows as JSON lines and of blobs as they are.

    rows/<table>.jsonl     in an order in which they can be written back
    blobs/<sha256>         every file that a row names
    backup.json            what it is, written last: a backup without it is cut short

Rows are plain JSON under the names of their columns, so a backup of SQLite can be
restored into PostgreSQL and the reverse, and one of an older schema is migrated as it
is restored. The store may be in use: the rows are of one moment, and no blob is
removed until the file is written.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import os
import secrets
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

import pydantic
import sqlalchemy as sa

from acclimate_service.domain.errors import AlreadyExists, InvalidSpec
from acclimate_service.store import migrations, schema
from acclimate_service.store.blobs import CHUNK, Blobs, translated_os_errors
from acclimate_service.store.engine import Database, Transaction
from acclimate_service.store.folder import sync_folder
from acclimate_service.store.reconcile import named_by_results, spoken_of

SEAL = "backup.json"
VERSION_TABLE = "alembic_version"
GROUP = 500  # rows written at once
SPOOL_BYTES = 64 * 2**20  # of one table's rows in memory; more go to a temporary file


class Rows(pydantic.BaseModel, frozen=True, extra="forbid"):
    """One table: how many rows, and the sha256 of their lines."""

    count: int
    sha256: str


class Backup(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What a backup holds."""

    format: Literal[1] = 1
    schema_revision: str
    created_at: dt.datetime
    tables: dict[str, Rows]
    blobs: int
    bytes: int  # of the blobs
    missing: tuple[str, ...] = ()  # named by rows and not there when the backup was made


def write(database: Database, blobs: Blobs, target: BinaryIO) -> Backup:
    """Write everything into *target*, from its present position on.

    Every blob is read and compared with its digest on the way.

    Raises:
        BlobCorrupt: a blob is not what it is named by; the backup is incomplete.
        StoreUnavailable: the database or the folder is out of reach.
    """
    with blobs.held(), tarfile.open(fileobj=target, mode="w|") as tar:
        revision, tables, named, needed = database.snapshot(_write_rows, tar)
        count = size = 0
        missing = []
        for digest in sorted(named):
            if not blobs.exists(digest):
                if digest in needed:
                    missing.append(digest)
                continue
            with blobs.open(digest) as file:
                size += _add(tar, f"blobs/{digest}", file)
            count += 1
        told = Backup(
            schema_revision=revision,
            created_at=dt.datetime.now(dt.UTC),
            tables=tables,
            blobs=count,
            bytes=size,
            missing=tuple(missing),
        )
        _add(tar, SEAL, io.BytesIO(told.model_dump_json(indent=1).encode()))
    return told


def read(source: Path) -> Backup:
    """What the backup at *source* holds.

    Raises:
        InvalidSpec: it is no backup, is cut short, or is of a newer Acclimate.
    """
    with _opened(source) as tar:
        return _seal(tar)


def restore(source: Path, database: Database, blobs: Blobs) -> Backup:
    """Fill an empty store with the backup at *source*: all of it, or nothing but blobs.

    Blobs are written before the rows that name them, each compared with its digest; the
    rows come in one transaction, migrated to the newest schema.

    Raises:
        AlreadyExists: the database holds rows already.
        InvalidSpec: *source* is no backup, is cut short, damaged, or of a newer Acclimate.
        StoreUnavailable: the database or the folder is out of reach.
    """
    with _opened(source) as tar:
        told = _seal(tar)
        database.read(_refuse_rows)
        members = tar.getmembers()
        count = sum(_restore_blob(tar, member, blobs) for member in members)
        if count != told.blobs:
            raise InvalidSpec(f"the backup says it holds {told.blobs} blobs, but {count} are there")
        database.write(_restore_rows, tar, told)
    return told


# ── writing ──────────────────────────────────────────────────────────────────


def _write_rows(
    tx: Transaction, tar: tarfile.TarFile
) -> tuple[str, dict[str, Rows], frozenset[str], frozenset[str]]:
    """Write every table; the schema's revision, what each holds, and digests.

    First every digest that a row speaks of, then those among them that name a file for
    certain: others may be of something else, such as all images of a domain.
    """
    revision = migrations.current(tx.connection)
    assert revision is not None
    written = {}
    for table in _tables(tx.connection):
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
            digest, count = hashlib.sha256(), 0
            for row in tx.connection.execute(_in_order(table)).mappings().yield_per(GROUP):
                line = json.dumps(dict(row)).encode() + b"\n"
                digest.update(line)
                spool.write(line)
                count += 1
            _add(tar, f"rows/{table.name}.jsonl", spool)
        written[table.name] = Rows(count=count, sha256=digest.hexdigest())
    examples = tx.rows(sa.select(schema.examples.c.blob).distinct())
    needed = named_by_results(tx).union(row.blob for row in examples)
    return revision, written, spoken_of(tx) | needed, needed


def _add(tar: tarfile.TarFile, name: str, file: IO[bytes]) -> int:
    """Add a file that stands at its beginning; its size in bytes."""
    member = tarfile.TarInfo(name)
    member.size = file.seek(0, io.SEEK_END)
    file.seek(0)
    with translated_os_errors():
        tar.addfile(member, file)
    return member.size


def _tables(connection: sa.Connection) -> list[sa.Table]:
    """The tables as the database has them, each after those that it refers to."""
    found = sa.MetaData()
    found.reflect(connection)
    return [table for table in found.sorted_tables if table.name != VERSION_TABLE]


def _in_order(table: sa.Table) -> sa.Select[Any]:
    """All rows, so that one which refers to another of its table comes after that."""
    numbered = [column for column in table.columns if column.name == "number"]
    return sa.select(table).order_by(*numbered, *table.primary_key.columns)


# ── restoring ────────────────────────────────────────────────────────────────


def _opened(source: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(source, "r:")
    except (tarfile.TarError, OSError) as error:
        raise InvalidSpec(f"{source} cannot be read as a backup: {error}") from error


def _seal(tar: tarfile.TarFile) -> Backup:
    try:
        file = tar.extractfile(SEAL)
        assert file is not None
        return Backup.model_validate_json(file.read())
    except (KeyError, AssertionError, tarfile.TarError) as error:
        raise InvalidSpec("the file is no whole backup: it may have been cut short") from error
    except pydantic.ValidationError as error:
        raise InvalidSpec("the backup is of a format that this version does not know") from error


def _refuse_rows(tx: Transaction) -> None:
    """Raise AlreadyExists unless every table is empty."""
    for table in _tables(tx.connection):
        if tx.scalar(sa.select(sa.func.count()).select_from(table)):
            raise AlreadyExists(
                f"the store's table {table.name}",
                then="a backup fills an empty store: name another --home or --database-url",
            )


def _restore_blob(tar: tarfile.TarFile, member: tarfile.TarInfo, blobs: Blobs) -> bool:
    """Store a member that is a blob; whether it was one."""
    folder, _, digest = member.name.partition("/")
    if folder != "blobs":
        return False
    file = tar.extractfile(member)
    if file is None:
        raise InvalidSpec(f"{member.name} of the backup is no file")
    with blobs.writer() as writer:
        while chunk := file.read(CHUNK):
            writer.write(chunk)
        if writer.written() != digest:  # raised inside the block, so that nothing is kept
            raise InvalidSpec(f"{member.name} of the backup is damaged")
    return True


def _restore_rows(tx: Transaction, tar: tarfile.TarFile, told: Backup) -> None:
    tx.serialize("migrations")
    connection = tx.connection
    if migrations.current(connection) is not None:
        _refuse_rows(tx)
        migrations.downgrade(connection, "base")
    migrations.upgrade(connection, told.schema_revision)
    for table in _tables(connection):
        if table.name not in told.tables:
            raise InvalidSpec(f"the backup lacks the table {table.name}")
        for group in _rows(tar, table.name, told.tables[table.name].sha256):
            connection.execute(sa.insert(table), group)
        _count_on(tx, table)
    migrations.upgrade(connection)


def _rows(tar: tarfile.TarFile, table: str, sha256: str) -> Iterator[Sequence[dict[str, Any]]]:
    """The rows of a table in groups; at the end they are known to be whole."""
    damaged = InvalidSpec(f"the rows of {table} in the backup are damaged")
    digest, group = hashlib.sha256(), []
    try:
        file = tar.extractfile(f"rows/{table}.jsonl")
        assert file is not None
        for line in file:
            digest.update(line)
            group.append(json.loads(line))
            if len(group) == GROUP:
                yield group
                group = []
    except (KeyError, AssertionError, ValueError, tarfile.TarError) as error:
        raise damaged from error
    if digest.hexdigest() != sha256:
        raise damaged
    if group:
        yield group


def _count_on(tx: Transaction, table: sa.Table) -> None:
    """Let PostgreSQL number new rows after the restored ones, as SQLite does by itself."""
    if tx.connection.dialect.name != "postgresql":
        return
    for column in table.primary_key.columns:
        sequence = tx.scalar(sa.select(sa.func.pg_get_serial_sequence(table.name, column.name)))
        most = sequence and tx.scalar(sa.select(sa.func.max(column)))
        if most:
            tx.scalar(sa.select(sa.func.setval(sequence, most)))


def save(database: Database, blobs: Blobs, path: Path) -> Backup:
    """Write a backup to *path*, which is there whole or not at all.

    Raises:
        AlreadyExists: there is a file of this name.
        InvalidSpec: there is no folder to write it into.
        BlobCorrupt: a blob is not what it is named by.
        StoreUnavailable: the store or the disk refuses.
    """
    if path.exists():
        raise AlreadyExists(str(path), then="a backup never replaces a file: name another one")
    if not path.absolute().parent.is_dir():
        raise InvalidSpec(f"{path.absolute().parent} is no folder to write {path.name} into")
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        # For this account alone, as what is in it.
        with translated_os_errors(), part.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            told = write(database, blobs, file)
            file.flush()
            os.fsync(file.fileno())
        with translated_os_errors():
            part.replace(path)
            sync_folder(path.absolute().parent)
    finally:
        part.unlink(missing_ok=True)
    return told
