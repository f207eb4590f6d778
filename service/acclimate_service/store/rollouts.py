"""Rollouts: begun, counted by every server, and ended once, with the alias where that moves."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.errors import AliasNotFound, InvalidSpec, NotFound, RolloutRunning
from acclimate_service.domain.names import AliasName, ModelName, RolloutName, VersionName
from acclimate_service.domain.rollout import (
    Counts,
    Rollout,
    RolloutDraft,
    RolloutLimits,
    RolloutMode,
    RolloutState,
    weigh,
)
from acclimate_service.domain.stored import known
from acclimate_service.store import aliases, audit, schema, versions
from acclimate_service.store.engine import Database, Transaction, line
from acclimate_service.store.ids import new_id
from acclimate_service.store.pages import Page, page_limit, page_number

MOVED = "the alias moved meanwhile"


class Rollouts:
    """The rollouts of a store. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(self, draft: RolloutDraft, *, who: str, why: str) -> Rollout:
        """Begin a rollout.

        Raises:
            AliasNotFound: there is no such alias.
            InvalidSpec: the candidate is another model's, or what the alias points at.
            RolloutRunning: the alias has one that runs.
            VersionNotFound: there is no such candidate.
        """
        return self._database.write(_start, draft, who, why)

    def get(self, name: RolloutName) -> Rollout:
        """The rollout.

        Raises:
            NotFound: there is none of this name.
        """
        return self._database.read(lambda tx: _rollout_of(_find(tx, name)))

    def list(self, model: ModelName, page_size: int = 0, page_token: str = "") -> Page[Rollout]:
        """A model's rollouts, newest first."""
        return self._database.read(_page, model, page_size, page_token)

    def running(self) -> builtins.list[Rollout]:
        """All that run, of all models: what a server has to do.

        Those whose alias has moved since they began are ended, with or without traffic.
        Those with limits that only a newer Acclimate knows are left out: who cannot weigh
        them all must not try the candidate.
        """
        running, overtaken = self._database.follow(_running)
        for name in overtaken:
            self._database.write(_count, name, Counts(), None)
        return [*running]

    def count(self, name: RolloutName, more: Counts, *, news: str | None = None) -> Rollout:
        """Add what a server saw, and end the rollout if that calls for it.

        *news* is why a server does not ask the candidate, which is the reason until the end or
        until one tells otherwise; "" that it does again; None changes nothing. Counts of one
        that has ended are added too, and change nothing else.

        Raises:
            NotFound: there is none of this name.
        """
        return self._database.write(_count, name, more, news)

    def stop(self, name: RolloutName, *, who: str, why: str) -> Rollout:
        """End it; the alias stays. One that has ended stays as it is.

        Raises:
            NotFound: there is none of this name.
        """
        return self._database.write(_stop, name, who, why)


def _start(tx: Transaction, draft: RolloutDraft, who: str, why: str) -> Rollout:
    table, alias = schema.rollouts, draft.alias
    if draft.candidate.model != alias.model:
        raise InvalidSpec(f"{draft.candidate} is not a version of models/{alias.model}")
    tx.serialize("rollouts")
    versions.get(tx, draft.candidate)
    pointed = aliases.find(tx, alias)
    if pointed is None:
        raise AliasNotFound(str(alias))
    if pointed.version == draft.candidate.version:
        told = f"{alias} points at {draft.candidate} already; try another, see ListModelVersions"
        raise InvalidSpec(told)
    running = tx.row(
        sa.select(table).where(
            table.c.model == alias.model,
            table.c.alias == alias.alias,
            table.c.state == RolloutState.RUNNING.value,
        )
    )
    if running is not None:
        name = RolloutName(alias.model, running.id)
        if not _overtaken(running, pointed):
            raise RolloutRunning(str(name))
        _end(tx, name, RolloutState.STOPPED, MOVED)
    row = tx.row(
        sa.insert(table)
        .values(
            id=new_id(tx.now),
            model=alias.model,
            alias=alias.alias,
            candidate=draft.candidate.version,
            incumbent=pointed.version,
            move=pointed.move,
            mode=draft.mode.value,
            share=draft.share,
            limits=draft.limits.model_dump(mode="json"),
            promote=draft.promote,
            state=RolloutState.RUNNING.value,
            counts=dataclasses.asdict(Counts()),
            reason="",
            created_at=tx.now,
        )
        .returning(*table.c)
    )
    begun = _rollout_of(row)
    detail = f"{draft.mode.value} of {draft.candidate} at {draft.share:g} for {alias}"
    audit.note(tx, "start of a rollout", begun.name, detail=detail, who=who, why=why)
    return begun


