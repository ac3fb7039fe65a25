"""What routing measures, decides and remembers: factors, decisions, the result cache, what tasks ask of workers."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add columns that may be empty, so that no row is rewritten, and three tables."""
    op.add_column("tasks", sa.Column("capabilities", sa.LargeBinary(), nullable=True))
    op.add_column("tasks", sa.Column("digest", sa.Text(), nullable=True))
    op.add_column("tasks", sa.Column("use_cache", sa.Boolean(), nullable=True))
    op.add_column("tasks", sa.Column("prefix_files", _WHOLE, nullable=True))
    op.add_column("tasks", sa.Column("opened_ms", _WHOLE, nullable=True))
    for name in ("thinking_tokens", "prompt_ms", "load_ms", "first_token_ms", "slot_wait_ms"):
        op.add_column("worker_metrics", sa.Column(name, _WHOLE, nullable=True))
    op.create_table(
        "worker_factors",
        sa.Column("factor_id", _WHOLE, nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("at_ms", _WHOLE, nullable=False),
        sa.Column("factor", sa.Float(), nullable=False),
        sa.Column("samples", _WHOLE, nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("factor_id", name="pk_worker_factors"),
    )
    op.create_index("ix_worker_factors_worker_id", "worker_factors", ["worker_id"])
    op.create_table(
        "decisions",
        sa.Column("attempt_uid", sa.Text(), nullable=False),
        sa.Column("task_id", _WHOLE, nullable=False),
        sa.Column("decision", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["attempt_uid"], ["attempts.attempt_uid"], name="fk_decisions_attempt_uid_attempts"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name="fk_decisions_task_id_tasks"),
        sa.PrimaryKeyConstraint("attempt_uid", name="pk_decisions"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_decisions_task_id", "decisions", ["task_id"])
    op.create_table(
        "result_cache",
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("task_id", _WHOLE, nullable=False),
        sa.Column("stored_ms", _WHOLE, nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name="fk_result_cache_task_id_tasks"),
        sa.PrimaryKeyConstraint("key", name="pk_result_cache"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_result_cache_task_id", "result_cache", ["task_id"])
