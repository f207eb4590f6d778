"""What alembic runs: revisions, on the connection and in the transaction it was given."""

from __future__ import annotations

from alembic import context

from acclimate_service.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