def _count(tx: Transaction, name: RolloutName, more: Counts, news: str | None) -> Rollout:
    tx.serialize("rollouts")
    row = _find(tx, name)
    found = _rollout_of(row)
    counts = found.counts + more
    table = schema.rollouts
    values: dict[str, Any] = {"counts": dataclasses.asdict(counts)}
    if news is not None and found.state is RolloutState.RUNNING:
        values["reason"] = line(news)
    tx.run(sa.update(table).where(table.c.id == name.rollout).values(**values))
    if found.state is not RolloutState.RUNNING:
        return _rollout_of(_find(tx, name))
    if _overtaken(row, aliases.find(tx, found.draft.alias)):
        return _end(tx, name, RolloutState.STOPPED, MOVED)
    if _unknown_limits(row):
        return _rollout_of(_find(tx, name))  # for a newer server to weigh
    state, reason = weigh(found.draft, counts)
    if state is RolloutState.RUNNING:
        return _rollout_of(_find(tx, name))
    if state is RolloutState.PROMOTED:
        aliases.set_to(tx, found.draft.alias, found.draft.candidate, who=str(name), why=reason)
    return _end(tx, name, state, reason)


def _stop(tx: Transaction, name: RolloutName, who: str, why: str) -> Rollout:
    tx.serialize("rollouts")
    found = _rollout_of(_find(tx, name))
    if found.state is not RolloutState.RUNNING:
        return found
    return _end(tx, name, RolloutState.STOPPED, why or "stopped", who=who)


def _end(
    tx: Transaction, name: RolloutName, state: RolloutState, reason: str, *, who: str = ""
) -> Rollout:
    table = schema.rollouts
    row = tx.row(
        sa.update(table)
        .where(table.c.id == name.rollout)
        .values(state=state.value, reason=line(reason), ended_at=tx.now)
        .returning(*table.c)
    )
    audit.note(
        tx, "end of a rollout", name, detail=state.value, who=who or str(name), why=line(reason)
    )
    return _rollout_of(row)


def _find(tx: Transaction, name: RolloutName) -> sa.Row[Any]:
    table = schema.rollouts
    row = tx.row(sa.select(table).where(table.c.model == name.model, table.c.id == name.rollout))
    if row is None:
        raise NotFound(str(name), see="ListRollouts")
    return row


def _page(tx: Transaction, model: ModelName, page_size: int, token: str) -> Page[Rollout]:
    table, limit, before = schema.rollouts, page_limit(page_size), page_number(token)
    query = sa.select(table).where(table.c.model == model.model)
    if before is not None:
        query = query.where(table.c.number < before)
    rows = tx.rows(query.order_by(table.c.number.desc()).limit(limit + 1))
    return Page(
        items=tuple(_rollout_of(row) for row in rows[:limit]),
        next_token=str(rows[limit - 1].number) if len(rows) > limit else "",
    )


def _running(tx: Transaction) -> tuple[list[Rollout], list[RolloutName]]:
    """Those that go on, and those that the alias has left."""
    table = schema.rollouts
    query = sa.select(table).where(table.c.state == RolloutState.RUNNING.value)
    rows = tx.rows(query.order_by(table.c.number))
    running, overtaken = [], []
    for row, pointed in zip(rows, _pointers(tx, rows), strict=True):
        if _overtaken(row, pointed):
            overtaken.append(RolloutName(row.model, row.id))
        elif not _unknown_limits(row):
            running.append(_rollout_of(row))
    return running, overtaken


def _pointers(tx: Transaction, rows: Sequence[Any]) -> list[Any]:
    """The row of each rollout's alias, None where that is gone."""
    if not rows:
        return []
    table = schema.aliases
    models = {row.model for row in rows}
    found = tx.rows(sa.select(table).where(table.c.model.in_(models)))
    at = {(alias.model, alias.id): alias for alias in found}
    return [at.get((row.model, row.alias)) for row in rows]


def _overtaken(row: Any, pointed: Any) -> bool:
    """Whether the alias has moved since the rollout began, be it back to where it was.

    What was seen before and after belongs to two trials. An older Acclimate kept no move.
    """
    if pointed is None or pointed.version != row.incumbent:
        return True
    return row.move is not None and bool(pointed.move != row.move)


def _unknown_limits(row: Any) -> tuple[str, ...]:
    return known(RolloutLimits, row.limits).unknown


def _rollout_of(row: Any) -> Rollout:
    """A row of ``rollouts`` as what it stands for."""
    return Rollout(
        name=RolloutName(row.model, row.id),
        draft=RolloutDraft(
            alias=AliasName(row.model, row.alias),
            candidate=VersionName(row.model, row.candidate),
            mode=RolloutMode(row.mode),
            share=row.share,
            limits=known(RolloutLimits, row.limits).value,
            promote=row.promote,
        ),
        incumbent=VersionName(row.model, row.incumbent),
        state=RolloutState(row.state),
        counts=Counts(**row.counts),
        reason=row.reason,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )
