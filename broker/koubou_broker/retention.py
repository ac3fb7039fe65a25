"""What is forgotten and when: bodies after weeks, history after a year, unreferenced blobs after a day.

A sweep walks the tables in small steps between commits, so that no step holds up anybody's answer.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, func, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from koubou_broker import schema
from koubou_broker.batches import FailureKind
from koubou_broker.database import folder_of, kind_of, said
from koubou_broker.statements import TERMINAL_STATES

DAY_MS = 86_400_000
UNREFERENCED_MS = DAY_MS  # uploads whose submission never came; also bodies of refused submissions
STEP_TASKS = 500  # rows looked at in one step: about a millisecond
STEP_BLOBS = 200  # looked at in one step
STEP_BYTES = 16 * 1024 * 1024  # of blobs taken out in one transaction, or one blob: their pages are overwritten
STEP_PAUSE_S = 1.0  # between steps of one walk
WALK_PAUSE_S = 600.0  # between two walks

log = logging.getLogger("koubou_broker")


def wall_ms() -> int:
    """The wall clock, in milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Keep:
    """How long things are kept."""

    bodies_days: float = 30.0
    history_days: float = 365.0
    cache_days: float = 30.0


class Sweep:
    """One walk after another over tasks and blobs; used by the store thread alone."""

    def __init__(
        self,
        keep: Keep,
        *,
        wall_ms: Callable[[], int] = wall_ms,
        mono_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep = keep
        self._wall_ms = wall_ms
        self._mono_s = mono_s
        self._task_id = 0  # where the walk stands
        self._sha256 = b""
        self._next_s = mono_s() + STEP_PAUSE_S

    def step(self, connection: Connection) -> None:
        """Do one step if it is due; a full disk is no reason to fail, forgetting can wait."""
        if self._mono_s() < self._next_s:
            return
        try:
            with connection.begin():
                goes_on = self._step(connection)
        except DBAPIError as error:
            if kind_of(error, folder_of(connection.engine)) not in (FailureKind.FULL, FailureKind.BUSY):
                raise
            log.warning("nothing old could be removed: %s", said(error))
            goes_on = False
        self._next_s = self._mono_s() + (STEP_PAUSE_S if goes_on else WALK_PAUSE_S)

    def _step(self, connection: Connection) -> bool:
        now_ms = self._wall_ms()
        history_ms = now_ms - round(self._keep.history_days * DAY_MS)
        bodies_ms = now_ms - round(self._keep.bodies_days * DAY_MS)
        more_tasks = self._step_tasks(connection, bodies_ms, history_ms)
        more_blobs = self._step_blobs(connection, now_ms - UNREFERENCED_MS, bodies_ms)
        more_rows = [
            _forget_old(connection, schema.audit, schema.audit.c.at_ms, history_ms),
            _forget_old(connection, schema.parked, schema.parked.c.at_ms, history_ms),
            _forget_old(connection, schema.worker_factors, schema.worker_factors.c.at_ms, history_ms),
            _forget_old(
                connection,
                schema.result_cache,
                schema.result_cache.c.stored_ms,
                now_ms - round(self._keep.cache_days * DAY_MS),
            ),
            _forget_old(connection, schema.quarantined, schema.quarantined.c.at_ms, bodies_ms),
        ]
        return more_tasks or more_blobs or any(more_rows)

    def _step_tasks(self, connection: Connection, bodies_ms: int, history_ms: int) -> bool:
        tasks = schema.tasks.c
        looked_at = connection.execute(
            select(tasks.task_id, tasks.state, tasks.finished_ms)
            .where(tasks.task_id > self._task_id)
            .order_by(tasks.task_id)
            .limit(STEP_TASKS)
        ).all()
        ended = [row for row in looked_at if row.state in TERMINAL_STATES]
        bodiless = [row.task_id for row in ended if row.finished_ms < bodies_ms]
        if bodiless:
            connection.execute(delete(schema.blob_ref).where(schema.blob_ref.c.task_id.in_(bodiless)))
        gone = [row.task_id for row in ended if row.finished_ms < history_ms]
        if gone:
            forget_tasks(connection, gone)
        is_end = len(looked_at) < STEP_TASKS
        self._task_id = 0 if is_end else looked_at[-1].task_id
        return not is_end

    def _step_blobs(self, connection: Connection, before_ms: int, bodies_ms: int) -> bool:
        blob, ref, parked = schema.blob.c, schema.blob_ref.c, schema.parked.c
        looked_at = connection.execute(
            select(
                blob.sha256,
                blob.size_bytes,
                blob.stored_ms,
                select(ref.sha256).where(ref.sha256 == blob.sha256).exists().label("is_held"),
                # What was parked is kept as long as what was recorded.
                select(parked.attempt_uid)
                .where(parked.raw_sha256 == blob.sha256, parked.at_ms >= bodies_ms)
                .exists()
                .label("is_parked"),
            )
            .where(blob.sha256 > self._sha256)
            .order_by(blob.sha256)
            .limit(STEP_BLOBS)
        ).all()
        gone: list[bytes] = []
        gone_bytes = 0
        is_end = len(looked_at) < STEP_BLOBS
        for row in looked_at:
            if row.stored_ms >= before_ms or row.is_held or row.is_parked:
                continue
            if gone and gone_bytes + row.size_bytes > STEP_BYTES:
                is_end = False
                break
            gone.append(row.sha256)
            gone_bytes += row.size_bytes
            self._sha256 = row.sha256
        else:
            self._sha256 = b"" if is_end else looked_at[-1].sha256
        forget_blobs(connection, gone)
        return not is_end


def forget_blobs(connection: Connection, hashes: Sequence[bytes]) -> None:
    """Take blobs out that nothing refers to."""
    if hashes:
        for table in (schema.blob_chunk, schema.blob_owner, schema.blob):
            connection.execute(delete(table).where(table.c.sha256.in_(hashes)))


def forget_tasks(connection: Connection, task_ids: Sequence[int]) -> None:
    """Take ended tasks out with all that is known of them; their blobs are for whoever sweeps."""
    tasks, events, submissions = schema.tasks.c, schema.events.c, schema.submissions.c
    # Numbers are never used twice, also when the highest ones are gone.
    _raise_floor(connection, "next_task_id", max(task_ids) + 1)
    batch_id = connection.scalar(select(func.max(tasks.batch_id)).where(tasks.task_id.in_(task_ids))) or 0
    _raise_floor(connection, "next_batch_id", batch_id + 1)
    seq = connection.scalar(select(func.max(events.seq)).where(events.task_id.in_(task_ids))) or 0
    _raise_floor(connection, "next_event_seq", seq + 1)
    of_tasks = (
        schema.blob_ref,
        schema.events,
        schema.decisions,
        schema.attempts,
        schema.worker_metrics,
        schema.result_cache,
        schema.tasks,
    )
    for table in of_tasks:
        connection.execute(delete(table).where(table.c.task_id.in_(task_ids)))
    last_task_id = submissions.first_task_id + submissions.count - 1
    connection.execute(
        delete(schema.submissions).where(
            submissions.first_task_id <= max(task_ids),
            last_task_id >= min(task_ids),
            ~select(tasks.task_id).where(tasks.task_id.between(submissions.first_task_id, last_task_id)).exists(),
        )
    )


def _raise_floor(connection: Connection, key: str, value: int) -> None:
    statement = sqlite.insert(schema.meta).values(key=key, value=value)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["key"], set_={"value": func.max(schema.meta.c.value, statement.excluded.value)}
        )
    )


def _forget_old(connection: Connection, table: Table, at_ms: ColumnElement[Any], before_ms: int) -> bool:
    """Take one step's worth of old rows out; whether there may be more."""
    key = next(iter(table.primary_key.columns))
    old = select(key).where(at_ms < before_ms).order_by(at_ms).limit(STEP_TASKS)
    return connection.execute(delete(table).where(key.in_(old))).rowcount >= STEP_TASKS
