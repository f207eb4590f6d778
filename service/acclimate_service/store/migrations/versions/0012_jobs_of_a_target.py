"""An index by which a model's jobs for one target are found, and their looks by them.

Through all looks of a model, of which every job takes one at every domain that it knows,
a thousand domains made it 2.5 s, beside which nothing else was written.
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_jobs_target", "jobs", ["target", "model"])


def downgrade() -> None:
    op.drop_index("ix_jobs_target", "jobs")
