"""Alembic's entry: migrates on the connection it is given, in one transaction for each migration.

SQLite's own default would commit table by table and leave half a migration behind a crash; the engine's
BEGIN IMMEDIATE together with `transactional_ddl` makes each one all or nothing.
"""

from alembic import context

from koubou_broker.schema import metadata

connection = context.config.attributes["connection"]  # handed over by koubou_broker.migrate
context.configure(
    connection=connection,
    target_metadata=metadata,
    transactional_ddl=True,
    transaction_per_migration=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
