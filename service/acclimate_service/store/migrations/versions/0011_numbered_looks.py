"""Which look at the holdouts a job's is, and what it asked: a question repeated is none spent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Null in the rows that are there: each of their jobs counts as a look of its own.
    op.add_column("looks", sa.Column("number", sa.BigInteger()))
    op.add_column("looks", sa.Column("asked", sa.Text()))


def downgrade() -> None:
    op.drop_column("looks", "asked")
    op.drop_column("looks", "number")
