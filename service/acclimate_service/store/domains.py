"""Domains: where images come from, the uploads into them, and what is to be had of them."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.access import EVERYTHING, Scope
from acclimate_service.domain.errors import AlreadyExists, NotFound, RequestIdReused
from acclimate_service.domain.examples import Domain, Example, LabeledBatch, Role, Split
from acclimate_service.domain.names import BatchName, DomainName
from acclimate_service.store import audit, batches, intake, mistakes, schema
from acclimate_service.store.blobs import Blobs
from acclimate_service.store.engine import Database, Transaction, line
from acclimate_service.store.intake import Outcome, Received
from acclimate_service.store.pages import Page, in_scope, page_limit


class Domains:
    """The domains of a store. Every method is one transaction."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def create(
        self, name: DomainName, labels: Sequence[str], description: str = "", request_id: str = ""
    ) -> Domain:
        """A new domain; the same request repeated gives the same one.

        Raises:
            AlreadyExists: the id is taken.
            RequestIdReused: this request_id made another domain.
            StoreUnavailable: the database is out of reach.
        """
        return self._database.write(_create, name, tuple(labels), line(description), request_id)

    def get(self, name: DomainName) -> Domain:
        """The domain.

        Raises:
            NotFound: there is none of this name.
            StoreUnavailable: the database is out of reach.
        """
        return self._database.read(_get, name)

    def delete(self, name: DomainName) -> None:
        """See :func:`~acclimate_service.store.mistakes.delete_domain`."""
        self._database.write(mistakes.delete_domain, name)

    def list(
        self, page_size: int = 0, page_token: str = "", *, within: Scope = EVERYTHING
    ) -> Page[Domain]:
        """The domains *within* a scope, by name."""
        return self._database.read(_page, page_size, page_token, within)

    # ── uploads ──────────────────────────────────────────────────────────────

    def begin_batch(self, domain: DomainName, role: Role, *, request_id: str) -> LabeledBatch:
        """See :func:`~acclimate_service.store.batches.begin`."""
        return self._database.write(batches.begin, domain, role, request_id)

    def add(self, batch: BatchName, received: Sequence[Received]) -> builtins.list[Outcome]:
        """See :func:`~acclimate_service.store.intake.add`. Store the blobs first."""
        return self._database.write(intake.add, batch, received, self._blobs.exists)

    def commit_batch(self, batch: BatchName, *, count: int, chain: str) -> LabeledBatch:
        """See :func:`~acclimate_service.store.batches.commit`."""
        return self._database.write(batches.commit, batch, count, chain)

    def get_batch(self, batch: BatchName) -> LabeledBatch:
        """See :func:`~acclimate_service.store.batches.get`."""
        return self._database.read(batches.get, batch)

    def delete_batch(self, batch: BatchName) -> None:
        """See :func:`~acclimate_service.store.mistakes.delete_batch`."""
        self._database.write(mistakes.delete_batch, batch)

    def list_batches(
        self, domain: DomainName, page_size: int = 0, page_token: str = ""
    ) -> Page[LabeledBatch]:
        """The domain's batches, newest first, open ones included."""
        return self._database.read(batches.page, domain, page_size, page_token)

    def refusals(
        self, batch: BatchName, *, after: int = -1, limit: int = 1000
    ) -> builtins.list[Outcome]:
        """See :func:`~acclimate_service.store.intake.refusals`."""
        return self._database.read(intake.refusals, batch, after, limit)

    # ── what jobs read ───────────────────────────────────────────────────────

    def examples(
        self,
        domain: DomainName,
        *,
        splits: Collection[Split],
        roles: Collection[Role] | None = None,
        up_to: int | None = None,
    ) -> builtins.list[Example]:
        """The committed examples, ordered by content, so that every reader sees one order.

        What is to be trained on is checked against the holdouts of all domains once
        more: an image in any of them is left out. With *up_to*, as a job's
        ``reads_up_to``, what was committed later does not count.
        """
        return self._database.read(_examples, domain, splits, roles, up_to)

    def counts(self, domain: DomainName) -> dict[str, dict[Split, int]]:
        """How many committed examples there are of each label, by split; zeros included.

        Raises:
            NotFound: there is no such domain.
        """
        return self._database.read(_counts, domain)

    def data_digest(self, domain: DomainName) -> str:
        """The digest over all committed examples, see :func:`data_digest`."""
        return data_digest(
            example.content for example in self.examples(domain, splits=tuple(Split))
        )


