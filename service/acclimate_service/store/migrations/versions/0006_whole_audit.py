"""The audit log refuses what its first triggers did not see.

PostgreSQL's TRUNCATE takes lines away without deleting a row. SQLite's INSERT OR REPLACE
takes the place of a line without any trigger of a deletion.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()"
        )
    else:
        op.execute(
            "CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit"
            " WHEN EXISTS (SELECT 1 FROM audit WHERE number = NEW.number)"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER audit_no_truncate ON audit")
    else:
        op.execute("DROP TRIGGER audit_no_replace")
