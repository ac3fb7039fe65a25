"""How long a task may wait for its first attempt, and what its last failure was."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two columns that may be empty: no row is rewritten."""
    op.add_column("tasks", sa.Column("queue_timeout_s", sa.Float(), nullable=True))
    op.add_column("tasks", sa.Column("error_cause", sa.Text(), nullable=True))
