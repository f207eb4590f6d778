"""From which move of its alias a rollout began: it may have moved away, and back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Null in the rows that are there: what they began from is not known any more.
    op.add_column("rollouts", sa.Column("move", sa.BigInteger()))


def downgrade() -> None:
    op.drop_column("rollouts", "move")
