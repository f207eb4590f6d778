"""How often the verify images were asked about candidates: what the guard's level is spent over.

The looks of one target domain are a family. Whoever tries again there, until something
passes, knows what the last candidate got on the same images; whoever adapts to another
domain learns nothing from that (docs/guard.md says what is promised, and what is not).

A look is taken before anything is seen, so that two workers never have the same one, and
a job that sees its numbers and is cancelled has spent it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.job import Lease
from acclimate_service.domain.model import Reduced
from acclimate_service.domain.names import DomainName, JobName, ModelName
from acclimate_service.store import leases, schema
from acclimate_service.store.engine import Transaction


@dataclass(frozen=True, kw_only=True)
class Look:
    """A job's right to be judged. ``before`` counts the family's looks that came before it.

    ``same_as`` is the job that asked the same: this is its look, and none was spent.
    """

    before: int
    same_as: JobName | None = None


def take(tx: Transaction, lease: Lease, domains: Collection[DomainName], asked: str) -> Look:
    """Take the next look at the verify images of *domains*; that of who asked the same, if any.

    *asked* is a digest over all that the answer hangs on. Repeated, the same look.

    Raises:
        LeaseLost: another worker holds the job, or it ended.
    """
    tx.serialize("looks")
    table, jobs = schema.looks, schema.jobs
    job = tx.row(sa.select(jobs).where(leases.held(lease)).with_for_update())
    if job is None:
        raise leases.lost(lease)
    target = None if job.target is None else DomainName(job.target)
    spent = _spent(tx, ModelName(job.model), target)
    same = next((row for row in spent if row.asked == asked), None)
    number = _next(spent) if same is None else same.number
    tx.run(sa.delete(table).where(table.c.job == job.id))
    row = {"job": job.id, "model": job.model, "number": number, "asked": asked}
    tx.run(sa.insert(table), [row | {"domain": d.domain} for d in dict.fromkeys(domains)])
    first = None if same is None or same.job == job.id else JobName(same.job)
    return Look(before=number, same_as=first)


def looks(tx: Transaction, model: ModelName, target: DomainName | None) -> int:
    """How many looks the candidates for *target* have taken; None: first versions."""
    return _next(_spent(tx, model, target))


def variant_looks(
    tx: Transaction, model: ModelName, target: DomainName | None, variant: Reduced, before: int
) -> int:
    """In how many of the family's looks *before* that one a *variant* of this kind was judged."""
    jobs = schema.jobs
    earlier = {
        row.job: row.job if row.number is None else row.number
        for row in _spent(tx, model, target)
        if row.number is None or row.number < before
    }
    rows = tx.rows(sa.select(jobs.c.id, jobs.c.summary).where(jobs.c.id.in_(earlier)))
    return len(
        {
            earlier[row.id]
            for row in rows
            for one in row.summary.get("variants", ())
            if one["variant"] == variant and one["decision"] is not None
        }
    )


def _spent(tx: Transaction, model: ModelName, target: DomainName | None) -> Sequence[sa.Row[Any]]:
    """The looks of one target domain, a row for each job, the oldest job first."""
    table, jobs = schema.looks, schema.jobs
    learned = jobs.c.target == (None if target is None else target.domain)
    rows = tx.rows(
        sa.select(table.c.job, table.c.number, table.c.asked, jobs.c.number.label("place"))
        .join(jobs, jobs.c.id == table.c.job)
        .where(jobs.c.model == model.model, learned)
        .distinct()
        .order_by(jobs.c.number)
    )
    spent: dict[str, sa.Row[Any]] = {}
    for row in rows:  # two of a job that an older worker ended after a newer one looked
        if row.number is not None or row.job not in spent:
            spent[row.job] = row
    return list(spent.values())


def _next(spent: Sequence[sa.Row[Any]]) -> int:
    """The number of the look that follows; those of an older Acclimate have none of their own."""
    numbers = {row.number for row in spent if row.number is not None}
    without = sum(row.number is None for row in spent)
    return max(without + len(numbers), max(numbers, default=-1) + 1)
