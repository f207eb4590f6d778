"""The first tables: images, models, jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ORDINAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "alias_moves",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("previous", sa.Text(), nullable=True),
        sa.Column("back", sa.BigInteger(), nullable=True),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_alias_moves"),
    )
    op.create_index("ix_alias_moves_alias", "alias_moves", ["model", "alias"], unique=False)
    op.create_table(
        "domains",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_domains"),
        sa.UniqueConstraint("request_id", name="uq_domains_request_id"),
    )
    op.create_table(
        "batches",
        sa.Column("number", ORDINAL, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("committed", sa.Boolean(), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("accepted", sa.BigInteger(), nullable=False),
        sa.Column("duplicates", sa.BigInteger(), nullable=False),
        sa.Column("rejected", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("touched_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["domain"], ["domains.id"], name="fk_batches_domain"),
        sa.PrimaryKeyConstraint("number", name="pk_batches"),
        sa.UniqueConstraint("id", name="uq_batches_id"),
        sa.UniqueConstraint("request_id", name="uq_batches_request_id"),
    )
    op.create_index("ix_batches_domain", "batches", ["domain"], unique=False)
    op.create_table(
        "models",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("architecture", sa.JSON(), nullable=False),
        sa.Column("weights", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("preprocessing", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("source_domain", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("versions", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["source_domain"], ["domains.id"], name="fk_models_source_domain"),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("request_id", name="uq_models_request_id"),
    )
    op.create_table(
        "examples",
        sa.Column("number", ORDINAL, autoincrement=True, nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("batch", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("phash", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("committed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], name="fk_examples_batch"),
        sa.ForeignKeyConstraint(["domain"], ["domains.id"], name="fk_examples_domain"),
        sa.PrimaryKeyConstraint("number", name="pk_examples"),
        sa.UniqueConstraint("batch", "content", name="uq_examples_batch_content"),
        sa.UniqueConstraint("batch", "position", name="uq_examples_batch"),
    )
    op.create_index("ix_examples_blob", "examples", ["blob"], unique=False)
    op.create_index("ix_examples_content", "examples", ["content"], unique=False)
    op.create_index(
        "ix_examples_domain_content",
        "examples",
        ["domain", "content"],
        unique=True,
        sqlite_where=sa.column("committed"),
        postgresql_where=sa.column("committed"),
    )
    op.create_table(
        "jobs",
        sa.Column("number", ORDINAL, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("incumbent", sa.Text(), nullable=True),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("released", sa.Integer(), nullable=False),
        sa.Column("lease_from", sa.BigInteger(), nullable=True),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("failure_reason", sa.Text(), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.Column("report_html", sa.Text(), nullable=False),
        sa.Column("report_json", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.id"], name="fk_jobs_model"),
        sa.ForeignKeyConstraint(["source"], ["domains.id"], name="fk_jobs_source"),
        sa.ForeignKeyConstraint(["target"], ["domains.id"], name="fk_jobs_target"),
        sa.PrimaryKeyConstraint("number", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sa.UniqueConstraint("request_id", name="uq_jobs_request_id"),
    )
    op.create_index("ix_jobs_model", "jobs", ["model"], unique=False)
    op.create_index("ix_jobs_state", "jobs", ["state"], unique=False)
    op.create_table(
        "refusals",
        sa.Column("batch", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], name="fk_refusals_batch"),
        sa.PrimaryKeyConstraint("batch", "position", name="pk_refusals"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.Column("blobs", sa.JSON(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_checkpoints_job"),
        sa.PrimaryKeyConstraint("job", "key", name="pk_checkpoints"),
    )
    op.create_table(
        "events",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_events_job"),
        sa.PrimaryKeyConstraint("job", "sequence", name="pk_events"),
    )
    op.create_table(
        "looks",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["domain"], ["domains.id"], name="fk_looks_domain"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_looks_job"),
        sa.PrimaryKeyConstraint("job", "domain", name="pk_looks"),
    )
    op.create_index("ix_looks_model", "looks", ["model", "domain"], unique=False)
    op.create_table(
        "versions",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("onnx", sa.Text(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("forced_by", sa.Text(), nullable=False),
        sa.Column("forced_reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_versions_job"),
        sa.ForeignKeyConstraint(
            ["model", "parent"], ["versions.model", "versions.id"], name="fk_versions_parent"
        ),
        sa.ForeignKeyConstraint(["model"], ["models.id"], name="fk_versions_model"),
        sa.PrimaryKeyConstraint("model", "id", name="pk_versions"),
        sa.UniqueConstraint("job", name="uq_versions_job"),
    )
    op.create_index("ix_versions_onnx", "versions", ["onnx"], unique=False)
    op.create_index("ix_versions_weights", "versions", ["weights"], unique=False)
    op.create_table(
        "aliases",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("previous", sa.Text(), nullable=True),
        sa.Column("move", sa.BigInteger(), nullable=False),
        sa.Column("moved_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "previous"], ["versions.model", "versions.id"], name="fk_aliases_previous"
        ),
        sa.ForeignKeyConstraint(
            ["model", "version"], ["versions.model", "versions.id"], name="fk_aliases_version"
        ),
        sa.ForeignKeyConstraint(["model"], ["models.id"], name="fk_aliases_model"),
        sa.PrimaryKeyConstraint("model", "id", name="pk_aliases"),
    )


def downgrade() -> None:
    op.drop_table("aliases")
    op.drop_table("versions")
    op.drop_table("looks")
    op.drop_table("events")
    op.drop_table("checkpoints")
    op.drop_table("refusals")
    op.drop_table("jobs")
    op.drop_table("examples")
    op.drop_table("models")
    op.drop_table("batches")
    op.drop_table("domains")
    op.drop_table("alias_moves")
