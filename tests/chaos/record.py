"""The broker's record, read from its database by a connection that cannot write: what figures and checks look at."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from koubou_common.messages.values import AttemptState, TaskState


@dataclass(frozen=True, slots=True)
class TaskOnRecord:
    """A task's row."""

    task_id: int
    principal: str
    state: TaskState
    generation: int
    submitted_ms: int
    finished_ms: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class AttemptOnRecord:
    """An attempt's row."""

    uid: str
    task_id: int
    number: int
    worker_id: str
    state: AttemptState
    generation: int
    started_ms: int
    ended_ms: int  # 0: runs
    error_class: str


@dataclass(frozen=True, slots=True)
class EventOnRecord:
    """One recorded change."""

    seq: int
    task_id: int
    at_ms: int
    before: str
    after: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """All of it, each in the order of its number or time."""

    tasks: tuple[TaskOnRecord, ...]
    attempts: tuple[AttemptOnRecord, ...]
    events: tuple[EventOnRecord, ...]
    parked: frozenset[str] = frozenset()


def read_record(database: Path) -> Record:
    """As it stands now, in one snapshot."""
    connection = sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("BEGIN")
        tasks = connection.execute(
            "SELECT task_id, principal, state, generation, submitted_ms, finished_ms,"
            " coalesce(error_class || ': ' || error_message, '') FROM tasks ORDER BY task_id"
        )
        attempts = connection.execute(
            "SELECT attempt_uid, task_id, number, worker_id, state, generation, started_ms, ended_ms,"
            " coalesce(error_class, '') FROM attempts ORDER BY started_ms, task_id, number"
        )
        events = connection.execute(
            'SELECT seq, task_id, at_ms, "before", "after", attempt, reason FROM events ORDER BY seq'
        )
        parked = connection.execute("SELECT attempt_uid FROM parked")
        return Record(
            tuple(TaskOnRecord(row[0], row[1], TaskState(row[2]), *row[3:]) for row in tasks),
            tuple(
                AttemptOnRecord(uid, task, number, worker, AttemptState(state), *rest)
                for uid, task, number, worker, state, *rest in attempts
            ),
            tuple(EventOnRecord(*row) for row in events),
            frozenset(uid for (uid,) in parked),
        )
    finally:
        connection.close()
