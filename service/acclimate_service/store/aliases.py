"""Aliases: movable pointers at versions, and the record of every move."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.errors import (
    AliasMoved,
    AliasNotFound,
    InvalidSpec,
    NoIncumbent,
)
from acclimate_service.domain.model import Alias
from acclimate_service.domain.names import AliasName, ModelName, VersionName
from acclimate_service.store import audit, schema, versions
from acclimate_service.store.engine import Transaction, line


@dataclass(frozen=True, kw_only=True)
class AliasMove:
    """One move of an alias. ``number`` grows with every move of any alias.

    ``version`` is None if the alias was deleted.
    """

    number: int
    alias: AliasName
    version: VersionName | None
    previous: VersionName | None
    who: str
    why: str
    at: dt.datetime


def get(tx: Transaction, name: AliasName) -> Alias:
    """The alias.

    Raises:
        AliasNotFound: there is none of this name.
    """
    row = find(tx, name)
    if row is None:
        raise AliasNotFound(str(name))
    return alias_of(row)


def of_model(tx: Transaction, model: ModelName | None) -> list[Alias]:
    """The aliases of *model*, or of all models, by name."""
    table = schema.aliases
    query = sa.select(table).order_by(table.c.model, table.c.id)
    if model is not None:
        query = query.where(table.c.model == model.model)
    return [alias_of(row) for row in tx.rows(query)]


def set_to(
    tx: Transaction,
    name: AliasName,
    version: VersionName,
    *,
    expect: VersionName | None = None,
    who: str,
    why: str,
) -> Alias:
    """Point the alias at *version*; nothing changes if it does already.

    Raises:
        InvalidSpec: the version is another model's.
        VersionNotFound: there is no such version.
        AliasMoved: *expect* is given and the alias points elsewhere, or nowhere.
    """
    if version.model != name.model:
        raise InvalidSpec(f"{version} is not a version of models/{name.model}")
    tx.serialize("aliases")
    versions.get(tx, version)
    row = find(tx, name)
    _check_expected(name, row, expect)
    if row is not None and row.version == version.version:
        return alias_of(row)
    back = None if row is None else _move(tx, row.move)
    return _write(tx, name, version.version, back, who=who, why=why, new=row is None)


def rollback(
    tx: Transaction,
    name: AliasName,
    *,
    expect: VersionName | None = None,
    who: str,
    why: str,
) -> Alias:
    """Point the alias where it pointed before, and its ``previous`` to what was before that.

    So a second rollback goes further back, and never forward again to what was left.

    Raises:
        AliasNotFound: there is none of this name.
        NoIncumbent: the alias was never elsewhere.
        AliasMoved: *expect* is given and the alias points elsewhere.
    """
    tx.serialize("aliases")
    row = find(tx, name)
    if row is None:
        raise AliasNotFound(str(name))
    _check_expected(name, row, expect)
    if row.previous is None:
        raise NoIncumbent(f"{name} has nowhere to go back to; set it with SetAlias")
    target = _move(tx, _move(tx, row.move).back)
    return _write(tx, name, target.version, _back(tx, name, target.back), who=who, why=why)


def delete(tx: Transaction, name: AliasName, who: str, why: str) -> None:
    """Delete the alias; what it pointed at stays.

    Raises:
        AliasNotFound: there is none of this name.
    """
    tx.serialize("aliases")
    table = schema.aliases
    gone = tx.run(sa.delete(table).where(table.c.model == name.model, table.c.id == name.alias))
    if not gone:
        raise AliasNotFound(str(name))
    _record(tx, name, None, None, who=who, why=why)


def history(tx: Transaction, name: AliasName, limit: int) -> list[AliasMove]:
    """The alias's moves, the newest first."""
    table = schema.alias_moves
    return [
        _move_of(row)
        for row in tx.rows(
            sa.select(table)
            .where(table.c.model == name.model, table.c.alias == name.alias)
            .order_by(table.c.number.desc())
            .limit(limit)
        )
    ]


