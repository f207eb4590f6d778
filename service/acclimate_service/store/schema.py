"""The tables. Ids are slugs, not full names; moments are whole microseconds since 1970, UTC.

Migrations (``migrations/versions``) make these tables; a test holds both equal.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Instant(sa.types.TypeDecorator[dt.datetime]):
    """A moment, as an integer that both databases compare and keep exactly."""

    impl = sa.BigInteger
    cache_ok = True

    # SQLAlchemy passes the dialect by position; both of ours take the same integer.

    def process_bind_param(self, value: dt.datetime | None, _dialect: sa.Dialect) -> int | None:
        """Whole microseconds since 1970."""
        return None if value is None else (value - EPOCH) // dt.timedelta(microseconds=1)

    def process_result_value(self, value: Any, _dialect: sa.Dialect) -> dt.datetime | None:
        """The moment, in UTC."""
        return None if value is None else EPOCH + dt.timedelta(microseconds=int(value))


def ordinal() -> sa.Column[int]:
    """A primary key that counts rows in the order they were made."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column("number", kind, primary_key=True, autoincrement=True)


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

# ── images ───────────────────────────────────────────────────────────────────

domains = sa.Table(
    "domains",
    metadata,
    sa.Column("id", sa.Text(), primary_key=True),
    sa.Column("labels", sa.JSON(), nullable=False),
    sa.Column("description", sa.Text(), nullable=False),
    sa.Column("request_id", sa.Text(), unique=True),
    sa.Column("created_at", Instant(), nullable=False),
)

# An open batch is invisible to jobs; `received` and `chain` say where its upload resumes.
batches = sa.Table(
    "batches",
    metadata,
    ordinal(),
    sa.Column("id", sa.Text(), nullable=False, unique=True),
    sa.Column("domain", sa.Text(), sa.ForeignKey("domains.id"), nullable=False, index=True),
    sa.Column("role", sa.Text(), nullable=False),
    sa.Column("request_id", sa.Text(), nullable=False, unique=True),
    sa.Column("committed", sa.Boolean(), nullable=False),
    sa.Column("received", sa.BigInteger(), nullable=False),
    sa.Column("chain", sa.Text(), nullable=False),
    sa.Column("accepted", sa.BigInteger(), nullable=False),
    sa.Column("duplicates", sa.BigInteger(), nullable=False),
    sa.Column("rejected", sa.BigInteger(), nullable=False),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Column("touched_at", Instant(), nullable=False),
    # Grows with every commit, in their order; null while it is open, and in older rows.
    sa.Column("commit_number", sa.BigInteger(), index=True),
)

examples = sa.Table(
    "examples",
    metadata,
    ordinal(),
    sa.Column("domain", sa.Text(), sa.ForeignKey("domains.id"), nullable=False),
    sa.Column("batch", sa.Text(), sa.ForeignKey("batches.id"), nullable=False),
    sa.Column("position", sa.BigInteger(), nullable=False),
    sa.Column("id", sa.Text(), nullable=False),
    sa.Column("content", sa.Text(), nullable=False, index=True),
    sa.Column("blob", sa.Text(), nullable=False, index=True),
    sa.Column("phash", sa.Text(), nullable=False),
    sa.Column("label", sa.Text(), nullable=False),
    sa.Column("role", sa.Text(), nullable=False),
    sa.Column("split", sa.Text(), nullable=False),
    sa.Column("tags", sa.JSON(), nullable=False),
    # The batch's, repeated here so that the next index can hold the promise.
    sa.Column("committed", sa.Boolean(), nullable=False),
    sa.UniqueConstraint("batch", "position"),
    sa.UniqueConstraint("batch", "content", name="uq_examples_batch_content"),
    # What a domain holds, and how many of each label for what: read by every job.
    sa.Index("ix_examples_domain", "domain", "committed", "label", "split"),
)
# A domain holds a picture once. Two open batches may both hold it: either may never
# be committed, and then the other's acknowledgement must still be true.
sa.Index(
    "ix_examples_domain_content",
    examples.c.domain,
    examples.c.content,
    unique=True,
    sqlite_where=examples.c.committed,
    postgresql_where=examples.c.committed,
)

# What an upload refused, so that a resumed one can still say which and why.
refusals = sa.Table(
    "refusals",
    metadata,
    sa.Column("batch", sa.Text(), sa.ForeignKey("batches.id"), primary_key=True),
    sa.Column("position", sa.BigInteger(), primary_key=True),
    sa.Column("id", sa.Text(), nullable=False),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("message", sa.Text(), nullable=False),
)

# ── models ───────────────────────────────────────────────────────────────────

