"""What is read back: answers to the core's queries, and the snapshot a core starts from."""

import time
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Integer, Select, Table, func, select, type_coerce

from koubou_broker import rows, schema
from koubou_broker.effects import (
    CachedAnswer,
    CountStates,
    FindAttempt,
    FindCached,
    FindMarks,
    FindParked,
    FindSpeeds,
    FindStats,
    FindStory,
    FindSubmission,
    FindTasks,
    Found,
    Loss,
    Query,
    Snapshot,
    StoredTask,
    Upload,
)
from koubou_broker.idempotency import submission_hash
from koubou_broker.measurements import find_speeds, find_stats
from koubou_broker.records import Decided
from koubou_broker.routing.workers import speaks_about_worker
from koubou_broker.transaction import in_lists
from koubou_common.errors import ErrorClass
from koubou_common.messages.limits import BATCH_TASKS, PAGE_PARKED, PAGE_TASKS
from koubou_common.messages.values import TaskState

STORY_ATTEMPTS, STORY_EVENTS = 100, 1_000  # what one Story message holds: the newest
SCORES_MS = 86_400_000  # success rates count the last 24 hours
RATIOS_MS = 30 * 86_400_000  # bytes per token change with the model only: a month gives enough samples

_COUNTED = tuple(error_class.value for error_class in ErrorClass if speaks_about_worker(error_class))
_LIVE = (TaskState.QUEUED.value, TaskState.RUNNING.value)


def find(connection: Connection, query: Query) -> Found:
    """The answer to one query."""
    match query:
        case FindTasks():
            return Found(tasks=_tasks(connection, query))
        case FindMarks():
            return Found(tasks=_marks(connection, query))
        case FindStory():
            return _story(connection, query.task_id, with_decisions=query.with_decisions)
        case FindSubmission():
            return _submission(connection, query)
        case FindAttempt():
            return _attempt(connection, query.attempt_uid)
        case CountStates():
            return Found(counts=_counts(connection, query.principal))
        case FindParked():
            return _parked(connection, query)
        case FindSpeeds():
            return find_speeds(connection, query)
        case FindStats():
            return find_stats(connection, query)
        case FindCached():
            return Found(cached=_cached(connection, query))


def read_uploads(connection: Connection) -> tuple[Upload, ...]:
    """Bodies that belong to no task, oldest first; small ones have no owner and are not among them."""
    blob, owner, ref = schema.blob.c, schema.blob_owner.c, schema.blob_ref.c
    query = (
        select(owner.principal, blob.sha256, blob.size_bytes, blob.stored_ms)
        .join(schema.blob, blob.sha256 == owner.sha256)
        .where(~select(ref.sha256).where(ref.sha256 == owner.sha256).exists())
        .order_by(blob.stored_ms)
    )
    return tuple(Upload(*row) for row in connection.execute(query))


def read_snapshot(connection: Connection, now_ms: int | None = None) -> Snapshot:
    """All a core needs to go on; everything in it was read in the caller's transaction."""
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    tasks, attempts = schema.tasks.c, schema.attempts.c
    live = select(schema.tasks).where(tasks.state.in_(_LIVE)).order_by(tasks.task_id)
    of_live = (
        select(schema.attempts)
        .join(schema.tasks, tasks.task_id == attempts.task_id)
        .where(tasks.state.in_(_LIVE), attempts.generation == tasks.generation)
        .order_by(attempts.task_id, attempts.number)
    )
    numbers = read_numbers(connection)
    return Snapshot(
        epoch=read_meta(connection, "epoch"),
        next_task_id=numbers["next_task_id"],
        next_batch_id=numbers["next_batch_id"],
        next_event_seq=numbers["next_event_seq"],
        tasks=_stored(connection, live),
        attempts=tuple(rows.attempt(row) for row in connection.execute(of_live)),
        workers=tuple(rows.worker(row) for row in connection.execute(select(schema.workers))),
        principals=tuple(rows.principal(row) for row in connection.execute(select(schema.principals))),
        submission_hashes=_submission_hashes(connection),
        worker_scores=_worker_scores(connection, now_ms),
        bytes_per_token=_bytes_per_token(connection, now_ms),
        loss=read_loss(connection),
    )


def read_meta(connection: Connection, key: str) -> int:
    """A number of the `meta` table; 0 where it was never set."""
    return connection.scalar(select(schema.meta.c.value).where(schema.meta.c.key == key)) or 0