def moved(tx: Transaction, since: int | None) -> tuple[list[AliasName], int]:
    """The aliases that moved beyond number *since*, and the number of the last move of all.

    With None, all that there are: whoever begins need not read through what once was.
    """
    now, moves = schema.aliases, schema.alias_moves
    if since is None:
        query = sa.select(now.c.model, now.c.id)
    else:
        query = sa.select(moves.c.model, moves.c.alias).where(moves.c.number > since).distinct()
    last: int = tx.scalar(sa.select(sa.func.coalesce(sa.func.max(moves.c.number), 0)))
    return sorted(AliasName(model, alias) for model, alias in tx.rows(query)), last


def find(tx: Transaction, name: AliasName) -> sa.Row[Any] | None:
    """The alias's row, if there is one."""
    table = schema.aliases
    return tx.row(
        sa.select(table)
        .where(table.c.model == name.model, table.c.id == name.alias)
        .with_for_update()
    )


def _check_expected(name: AliasName, row: Any, expect: VersionName | None) -> None:
    found = None if row is None else VersionName(name.model, row.version)
    if expect is not None and found != expect:
        raise AliasMoved(f"{name} points at {found or 'nothing'}, not at {expect}", now=found)


def _move(tx: Transaction, number: int) -> sa.Row[Any]:
    table = schema.alias_moves
    return tx.connection.execute(sa.select(table).where(table.c.number == number)).one()


def _back(tx: Transaction, name: AliasName, number: int | None) -> sa.Row[Any] | None:
    """The move *number*, or the first one back from it whose version still exists."""
    table = schema.versions
    while number is not None:
        move = _move(tx, number)
        query = sa.select(table.c.id).where(table.c.model == name.model, table.c.id == move.version)
        if tx.row(query) is not None:
            return move
        number = move.back
    return None


def _write(
    tx: Transaction,
    name: AliasName,
    version: str,
    back: Any,
    *,
    who: str,
    why: str,
    new: bool = False,
) -> Alias:
    """Point the alias at *version* and record it. *back* is the move a rollback returns to."""
    table = schema.aliases
    number = _record(tx, name, version, back, who=who, why=why)
    values = {
        "version": version,
        "previous": None if back is None else back.version,
        "move": number,
        "moved_at": tx.now,
    }
    if new:
        tx.run(sa.insert(table).values(model=name.model, id=name.alias, **values))
    else:
        tx.run(
            sa.update(table)
            .where(table.c.model == name.model, table.c.id == name.alias)
            .values(**values)
        )
    return get(tx, name)


def _record(
    tx: Transaction, name: AliasName, version: str | None, back: Any, *, who: str, why: str
) -> int:
    """Append to the record of moves; the number of the move."""
    table = schema.alias_moves
    # Under the lock that every move takes, so numbers come in the order of commits.
    number: int = tx.scalar(sa.select(sa.func.coalesce(sa.func.max(table.c.number), 0))) + 1
    tx.run(
        sa.insert(table).values(
            number=number,
            model=name.model,
            alias=name.alias,
            version=version,
            previous=None if back is None else back.version,
            back=None if back is None else back.number,
            who=line(who, 200),
            why=line(why),
            at=tx.now,
        )
    )
    where = VersionName(name.model, version) if version else "nothing"
    audit.note(tx, "move of an alias", name, detail=f"to {where}", who=who, why=why)
    return number


def alias_of(row: Any) -> Alias:
    """A row of ``aliases`` as what it stands for."""
    return Alias(
        name=AliasName(row.model, row.id),
        version=VersionName(row.model, row.version),
        previous=None if row.previous is None else VersionName(row.model, row.previous),
        moved_at=row.moved_at,
    )


def _move_of(row: Any) -> AliasMove:
    return AliasMove(
        number=row.number,
        alias=AliasName(row.model, row.alias),
        version=None if row.version is None else VersionName(row.model, row.version),
        previous=None if row.previous is None else VersionName(row.model, row.previous),
        who=row.who,
        why=row.why,
        at=row.at,
    )
