"""What Alembic runs to migrate: the caller hands over its connection."""

from alembic import context

from holdfast.journal.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
