"""How each model's JPEGs are decoded; those that are there keep decoding them in full."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("decoding", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("models", "decoding")
