"""What Alembic runs to migrate: with the connection it was given, in the transaction that is open on it."""

from alembic import context

from services.registry.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