models = sa.Table(
    "models",
    metadata,
    sa.Column("id", sa.Text(), primary_key=True),
    sa.Column("architecture", sa.JSON(), nullable=False),
    sa.Column("weights", sa.JSON(), nullable=False),
    sa.Column("labels", sa.JSON(), nullable=False),
    sa.Column("preprocessing", sa.JSON(none_as_null=True)),
    # How its JPEGs are decoded. Apart from the rest of the preprocessing, which may not be
    # known yet; null, as older servers leave it, is "full".
    sa.Column("decoding", sa.Text()),
    sa.Column("source_domain", sa.Text(), sa.ForeignKey("domains.id")),
    sa.Column("guard", sa.JSON(none_as_null=True)),  # the policy that jobs take over
    sa.Column("request_id", sa.Text(), unique=True),
    sa.Column("versions", sa.Integer(), nullable=False),  # ever made: ids are never reused
    sa.Column("created_at", Instant(), nullable=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("model", sa.Text(), sa.ForeignKey("models.id"), primary_key=True),
    sa.Column("id", sa.Text(), primary_key=True),
    sa.Column("number", sa.Integer(), nullable=False),
    sa.Column("parent", sa.Text()),
    # Unique: whatever dies and is retried, a job makes at most one version.
    sa.Column("job", sa.Text(), sa.ForeignKey("jobs.id"), nullable=False, unique=True),
    sa.Column("origin", sa.Text(), nullable=False),
    sa.Column("manifest", sa.JSON(), nullable=False),
    sa.Column("onnx", sa.Text(), nullable=False, index=True),  # blobs, as in the manifest
    sa.Column("weights", sa.Text(), nullable=False, index=True),
    sa.Column("forced_by", sa.Text(), nullable=False),
    sa.Column("forced_reason", sa.Text(), nullable=False),
    sa.Column("created_at", Instant(), nullable=False),
    sa.ForeignKeyConstraint(
        ["model", "parent"], ["versions.model", "versions.id"], name="fk_versions_parent"
    ),
)

aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("model", sa.Text(), sa.ForeignKey("models.id"), primary_key=True),
    sa.Column("id", sa.Text(), primary_key=True),
    sa.Column("version", sa.Text(), nullable=False),
    sa.Column("previous", sa.Text()),
    sa.Column("move", sa.BigInteger(), nullable=False),  # the last one, in alias_moves
    sa.Column("moved_at", Instant(), nullable=False),
    sa.ForeignKeyConstraint(
        ["model", "version"], ["versions.model", "versions.id"], name="fk_aliases_version"
    ),
    sa.ForeignKeyConstraint(
        ["model", "previous"], ["versions.model", "versions.id"], name="fk_aliases_previous"
    ),
)

# Append-only. Numbers are given in the order of commits, so that a replica that has
# seen number n asks for what is above n and misses nothing.
alias_moves = sa.Table(
    "alias_moves",
    metadata,
    sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("model", sa.Text(), nullable=False),
    sa.Column("alias", sa.Text(), nullable=False),
    sa.Column("version", sa.Text()),  # NULL: the alias was deleted
    sa.Column("previous", sa.Text()),
    sa.Column("back", sa.BigInteger()),  # the older move that a rollback returns to
    sa.Column("who", sa.Text(), nullable=False),
    sa.Column("why", sa.Text(), nullable=False),
    sa.Column("at", Instant(), nullable=False),
    sa.Index("ix_alias_moves_alias", "model", "alias"),
)

# Trials of a version on an alias's traffic; `counts` is summed over all servers.
rollouts = sa.Table(
    "rollouts",
    metadata,
    ordinal(),
    sa.Column("id", sa.Text(), nullable=False, unique=True),
    sa.Column("model", sa.Text(), sa.ForeignKey("models.id"), nullable=False, index=True),
    sa.Column("alias", sa.Text(), nullable=False),
    sa.Column("candidate", sa.Text(), nullable=False),
    sa.Column("incumbent", sa.Text(), nullable=False),
    # The alias's last move when it began; null where an older Acclimate began it.
    sa.Column("move", sa.BigInteger()),
    sa.Column("mode", sa.Text(), nullable=False),
    sa.Column("share", sa.Float(), nullable=False),
    sa.Column("limits", sa.JSON(), nullable=False),
    sa.Column("promote", sa.Boolean(), nullable=False),
    sa.Column("state", sa.Text(), nullable=False, index=True),
    sa.Column("counts", sa.JSON(), nullable=False),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Column("ended_at", Instant()),
)

# ── jobs ─────────────────────────────────────────────────────────────────────

