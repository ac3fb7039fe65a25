"""The tables: what the broker keeps, one table a record of `records`, and the blobs.

Times are wall-clock milliseconds, 0 for "not yet"; only `workers.last_health_check` and
`worker_metrics.measured_at` are timestamps (UTC), as the requirements name them so. Tuples and metrics are
packed by the codec. Foreign keys are declared for people and for PostgreSQL; SQLite does not enforce them
here, since the order of rows within a transaction is the store's business.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.schema import DefaultClause

HEAD_REVISION = "0003"  # the migration this release needs; a database beyond it is refused

# 64 bits everywhere; SQLite's INTEGER has them, and only that name makes a column the row's own number.
WHOLE = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcMillis(TypeDecorator[int]):
    """Milliseconds since 1970 in Python, a UTC timestamp in the database; 0 is NULL."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Python to database."""
        del dialect
        return datetime.fromtimestamp(value / 1000, UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int:
        """Database to Python."""
        del dialect
        return round(value.replace(tzinfo=UTC).timestamp() * 1000) if value is not None else 0


def _default(value: str) -> DefaultClause:
    return DefaultClause(text(value))


meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),  # epoch, next_task_id, next_batch_id, next_event_seq
    Column("value", WHOLE, nullable=False),
)

principals = Table(
    "principals",
    metadata,
    Column("public_key", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("enrol_role", Text),
    Column("created_ms", WHOLE, nullable=False),
    Column("expires_ms", WHOLE, nullable=False),
    Column("revoked_ms", WHOLE, nullable=False),
    Column("replaced_by", Text, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("worker_id", Text, primary_key=True),
    Column("location", Text, nullable=False, server_default=_default("'local'")),
    Column("performance_factor", Float, nullable=False, server_default=_default("1.0")),
    Column("endpoint_url", Text),
    Column("network_latency_ms", WHOLE),
    Column("last_health_check", UtcMillis),
    Column("mode", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("software", Text, nullable=False),
    Column("models", LargeBinary, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    # The unchanging half: written once.
    Column("task_id", WHOLE, primary_key=True, autoincrement=False),
    Column("batch_id", WHOLE, nullable=False),
    Column("batch_index", WHOLE, nullable=False),
    Column("principal", Text, nullable=False),
    Column("custom_id", Text, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("prompt_sha256", LargeBinary, nullable=False),
    Column("prompt_bytes", WHOLE, nullable=False),
    Column("files", LargeBinary, nullable=False),
    Column("target", Text, nullable=False),
    Column("repo", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("priority", WHOLE, nullable=False),
    Column("task_type", Text, nullable=False),
    Column("options", LargeBinary, nullable=False),
    Column("worker", Text, nullable=False),
    Column("labels", LargeBinary, nullable=False),
    Column("min_context", WHOLE, nullable=False),
    Column("timeout_s", Float),
    Column("deadline_ms", WHOLE, nullable=False),
    Column("max_attempts", WHOLE, nullable=False),
    Column("strict_output", Boolean, nullable=False),
    Column("out_path", Text, nullable=False),
    Column("out_digest", Text, nullable=False),
    Column("submitted_ms", WHOLE, nullable=False),
    Column("queue_timeout_s", Float),
    Column("capabilities", LargeBinary),
    Column("digest", Text),
    Column("use_cache", Boolean),
    Column("prefix_files", WHOLE),
    # The changing half: written whole at each change.
    Column("state", Text, nullable=False),
    Column("generation", WHOLE, nullable=False),
    Column("attempts", WHOLE, nullable=False),
    Column("transient_failures", WHOLE, nullable=False),
    Column("infra_failures", WHOLE, nullable=False),
    Column("deaths", LargeBinary, nullable=False),
    Column("excluded", LargeBinary, nullable=False),
    Column("not_before_ms", WHOLE, nullable=False),
    Column("worker_id", Text, nullable=False),
    Column("error_class", Text),
    Column("error_cause", Text),
    Column("error_message", Text, nullable=False),
    Column("started_ms", WHOLE, nullable=False),
    Column("finished_ms", WHOLE, nullable=False),
    Column("result_sha256", LargeBinary),
    Column("result_bytes", WHOLE, nullable=False),
    Column("output_offset", WHOLE, nullable=False),
    Column("output_length", WHOLE, nullable=False),
    Column("flags", LargeBinary, nullable=False),
    Column("metrics", LargeBinary),
    Column("opened_ms", WHOLE),
    # A start reads the live tasks, a listing filters by owner and state.
    Index("ix_tasks_state_task_id", "state", "task_id"),
    Index("ix_tasks_principal_state_task_id", "principal", "state", "task_id"),
    Index("ix_tasks_batch_id", "batch_id"),
)

submissions = Table(
    "submissions",
    metadata,
    Column("submission_id", WHOLE, primary_key=True),
    Column("principal", Text, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("batch_id", WHOLE, nullable=False),
    Column("first_task_id", WHOLE, nullable=False, index=True),
    Column("count", WHOLE, nullable=False),
    Column("submitted_ms", WHOLE, nullable=False),
    UniqueConstraint("principal", "idempotency_key"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("attempt_uid", Text, primary_key=True),
    Column("task_id", ForeignKey("tasks.task_id"), nullable=False, index=True),
    Column("number", WHOLE, nullable=False),
    Column("generation", WHOLE, nullable=False),
    Column("worker_id", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("started_ms", WHOLE, nullable=False),
    Column("ended_ms", WHOLE, nullable=False),
    Column("error_class", Text),
    Column("message", Text, nullable=False),
    Column("metrics", LargeBinary, nullable=False),
    Column("log", Text, nullable=False),
    Column("placement", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", WHOLE, primary_key=True, autoincrement=False),
    Column("task_id", ForeignKey("tasks.task_id"), nullable=False, index=True),
    Column("at_ms", WHOLE, nullable=False),
    Column("actor", Text, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("attempt", WHOLE, nullable=False),
    Column("reason", Text, nullable=False),
)

worker_metrics = Table(
    "worker_metrics",
    metadata,
    Column("metric_id", WHOLE, primary_key=True),
    Column("worker_id", ForeignKey("workers.worker_id"), nullable=False),
    Column("task_id", ForeignKey("tasks.task_id"), nullable=False),
    Column("execution_time_ms", WHOLE, nullable=False),
    Column("tokens_processed", WHOLE),
    Column("prompt_length", WHOLE),  # bytes the model read
    Column("output_length", WHOLE),  # bytes
    Column("success", Boolean, nullable=False),
    Column("error_type", Text),
    Column("measured_at", UtcMillis, server_default=_default("CURRENT_TIMESTAMP")),
    Column("model", Text, nullable=False),
    Column("prompt_tokens", WHOLE, nullable=False),
    Column("output_tokens", WHOLE, nullable=False),
    Column("eval_ms", WHOLE, nullable=False),
    Column("thinking_tokens", WHOLE),
    Column("prompt_ms", WHOLE),
    Column("load_ms", WHOLE),
    Column("first_token_ms", WHOLE),
    Column("slot_wait_ms", WHOLE),
    Index("idx_worker_metrics_worker_id", "worker_id"),
    Index("idx_worker_metrics_measured_at", "measured_at"),
    sqlite_autoincrement=True,
)

worker_factors = Table(
    "worker_factors",  # how the measured factors went
    metadata,
    Column("factor_id", WHOLE, primary_key=True),
    Column("worker_id", Text, nullable=False, index=True),
    Column("at_ms", WHOLE, nullable=False),
    Column("factor", Float, nullable=False),
    Column("samples", WHOLE, nullable=False),
    Column("baseline", Text, nullable=False),
)

decisions = Table(
    "decisions",  # why an attempt went to its worker
    metadata,
    Column("attempt_uid", ForeignKey("attempts.attempt_uid"), primary_key=True),
    Column("task_id", ForeignKey("tasks.task_id"), nullable=False, index=True),
    Column("decision", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

result_cache = Table(
    "result_cache",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("task_id", ForeignKey("tasks.task_id"), nullable=False, index=True),
    Column("stored_ms", WHOLE, nullable=False),
    sqlite_with_rowid=False,
)

audit = Table(
    "audit",
    metadata,
    Column("audit_id", WHOLE, primary_key=True),
    Column("at_ms", WHOLE, nullable=False, index=True),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
)

parked = Table(
    "parked",
    metadata,
    Column("attempt_uid", Text, primary_key=True),
    Column("worker_id", Text, nullable=False),
    Column("at_ms", WHOLE, nullable=False),
    Column("raw_sha256", LargeBinary, index=True),
    Column("raw_bytes", WHOLE, nullable=False),
    Column("detail", Text, nullable=False),
)

quarantined = Table(
    "quarantined",  # messages the store could not take: a bug of ours, kept for whoever mends it
    metadata,
    Column("quarantine_id", WHOLE, primary_key=True),
    Column("at_ms", WHOLE, nullable=False),
    Column("principal", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Column("error", Text, nullable=False),
)

blob = Table(
    "blob",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("size_bytes", WHOLE, nullable=False),
    Column("stored_ms", WHOLE, nullable=False),  # refreshed by use: unreferenced ones age from here
)

blob_chunk = Table(
    "blob_chunk",
    metadata,
    Column("sha256", ForeignKey("blob.sha256"), primary_key=True),
    Column("n", WHOLE, primary_key=True, autoincrement=False),
    Column("bytes", LargeBinary, nullable=False),
)

blob_owner = Table(
    "blob_owner",
    metadata,
    Column("principal", Text, primary_key=True),
    Column("sha256", ForeignKey("blob.sha256"), primary_key=True, index=True),
    sqlite_with_rowid=False,
)

blob_ref = Table(
    "blob_ref",  # which task holds which blob: prompt, files, result
    metadata,
    Column("sha256", ForeignKey("blob.sha256"), primary_key=True),
    Column("task_id", ForeignKey("tasks.task_id"), primary_key=True, index=True),
    sqlite_with_rowid=False,
)