def read_loss(connection: Connection) -> Loss:
    """What the last restoration of an older database lost."""
    return Loss(*(read_meta(connection, key) for key in ("restored_ms", "lost_first_id", "lost_end_id")))


def read_numbers(connection: Connection) -> dict[str, int]:
    """The numbers to give out next, by their names in `meta`."""
    return {
        "next_task_id": _next(connection, "next_task_id", schema.tasks, "task_id"),
        "next_batch_id": _next(connection, "next_batch_id", schema.tasks, "batch_id"),
        "next_event_seq": _next(connection, "next_event_seq", schema.events, "seq"),
    }


def _next(connection: Connection, key: str, table: Table, column: str) -> int:
    """The next number: above all that are there, and above all that were (the floor in `meta`)."""
    highest = connection.scalar(select(func.max(table.c[column]))) or 0
    return max(highest + 1, read_meta(connection, key))


def _tasks(connection: Connection, query: FindTasks) -> tuple[StoredTask, ...]:
    tasks, ref = schema.tasks.c, schema.blob_ref.c
    wanted = select(schema.tasks).order_by(tasks.task_id.desc())
    if query.principal:
        wanted = wanted.where(tasks.principal == query.principal)
    if query.task_ids:
        held = select(ref.task_id).where(ref.task_id == tasks.task_id, ref.sha256 == tasks.result_sha256).exists()
        wanted = wanted.add_columns(held.label("has_output")).where(tasks.task_id.in_(query.task_ids[:PAGE_TASKS]))
    if query.batch_id:
        wanted = wanted.where(tasks.batch_id == query.batch_id)
    if query.states:
        wanted = wanted.where(tasks.state.in_([state.value for state in query.states]))
    if query.before_id:
        wanted = wanted.where(tasks.task_id < query.before_id)
    wanted = wanted.limit(min(query.most, PAGE_TASKS))
    if not query.task_ids:
        return _stored(connection, wanted)
    return tuple(replace(rows.stored_task(row), has_output=bool(row.has_output)) for row in connection.execute(wanted))


def _marks(connection: Connection, query: FindMarks) -> tuple[StoredTask, ...]:
    tasks, ref = schema.tasks.c, schema.blob_ref.c
    # Retention takes all bodies of a task at once: the prompt speaks for the files.
    holds_prompt = select(ref.task_id).where(ref.task_id == tasks.task_id, ref.sha256 == tasks.prompt_sha256).exists()
    wanted = select(schema.tasks, holds_prompt.label("has_bodies")).order_by(tasks.task_id)
    queries = [wanted.where(tasks.task_id.in_(some)) for some in in_lists(query.task_ids)]
    if query.batch_id:
        queries.append(wanted.where(tasks.batch_id == query.batch_id).limit(BATCH_TASKS))
    return tuple(
        replace(rows.stored_task(row), has_bodies=row.has_bodies) for one in queries for row in connection.execute(one)
    )


def _story(connection: Connection, task_id: int, *, with_decisions: bool) -> Found:
    attempts, events = schema.attempts.c, schema.events.c
    newest_attempts = (
        select(schema.attempts)
        .where(attempts.task_id == task_id)
        .order_by(attempts.number.desc())
        .limit(STORY_ATTEMPTS)
    )
    newest_events = (
        select(schema.events).where(events.task_id == task_id).order_by(events.seq.desc()).limit(STORY_EVENTS)
    )
    shown = tuple(rows.attempt(row) for row in connection.execute(newest_attempts))[::-1]
    decisions: tuple[Decided, ...] = ()
    if with_decisions:
        uids = [one.attempt_uid for one in shown]
        of_them = select(schema.decisions).where(schema.decisions.c.attempt_uid.in_(uids))
        decisions = tuple(rows.decided(row) for row in connection.execute(of_them))
    return Found(
        tasks=_stored(connection, select(schema.tasks).where(schema.tasks.c.task_id == task_id)),
        attempts=shown,
        events=tuple(rows.event(row) for row in connection.execute(newest_events))[::-1],
        decisions=decisions,
    )