def data_digest(contents: Iterable[str]) -> str:
    """The sha256, in hex, over the sorted content digests (as in ``Manifest.domains``)."""
    return hashlib.sha256("".join(sorted(contents)).encode()).hexdigest()


def _create(
    tx: Transaction,
    name: DomainName,
    labels: tuple[str, ...],
    description: str,
    request_id: str,
) -> Domain:
    table = schema.domains
    if request_id:
        row = tx.row(sa.select(table).where(table.c.request_id == request_id))
        if row is not None:
            same = (row.id, tuple(row.labels), row.description)
            if same != (name.domain, labels, description):
                raise RequestIdReused(request_id)
            return _domain_of(row)
    if tx.row(sa.select(table.c.id).where(table.c.id == name.domain)) is not None:
        raise AlreadyExists(str(name))
    row = tx.row(
        sa.insert(table)
        .values(
            id=name.domain,
            labels=list(labels),
            description=description,
            request_id=request_id or None,
            created_at=tx.now,
        )
        .returning(*table.c)
    )
    audit.note(tx, "CreateDomain", name)
    return _domain_of(row)


def _get(tx: Transaction, name: DomainName) -> Domain:
    row = tx.row(sa.select(schema.domains).where(schema.domains.c.id == name.domain))
    if row is None:
        raise NotFound(str(name), see="ListDomains")
    return _domain_of(row)


def _page(tx: Transaction, page_size: int, token: str, within: Scope) -> Page[Domain]:
    table, limit = schema.domains, page_limit(page_size)
    query = sa.select(table).where(table.c.id > token, in_scope(table.c.id, within))
    rows = tx.rows(query.order_by(table.c.id).limit(limit + 1))
    return Page(
        items=tuple(_domain_of(row) for row in rows[:limit]),
        next_token=rows[limit - 1].id if len(rows) > limit else "",
    )


def _domain_of(row: Any) -> Domain:
    return Domain(
        name=DomainName(row.id),
        labels=tuple(row.labels),
        description=row.description,
        created_at=row.created_at,
    )


def _examples(
    tx: Transaction,
    domain: DomainName,
    splits: Collection[Split],
    roles: Collection[Role] | None,
    up_to: int | None,
) -> list[Example]:
    table, held = schema.examples, schema.examples.alias()
    query = sa.select(table).where(
        table.c.domain == domain.domain,
        table.c.committed,
        table.c.split.in_([split.value for split in splits]),
        sa.or_(
            table.c.split != Split.TRAIN.value,
            ~sa.exists().where(
                held.c.content == table.c.content, held.c.split != Split.TRAIN.value
            ),
        ),
    )
    if up_to is not None:
        uploads = schema.batches
        query = query.where(
            table.c.batch.not_in(
                sa.select(uploads.c.id).where(
                    uploads.c.domain == domain.domain, uploads.c.commit_number > up_to
                )
            )
        )
    if roles is not None:
        query = query.where(table.c.role.in_([role.value for role in roles]))
    return [_example_of(row) for row in tx.rows(query.order_by(table.c.content))]


def _example_of(row: Any) -> Example:
    domain = DomainName(row.domain)
    return Example(
        domain=domain,
        batch=BatchName(row.domain, row.batch),
        content=row.content,
        blob=row.blob,
        label=row.label,
        role=Role(row.role),
        split=Split(row.split),
        id=row.id,
        tags=tuple(row.tags),
        phash=row.phash,
    )


def _counts(tx: Transaction, name: DomainName) -> dict[str, dict[Split, int]]:
    table = schema.examples
    counts = {label: dict.fromkeys(Split, 0) for label in _get(tx, name).labels}
    for label, split, count in tx.rows(
        sa.select(table.c.label, table.c.split, sa.func.count())
        .where(table.c.domain == name.domain, table.c.committed)
        .group_by(table.c.label, table.c.split)
    ):
        counts[label][Split(split)] = count
    return counts
