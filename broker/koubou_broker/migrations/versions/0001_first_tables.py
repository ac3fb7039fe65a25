"""All tables of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "audit",
        sa.Column("audit_id", WHOLE, nullable=False),
        sa.Column("at_ms", WHOLE, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("audit_id", name="pk_audit"),
    )
    op.create_index("ix_audit_at_ms", "audit", ["at_ms"], unique=False)
    op.create_table(
        "blob",
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("size_bytes", WHOLE, nullable=False),
        sa.Column("stored_ms", WHOLE, nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_blob"),
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", WHOLE, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_meta"),
    )
    op.create_table(
        "parked",
        sa.Column("attempt_uid", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("at_ms", WHOLE, nullable=False),
        sa.Column("raw_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("raw_bytes", WHOLE, nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("attempt_uid", name="pk_parked"),
    )
    op.create_index("ix_parked_raw_sha256", "parked", ["raw_sha256"], unique=False)
    op.create_table(
        "principals",
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("enrol_role", sa.Text(), nullable=True),
        sa.Column("created_ms", WHOLE, nullable=False),
        sa.Column("expires_ms", WHOLE, nullable=False),
        sa.Column("revoked_ms", WHOLE, nullable=False),
        sa.Column("replaced_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("public_key", name="pk_principals"),
    )
    op.create_table(
        "quarantined",
        sa.Column("quarantine_id", WHOLE, nullable=False),
        sa.Column("at_ms", WHOLE, nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("quarantine_id", name="pk_quarantined"),
    )
    op.create_table(
        "submissions",
        sa.Column("submission_id", WHOLE, nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("batch_id", WHOLE, nullable=False),
        sa.Column("first_task_id", WHOLE, nullable=False),
        sa.Column("count", WHOLE, nullable=False),
        sa.Column("submitted_ms", WHOLE, nullable=False),
        sa.PrimaryKeyConstraint("submission_id", name="pk_submissions"),
        sa.UniqueConstraint("principal", "idempotency_key", name="uq_submissions_principal_idempotency_key"),
    )
    op.create_index("ix_submissions_first_task_id", "submissions", ["first_task_id"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("task_id", WHOLE, autoincrement=False, nullable=False),
        sa.Column("batch_id", WHOLE, nullable=False),
        sa.Column("batch_index", WHOLE, nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("prompt_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("prompt_bytes", WHOLE, nullable=False),
        sa.Column("files", sa.LargeBinary(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("repo", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("priority", WHOLE, nullable=False),
        sa.Column("task_type", sa.Text(), nullable=False),
        sa.Column("options", sa.LargeBinary(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("labels", sa.LargeBinary(), nullable=False),
        sa.Column("min_context", WHOLE, nullable=False),
        sa.Column("timeout_s", sa.Float(), nullable=True),
        sa.Column("deadline_ms", WHOLE, nullable=False),
        sa.Column("max_attempts", WHOLE, nullable=False),
        sa.Column("strict_output", sa.Boolean(), nullable=False),
        sa.Column("out_path", sa.Text(), nullable=False),
        sa.Column("out_digest", sa.Text(), nullable=False),
        sa.Column("submitted_ms", WHOLE, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("generation", WHOLE, nullable=False),
        sa.Column("attempts", WHOLE, nullable=False),
        sa.Column("transient_failures", WHOLE, nullable=False),
        sa.Column("infra_failures", WHOLE, nullable=False),
        sa.Column("deaths", sa.LargeBinary(), nullable=False),
        sa.Column("excluded", sa.LargeBinary(), nullable=False),
        sa.Column("not_before_ms", WHOLE, nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("error_class", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.Column("started_ms", WHOLE, nullable=False),
        sa.Column("finished_ms", WHOLE, nullable=False),
        sa.Column("result_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("result_bytes", WHOLE, nullable=False),
        sa.Column("output_offset", WHOLE, nullable=False),
        sa.Column("output_length", WHOLE, nullable=False),
        sa.Column("flags", sa.LargeBinary(), nullable=False),
        sa.Column("metrics", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("task_id", name="pk_tasks"),
    )
    op.create_index("ix_tasks_batch_id", "tasks", ["batch_id"], unique=False)
    op.create_index("ix_tasks_principal_state_task_id", "tasks", ["principal", "state", "task_id"], unique=False)
    op.create_index("ix_tasks_state_task_id", "tasks", ["state", "task_id"], unique=False)
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), server_default=sa.text("'local'"), nullable=False),
        sa.Column("performance_factor", sa.Float(), server_default=sa.text("1.0"), nullable=False),
        sa.Column("endpoint_url", sa.Text(), nullable=True),
        sa.Column("network_latency_ms", WHOLE, nullable=True),
        sa.Column("last_health_check", sa.DateTime(), nullable=True),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("software", sa.Text(), nullable=False),
        sa.Column("models", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name="pk_workers"),
    )
    op.create_table(
        "attempts",
        sa.Column("attempt_uid", sa.Text(), nullable=False),
        sa.Column("task_id", WHOLE, nullable=False),
        sa.Column("number", WHOLE, nullable=False),
        sa.Column("generation", WHOLE, nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("started_ms", WHOLE, nullable=False),
        sa.Column("ended_ms", WHOLE, nullable=False),
        sa.Column("error_class", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("metrics", sa.LargeBinary(), nullable=False),
        sa.Column("log", sa.Text(), nullable=False),
        sa.Column("placement", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name="fk_attempts_task_id_tasks"),
        sa.PrimaryKeyConstraint("attempt_uid", name="pk_attempts"),
    )
    op.create_index("ix_attempts_task_id", "attempts", ["task_id"], unique=False)
    op.create_table(
        "blob_chunk",
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("n", WHOLE, autoincrement=False, nullable=False),
        sa.Column("bytes", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["sha256"], ["blob.sha256"], name="fk_blob_chunk_sha256_blob"),
        sa.PrimaryKeyConstraint("sha256", "n", name="pk_blob_chunk"),
    )
    op.create_table(
        "blob_owner",
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["sha256"], ["blob.sha256"], name="fk_blob_owner_sha256_blob"),
        sa.PrimaryKeyConstraint("principal", "sha256", name="pk_blob_owner"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_blob_owner_sha256", "blob_owner", ["sha256"], unique=False)
    op.create_table(
        "blob_ref",
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("task_id", WHOLE, nullable=False),
        sa.ForeignKeyConstraint(["sha256"], ["blob.sha256"], name="fk_blob_ref_sha256_blob"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name="fk_blob_ref_task_id_tasks"),
        sa.PrimaryKeyConstraint("sha256", "task_id", name="pk_blob_ref"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_blob_ref_task_id", "blob_ref", ["task_id"], unique=False)
    op.create_table(
        "events",
        sa.Column("seq", WHOLE, autoincrement=False, nullable=False),
        sa.Column("task_id", WHOLE, nullable=False),
        sa.Column("at_ms", WHOLE, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("attempt", WHOLE, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name="fk_events_task_id_tasks"),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
    )
    op.create_index("ix_events_task_id", "events", ["task_id"], unique=False)
    op.create_table(
        "worker_metrics",
        sa.Column("metric_id", WHOLE, nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("task_id", WHOLE, nullable=False),
        sa.Column("execution_time_ms", WHOLE, nullable=False),
        sa.Column("tokens_processed", WHOLE, nullable=True),
        sa.Column("prompt_length", WHOLE, nullable=True),
        sa.Column("output_length", WHOLE, nullable=True),
        sa.Column("success", sa.Boolean(), nullable=False),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column("measured_at", sa.DateTime(), server_default=sa.text("CURRENT_TIMESTAMP"), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", WHOLE, nullable=False),
        sa.Column("output_tokens", WHOLE, nullable=False),
        sa.Column("eval_ms", WHOLE, nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name="fk_worker_metrics_task_id_tasks"),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.worker_id"], name="fk_worker_metrics_worker_id_workers"),
        sa.PrimaryKeyConstraint("metric_id", name="pk_worker_metrics"),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_worker_metrics_measured_at", "worker_metrics", ["measured_at"], unique=False)
    op.create_index("idx_worker_metrics_worker_id", "worker_metrics", ["worker_id"], unique=False)
