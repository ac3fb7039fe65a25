"""Migrations of the database (Alembic), run by `koubou_broker.migrate`."""