def _submission(connection: Connection, query: FindSubmission) -> Found:
    columns, tasks = schema.submissions.c, schema.tasks.c
    row = connection.execute(
        select(schema.submissions).where(
            columns.principal == query.principal, columns.idempotency_key == query.idempotency_key
        )
    ).one_or_none()
    if row is None:
        return Found()
    submission = rows.submission(row)
    first = submission.first_task_id
    of_it = select(schema.tasks).where(tasks.task_id.between(first, first + submission.count - 1))
    return Found(tasks=_stored(connection, of_it.order_by(tasks.task_id)), submission=submission)


def _attempt(connection: Connection, attempt_uid: str) -> Found:
    row = connection.execute(select(schema.attempts).where(schema.attempts.c.attempt_uid == attempt_uid)).one_or_none()
    if row is None:
        return Found()
    of_it = select(schema.tasks).where(schema.tasks.c.task_id == row.task_id)
    return Found(tasks=_stored(connection, of_it), attempts=(rows.attempt(row),))


def _parked(connection: Connection, query: FindParked) -> Found:
    parked, blob = schema.parked.c, schema.blob.c
    wanted = select(schema.parked, blob.sha256.label("held_sha256")).outerjoin(
        schema.blob, blob.sha256 == parked.raw_sha256
    )
    if query.attempt_uid:
        wanted = wanted.where(parked.attempt_uid == query.attempt_uid)
    page = wanted.order_by(parked.at_ms.desc(), parked.attempt_uid).offset(query.skip).limit(PAGE_PARKED)
    total = connection.scalar(select(func.count()).select_from(schema.parked)) or 0
    return Found(parked=tuple(rows.parked(row) for row in connection.execute(page)), parked_total=total)


def _cached(connection: Connection, query: FindCached) -> tuple[CachedAnswer, ...]:
    cache, tasks, ref = schema.result_cache.c, schema.tasks.c, schema.blob_ref.c
    held = select(ref.task_id).where(ref.task_id == tasks.task_id, ref.sha256 == tasks.result_sha256).exists()
    wanted = (
        select(schema.tasks, cache.key.label("cache_key"))
        .join(schema.result_cache, cache.task_id == tasks.task_id)
        # A retry gives the task another outcome, perhaps of another version of the model: then this one is gone.
        .where(tasks.state == TaskState.SUCCEEDED.value, tasks.finished_ms == cache.stored_ms, held)
        .where(cache.stored_ms >= query.since_ms)
    )
    return tuple(
        CachedAnswer(row.cache_key, rows.stored_task(row))
        for some in in_lists(query.keys)
        for row in connection.execute(wanted.where(cache.key.in_(some)))
    )


def _counts(connection: Connection, principal: str) -> tuple[tuple[TaskState, int], ...]:
    tasks = schema.tasks.c
    query = select(tasks.state, func.count()).group_by(tasks.state)
    if principal:
        query = query.where(tasks.principal == principal)
    return tuple((TaskState(state), count) for state, count in connection.execute(query))


def _stored(connection: Connection, query: Select[Any]) -> tuple[StoredTask, ...]:
    return tuple(rows.stored_task(row) for row in connection.execute(query))


def _submission_hashes(connection: Connection) -> frozenset[int]:
    columns = schema.submissions.c
    query = select(columns.principal, columns.idempotency_key)
    return frozenset(submission_hash(principal, key) for principal, key in connection.execute(query))


def _worker_scores(connection: Connection, now_ms: int) -> tuple[tuple[str, int, int], ...]:
    metrics = schema.worker_metrics.c
    # The sum of truth values would be read as one itself: 24 successes as 1.
    successes = func.sum(type_coerce(metrics.success, Integer))
    query = (
        select(metrics.worker_id, successes, func.count())
        .where(metrics.measured_at >= now_ms - SCORES_MS, metrics.success | metrics.error_type.in_(_COUNTED))
        .group_by(metrics.worker_id)
    )
    return tuple(
        (worker_id, int(succeeded), count - int(succeeded)) for worker_id, succeeded, count in connection.execute(query)
    )


def _bytes_per_token(connection: Connection, now_ms: int) -> tuple[tuple[str, float], ...]:
    metrics = schema.worker_metrics.c
    query = (
        select(metrics.model, func.sum(metrics.prompt_length), func.sum(metrics.prompt_tokens))
        .where(
            metrics.measured_at >= now_ms - RATIOS_MS,
            metrics.success,
            metrics.prompt_tokens > 0,
            metrics.prompt_length > 0,
        )
        .group_by(metrics.model)
    )
    return tuple((model, size / tokens) for model, size, tokens in connection.execute(query))
