"""How often the verify images were asked about candidates: what the guard's level is spent over.

The looks of one target domain are a family. Whoever tries again there, until something
passes, knows what the last candidate got on the same images; whoever adapts to another
domain learns nothing from that (docs/guard.md says what is promised, and what is not).
"""

from __future__ import annotations

import sqlalchemy as sa

from acclimate_service.domain.model import Reduced
from acclimate_service.domain.names import DomainName, ModelName
from acclimate_service.store import schema
from acclimate_service.store.engine import Transaction


def looks(tx: Transaction, model: ModelName, target: DomainName | None) -> int:
    """How many of *model*'s jobs that learned *target* were judged; None: its first versions."""
    count: int = tx.scalar(
        sa.select(sa.func.count(sa.distinct(schema.looks.c.job))).where(*_family(model, target))
    )
    return count


def variant_looks(
    tx: Transaction, model: ModelName, target: DomainName | None, variant: Reduced
) -> int:
    """How many of these jobs also judged a *variant* of this kind beside their version."""
    jobs = schema.jobs
    judged = sa.select(schema.looks.c.job).where(*_family(model, target))
    rows = tx.rows(sa.select(jobs.c.summary).where(jobs.c.id.in_(judged)))
    tried = (one for row in rows for one in row.summary.get("variants", ()))
    return sum(one["variant"] == variant and one["decision"] is not None for one in tried)


def _family(model: ModelName, target: DomainName | None) -> tuple[sa.ColumnElement[bool], ...]:
    """Which rows of ``looks`` are those of one target domain."""
    table, jobs = schema.looks, schema.jobs
    learned = jobs.c.target == (None if target is None else target.domain)
    return (table.c.job == jobs.c.id, table.c.model == model.model, learned)
