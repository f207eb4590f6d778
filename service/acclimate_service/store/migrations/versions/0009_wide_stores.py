"""Indexes for stores of many domains and many jobs, which were read from end to end.

The index that holds the promise of one picture a domain is of committed rows alone, and
SQLite takes such a one only for a query that repeats its very words.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_examples_domain", "examples", ["domain", "committed", "label", "split"])
    op.create_index("ix_jobs_kind", "jobs", ["kind", "state"])


def downgrade() -> None:
    op.drop_index("ix_jobs_kind", "jobs")
    op.drop_index("ix_examples_domain", "examples")
