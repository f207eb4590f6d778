"""The order in which tokens were made, which no clock can turn round."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The default is only for the rows that are there, which get their places at once.
    op.add_column(
        "tokens", sa.Column("number", sa.BigInteger(), nullable=False, server_default="0")
    )
    # Their dates are all that is known of them. Each has a revision of its own, so that
    # the next one, from which new tokens count on, is larger than all of these.
    op.execute(
        "UPDATE tokens SET number = (SELECT count(*) FROM tokens AS earlier"
        " WHERE (earlier.created_at, earlier.id) <= (tokens.created_at, tokens.id))"
    )


def downgrade() -> None:
    op.drop_column("tokens", "number")
