"""A job's look may be in two rows of a domain: its own, and one without a number.

A newer worker writes a look down before it is taken, an older one when the job ends. Who
ended a job that the other had begun to judge broke the key of the two, and the job failed.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("looks") as looks:
        looks.drop_constraint("pk_looks", type_="primary")
        looks.create_unique_constraint("uq_looks_job", ["job", "domain", "number"])


def downgrade() -> None:
    table = sa.table("looks", sa.column("job"), sa.column("domain"), sa.column("number"))
    numbered = table.alias()
    its_own = sa.exists().where(
        numbered.c.job == table.c.job,
        numbered.c.domain == table.c.domain,
        numbered.c.number.is_not(None),
    )
    op.execute(sa.delete(table).where(table.c.number.is_(None), its_own))
    with op.batch_alter_table("looks") as looks:
        looks.drop_constraint("uq_looks_job", type_="unique")
        looks.create_primary_key("pk_looks", ["job", "domain"])
