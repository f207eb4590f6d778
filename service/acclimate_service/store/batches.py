"""One upload: begun, received group by group (``intake``), committed whole or not at all.

The functions take a transaction; :class:`~acclimate_service.store.domains.Domains`
gives them one.
"""

from __future__ import annotations

import datetime as dt
import secrets
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.errors import (
    EmptyBatch,
    NotFound,
    RequestIdReused,
    UploadIncomplete,
)
from acclimate_service.domain.examples import EMPTY_CHAIN, LabeledBatch, Role
from acclimate_service.domain.job import JobState
from acclimate_service.domain.names import BatchName, DomainName
from acclimate_service.store import audit, schema
from acclimate_service.store.engine import Transaction
from acclimate_service.store.ids import new_id
from acclimate_service.store.pages import Page, page_limit, page_number

LOCK = "examples"  # one transaction at a time decides what an image may be used for


def begin(tx: Transaction, domain: DomainName, role: Role, request_id: str) -> LabeledBatch:
    """A new batch, or the one this *request_id* began before, open or committed.

    Raises:
        NotFound: there is no such domain.
        RequestIdReused: that batch has another domain or role.
    """
    request_id = request_id or secrets.token_hex(16)
    row = tx.row(sa.select(schema.batches).where(schema.batches.c.request_id == request_id))
    if row is not None:
        if (row.domain, row.role) != (domain.domain, role.value):
            raise RequestIdReused(request_id)
        return batch_of(row)
    if tx.row(sa.select(schema.domains.c.id).where(schema.domains.c.id == domain.domain)) is None:
        raise NotFound(str(domain), see="ListDomains")
    row = tx.row(
        sa.insert(schema.batches)
        .values(
            id=new_id(tx.now),
            domain=domain.domain,
            role=role.value,
            request_id=request_id,
            committed=False,
            received=0,
            chain=EMPTY_CHAIN,
            accepted=0,
            duplicates=0,
            rejected=0,
            created_at=tx.now,
            touched_at=tx.now,
        )
        .returning(*schema.batches.c)
    )
    begun = batch_of(row)
    audit.note(tx, "UploadBatch", begun.name, detail="opened")
    return begun


def commit(tx: Transaction, name: BatchName, count: int, chain: str) -> LabeledBatch:
    """Make the batch visible, if exactly *count* examples with this *chain* arrived.

    Committing again what is committed gives the same batch.

    Raises:
        NotFound: there is no such batch; it may have expired.
        UploadIncomplete: what arrived is not what was sent.
        EmptyBatch: every example was rejected, or there was none.
    """
    tx.serialize(LOCK)
    batch = find(tx, name, lock=True)
    if (batch.received, batch.chain) != (count, chain):
        raise UploadIncomplete(
            f"{name} received {batch.received} examples and {count} were sent,"
            " or their digests differ; resume the upload with the same request_id",
            received=batch.received,
        )
    if batch.committed:
        return batch_of(batch)
    if batch.accepted + batch.duplicates == 0:
        raise EmptyBatch(batch.rejected)
    # A batch that was open beside this one may have been committed first: what both
    # hold (under the same label, see _judge) stays there and is a duplicate here.
    mine, others = schema.examples, schema.examples.alias()
    doubled = tx.run(
        sa.delete(mine).where(
            mine.c.batch == name.batch,
            sa.exists().where(
                others.c.domain == mine.c.domain,
                others.c.content == mine.c.content,
                others.c.committed,
            ),
        )
    )
    tx.run(sa.update(mine).where(mine.c.batch == name.batch).values(committed=True))
    table = schema.batches
    row = tx.row(
        sa.update(table)
        .where(table.c.id == name.batch)
        .values(
            committed=True,
            accepted=table.c.accepted - doubled,
            duplicates=table.c.duplicates + doubled,
            touched_at=tx.now,
            commit_number=last_commit(tx) + 1,
        )
        .returning(*table.c)
    )
    committed = batch_of(row)
    audit.note(tx, "UploadBatch", name, detail=f"committed, {committed.accepted} accepted")
    return committed


def last_commit(tx: Transaction) -> int:
    """The number of the last upload committed, or at which a job that has not ended began.

    The jobs' count too, as the last upload may be taken back: its number is not given to
    the next one, which would then count for a job that had begun before.
    """
    jobs = schema.jobs
    unended = jobs.c.state.in_([state.value for state in JobState if not state.ended])
    committed = tx.scalar(sa.select(sa.func.max(schema.batches.c.commit_number)))
    begun = tx.scalar(sa.select(sa.func.max(jobs.c.reads_up_to)).where(unended))
    return max(committed or 0, begun or 0)


def expire(tx: Transaction, idle: dt.timedelta) -> tuple[BatchName, ...]:
    """Drop the open batches that nothing was added to for *idle*; their names."""
    tx.serialize(LOCK)
    table = schema.batches
    rows = tx.rows(
        sa.select(table.c.domain, table.c.id)
        .where(~table.c.committed, table.c.touched_at < tx.now - idle)
        .order_by(table.c.number)
    )
    for _, batch in rows:
        drop(tx, batch)
    return tuple(BatchName(domain, batch) for domain, batch in rows)


def get(tx: Transaction, name: BatchName) -> LabeledBatch:
    """The batch.

    Raises:
        NotFound: there is no such batch.
    """
    return batch_of(find(tx, name))


def page(tx: Transaction, domain: DomainName, page_size: int, token: str) -> Page[LabeledBatch]:
    """The domain's batches, newest first."""
    table, limit, before = schema.batches, page_limit(page_size), page_number(token)
    query = sa.select(table).where(table.c.domain == domain.domain)
    if before is not None:
        query = query.where(table.c.number < before)
    rows = tx.rows(query.order_by(table.c.number.desc()).limit(limit + 1))
    return Page(
        items=tuple(batch_of(row) for row in rows[:limit]),
        next_token=str(rows[limit - 1].number) if len(rows) > limit else "",
    )


def batch_of(row: Any) -> LabeledBatch:
    """A row of ``batches`` as what it stands for."""
    return LabeledBatch(
        name=BatchName(row.domain, row.id),
        role=Role(row.role),
        request_id=row.request_id,
        committed=row.committed,
        received=row.received,
        chain=row.chain,
        accepted=row.accepted,
        duplicates=row.duplicates,
        rejected=row.rejected,
        created_at=row.created_at,
    )


def find(tx: Transaction, name: BatchName, *, lock: bool = False) -> sa.Row[Any]:
    """The batch's row; with *lock*, nobody else writes it until the transaction ends.

    Raises:
        NotFound: there is no such batch.
    """
    table = schema.batches
    query = sa.select(table).where(table.c.id == name.batch, table.c.domain == name.domain)
    row = tx.row(query.with_for_update() if lock else query)
    if row is None:
        raise NotFound(str(name), see="ListLabeledBatches")
    return row


def drop(tx: Transaction, batch: str) -> None:
    """Delete a batch with all it received; whoever calls this knows that it may go."""
    tx.run(sa.delete(schema.examples).where(schema.examples.c.batch == batch))
    tx.run(sa.delete(schema.refusals).where(schema.refusals.c.batch == batch))
    tx.run(sa.delete(schema.batches).where(schema.batches.c.id == batch))
