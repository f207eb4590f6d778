"""Uploads are numbered as they are committed, and a job reads up to the number it began at.

A job that was resumed read what had been uploaded meanwhile too, so that no step it had
finished counted any more. Both are null where an older Acclimate wrote the row: such an
upload counts for every job, and such a job reads all that there is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("commit_number", sa.BigInteger()))
    op.add_column("jobs", sa.Column("reads_up_to", sa.BigInteger()))
    op.create_index("ix_batches_commit_number", "batches", ["commit_number"])


def downgrade() -> None:
    op.drop_index("ix_batches_commit_number", "batches")
    op.drop_column("jobs", "reads_up_to")
    op.drop_column("batches", "commit_number")