jobs = sa.Table(
    "jobs",
    metadata,
    ordinal(),
    sa.Column("id", sa.Text(), nullable=False, unique=True),
    sa.Column("request_id", sa.Text(), unique=True),
    sa.Column("kind", sa.Text(), nullable=False),
    sa.Column("model", sa.Text(), sa.ForeignKey("models.id"), nullable=False, index=True),
    sa.Column("source", sa.Text(), sa.ForeignKey("domains.id")),
    sa.Column("target", sa.Text(), sa.ForeignKey("domains.id")),
    sa.Column("incumbent", sa.Text()),
    sa.Column("spec", sa.JSON(), nullable=False),
    sa.Column("state", sa.Text(), nullable=False, index=True),
    sa.Column("phase", sa.Text()),
    sa.Column("cancel_requested", sa.Boolean(), nullable=False),
    # The lease. (worker, attempt) fences every write: `attempt` only ever grows.
    sa.Column("worker", sa.Text(), nullable=False),
    sa.Column("attempt", sa.Integer(), nullable=False),
    sa.Column("released", sa.Integer(), nullable=False),  # attempts given back unspent
    # The last commit of an upload before its first attempt: later ones do not count for it.
    sa.Column("reads_up_to", sa.BigInteger()),
    sa.Column("lease_from", Instant()),
    sa.Column("lease_until", Instant()),
    sa.Column("events", sa.BigInteger(), nullable=False),  # how many there are
    sa.Column("version", sa.Text()),
    sa.Column("failure_reason", sa.Text()),
    sa.Column("failure_message", sa.Text()),
    sa.Column("summary", sa.JSON(), nullable=False),
    sa.Column("report_html", sa.Text(), nullable=False),
    sa.Column("report_json", sa.Text(), nullable=False),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Column("started_at", Instant()),
    sa.Column("ended_at", Instant()),
    sa.Index("ix_jobs_kind", "kind", "state"),  # counted whenever metrics are asked for
    sa.Index("ix_jobs_target", "target", "model"),  # by which looks are counted
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("job", sa.Text(), sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger(), primary_key=True),
    sa.Column("at", Instant(), nullable=False),
    sa.Column("kind", sa.Text(), nullable=False),
    sa.Column("phase", sa.Text()),
    sa.Column("message", sa.Text(), nullable=False),
    sa.Column("facts", sa.JSON(), nullable=False),
)

# What a resumed job reads; `blobs` maps a file's role to its digest.
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("job", sa.Text(), sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("key", sa.Text(), primary_key=True),
    sa.Column("record", sa.JSON(), nullable=False),
    sa.Column("blobs", sa.JSON(), nullable=False),
    sa.Column("at", Instant(), nullable=False),
)

# A verify set wears out with every candidate that is judged by it: they are counted.
# Jobs of one `number` asked the same (`asked` is its digest), which spends one look; both are
# null where an older Acclimate wrote the row, maybe beside one that a newer had written before:
# so there is no primary key.
looks = sa.Table(
    "looks",
    metadata,
    sa.Column("job", sa.Text(), sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("domain", sa.Text(), sa.ForeignKey("domains.id"), nullable=False),
    sa.Column("model", sa.Text(), nullable=False),
    sa.Column("number", sa.BigInteger()),
    sa.Column("asked", sa.Text()),
    sa.UniqueConstraint("job", "domain", "number", name="uq_looks_job"),
    sa.Index("ix_looks_model", "model", "domain"),
)

# ── who did what ─────────────────────────────────────────────────────────────

# Append-only, and held so by triggers (see the migration).
audit = sa.Table(
    "audit",
    metadata,
    ordinal(),
    sa.Column("at", Instant(), nullable=False),
    sa.Column("who", sa.Text(), nullable=False),
    sa.Column("action", sa.Text(), nullable=False),
    sa.Column("subject", sa.Text(), nullable=False, index=True),
    sa.Column("why", sa.Text(), nullable=False),
    sa.Column("origin", sa.Text(), nullable=False),  # from where: a peer address
)

# A secret's digest, or a certificate's subject, and what its holder may do. Rows stay.
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.Text(), primary_key=True),
    sa.Column("principal", sa.Text(), nullable=False, index=True),
    sa.Column("roles", sa.JSON(), nullable=False),
    sa.Column("models", sa.JSON(), nullable=False),
    sa.Column("domains", sa.JSON(), nullable=False),
    sa.Column("certificate", sa.Text(), nullable=False),  # empty: it has a secret
    sa.Column("digest", sa.Text(), nullable=False),  # sha256 of the secret, in hex
    sa.Column("created_at", Instant(), nullable=False),
    sa.Column("created_by", sa.Text(), nullable=False),
    sa.Column("expires_at", Instant()),
    sa.Column("revoked_at", Instant()),
    # Grows with every change of any token, in the order of commits (as alias moves do).
    sa.Column("revision", sa.BigInteger(), nullable=False, unique=True),
    # The revision that it was made with: the order of making, whatever the clocks said.
    sa.Column("number", sa.BigInteger(), nullable=False, server_default="0"),
)
