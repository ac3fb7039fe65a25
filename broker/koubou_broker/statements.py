"""The statements that write, built once: every commit uses the same few."""

from sqlalchemy import Table, Update, and_, bindparam, insert, not_, or_, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.dml import Insert

from koubou_broker import schema
from koubou_common.messages.values import TaskState

TERMINAL_STATES = tuple(state.value for state in TaskState if state.is_terminal)


def _upsert(table: Table, key: str) -> Insert:
    statement = sqlite.insert(table)
    changed = {column.name: statement.excluded[column.name] for column in table.columns if column.name != key}
    return statement.on_conflict_do_update(index_elements=[key], set_=changed)


def _guarded_update() -> Update:
    """Law 6 in SQL: a row that is over changes only together with its generation."""
    columns = schema.tasks.c
    is_over = or_(*(columns.state == state for state in TERMINAL_STATES))  # executemany takes no IN list
    is_same = columns.generation >= bindparam("guard_generation")
    names = [column.name for column in schema.tasks.columns]
    changing = names[names.index("state") :]
    return (
        update(schema.tasks)
        .where(columns.task_id == bindparam("guard_task_id"), not_(and_(is_over, is_same)))
        .values({name: bindparam(name) for name in changing})
    )


def _fresh_blob() -> Insert:
    # Known bytes count as new: whoever sent them now relies on them for the next 24 hours.
    statement = sqlite.insert(schema.blob)
    return statement.on_conflict_do_update(index_elements=["sha256"], set_={"stored_ms": statement.excluded.stored_ms})


ADD_TASK = insert(schema.tasks)
UPDATE_PROGRESS = _guarded_update()  # binds guard_task_id and guard_generation beside the columns
ADD_SUBMISSION = insert(schema.submissions)
PUT_ATTEMPT = _upsert(schema.attempts, "attempt_uid")
ADD_EVENT = insert(schema.events)
PUT_WORKER = _upsert(schema.workers, "worker_id")
ADD_METRIC = insert(schema.worker_metrics)
ADD_FACTOR = insert(schema.worker_factors)
PUT_DECISION = _upsert(schema.decisions, "attempt_uid")
PUT_CACHED = _upsert(schema.result_cache, "key")
PUT_PRINCIPAL = _upsert(schema.principals, "public_key")
ADD_AUDIT = insert(schema.audit)
PUT_PARKED = _upsert(schema.parked, "attempt_uid")
ADD_QUARANTINED = insert(schema.quarantined)
PUT_BLOB = _fresh_blob()
ADD_CHUNK = sqlite.insert(schema.blob_chunk).on_conflict_do_nothing()
ADD_OWNER = sqlite.insert(schema.blob_owner).on_conflict_do_nothing()
ADD_REF = sqlite.insert(schema.blob_ref).on_conflict_do_nothing()
PUT_META = _upsert(schema.meta, "key")
