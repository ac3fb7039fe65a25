"""One transaction's worth of records, merged and written table by table; guards law 6 (one recorded outcome)."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Executable, select

from koubou_broker import records, rows, schema, statements
from koubou_broker.batches import Entry, NewBlob
from koubou_broker.rows import Values
from koubou_common.messages.limits import CHUNK_BYTES

OWNED_BYTES = 4_096  # whoever uploaded less sends it again: cheaper than a row and a question
_IN_LIST = 500  # values in one IN: far below SQLite's limit of variables


class ConstraintBroken(Exception):  # noqa: N818 - what broke is the name
    """The core asked for what must not be written: a bug of ours, never a peer's doing."""


class Transaction:
    """Gathers entries, then writes them with one statement a table."""

    def __init__(self) -> None:
        self._blobs: dict[bytes, NewBlob] = {}
        self._owners: dict[tuple[str, bytes], None] = {}
        self._refs: dict[tuple[bytes, int], None] = {}
        self._new_tasks: dict[int, Values] = {}
        self._progress: dict[int, Values] = {}
        self._attempts: dict[str, Values] = {}
        self._workers: dict[str, Values] = {}
        self._principals: dict[str, Values] = {}
        self._submissions: list[Values] = []
        self._events: list[Values] = []
        self._metrics: list[Values] = []
        self._factors: list[Values] = []
        self._decisions: dict[str, Values] = {}
        self._cached: dict[bytes, Values] = {}
        self._audit: list[Values] = []
        self._parked: dict[str, Values] = {}
        self._needed: set[bytes] = set()

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in entries in their order; ConstraintBroken if they contradict each other."""
        for entry in entries:
            for new in entry.blobs:
                self._blobs[new.sha256] = new
                if new.owner and len(new.data) >= OWNED_BYTES:
                    self._owners[new.owner, new.sha256] = None
            for record in entry.records:
                self._add(record)

    def write(self, connection: Connection) -> None:
        """Write everything; the caller holds the transaction."""
        self._write_blobs(connection)
        _execute(connection, statements.ADD_TASK, self._checked_new_tasks())
        self._write_progress(connection)
        self._write_refs(connection)
        _execute(connection, statements.ADD_SUBMISSION, self._submissions)
        _execute(connection, statements.PUT_ATTEMPT, self._attempts.values())
        _execute(connection, statements.ADD_EVENT, self._events)
        _execute(connection, statements.PUT_WORKER, self._workers.values())
        _execute(connection, statements.ADD_METRIC, self._metrics)
        _execute(connection, statements.ADD_FACTOR, self._factors)
        _execute(connection, statements.PUT_DECISION, self._decisions.values())
        _execute(connection, statements.PUT_CACHED, self._cached.values())
        _execute(connection, statements.PUT_PRINCIPAL, self._principals.values())
        _execute(connection, statements.ADD_AUDIT, self._audit)
        _execute(connection, statements.PUT_PARKED, self._parked.values())

    def _add(self, record: records.Record) -> None:
        match record:
            case records.NewTask():
                if record.task_id in self._new_tasks:
                    raise ConstraintBroken(f"task {record.task_id} is new twice")
                self._new_tasks[record.task_id] = rows.new_task_row(record)
                self._refer(record.prompt.sha256, record.task_id)
                for file in record.files:
                    self._refer(file.body.sha256, record.task_id)
            case records.TaskProgress():
                self._add_progress(record)
            case records.Submission():
                self._submissions.append(rows.submission_row(record))
            case records.Attempt():
                self._attempts[record.attempt_uid] = rows.attempt_row(record)
            case records.Event():
                self._events.append(rows.event_row(record))
            case records.Worker():
                self._workers[record.worker_id] = rows.worker_row(record)
            case records.WorkerMetric():
                self._metrics.append(rows.metric_row(record))
            case records.FactorChange():
                self._factors.append(rows.factor_row(record))
            case records.Decided():
                self._decisions[record.attempt_uid] = rows.decided_row(record)
            case records.CachedResult():
                self._cached[record.key] = rows.cached_row(record)
            case records.Principal():
                self._principals[record.public_key] = rows.principal_row(record)
            case records.Audit():
                self._audit.append(rows.audit_row(record))
            case records.Parked():
                self._parked[record.attempt_uid] = rows.parked_row(record)
                if record.raw:
                    self._needed.add(record.raw.sha256)

    def _add_progress(self, record: records.TaskProgress) -> None:
        row = rows.progress_row(record)
        new = self._new_tasks.get(record.task_id)
        earlier = self._progress.get(record.task_id) if new is None else new
        # Rows of one transaction are merged: what the UPDATE's guard would refuse is refused here.
        if (
            earlier
            and earlier.get("state") in statements.TERMINAL_STATES
            and earlier["generation"] >= record.generation
        ):
            raise ConstraintBroken(f"task {record.task_id} is {earlier['state']}, not {record.state.value}")
        if new is not None:
            new.update(row)
        else:
            self._progress[record.task_id] = row
        if record.result:
            self._refer(record.result.sha256, record.task_id)

    def _refer(self, sha256: bytes, task_id: int) -> None:
        self._refs[sha256, task_id] = None
        self._needed.add(sha256)

    def _checked_new_tasks(self) -> list[Values]:
        for task_id, row in self._new_tasks.items():
            if "state" not in row:
                raise ConstraintBroken(f"task {task_id} is new without a state")
        return list(self._new_tasks.values())

    def _write_blobs(self, connection: Connection) -> None:
        if not self._blobs:
            return
        now_ms = time.time_ns() // 1_000_000
        blobs = self._blobs.values()
        _execute(
            connection,
            statements.PUT_BLOB,
            [{"sha256": new.sha256, "size_bytes": len(new.data), "stored_ms": now_ms} for new in blobs],
        )
        _execute(
            connection,
            statements.ADD_CHUNK,
            [
                {"sha256": new.sha256, "n": n, "bytes": piece}
                for new in blobs
                for n, piece in enumerate(pieces(new.data))
            ],
        )
        _execute(
            connection,
            statements.ADD_OWNER,
            [{"principal": owner, "sha256": sha256} for owner, sha256 in self._owners],
        )

    def _write_progress(self, connection: Connection) -> None:
        if not self._progress:
            return
        written = connection.execute(
            statements.UPDATE_PROGRESS,
            [
                {**row, "guard_task_id": task_id, "guard_generation": row["generation"]}
                for task_id, row in self._progress.items()
            ],
        ).rowcount
        if written != len(self._progress):
            raise ConstraintBroken(
                f"{len(self._progress) - written} of the tasks {sorted(self._progress)[:20]} are over or unknown"
            )

    def _write_refs(self, connection: Connection) -> None:
        missing = self._needed - self._blobs.keys()
        for some in in_lists(sorted(missing)):
            query = select(schema.blob.c.sha256).where(schema.blob.c.sha256.in_(some))
            missing -= set(connection.scalars(query))
        if missing:
            # Bodies are durable before what refers to them (wire decision); an output must never dangle.
            raise ConstraintBroken(f"no blob {min(missing).hex()} for what refers to it")
        _execute(
            connection,
            statements.ADD_REF,
            [{"sha256": sha256, "task_id": task_id} for sha256, task_id in self._refs],
        )


def pieces(data: bytes) -> list[bytes]:
    """A blob cut for the wire and the table; an empty one has one empty piece."""
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)] or [b""]


def in_lists(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Values in portions that fit one IN clause."""
    for at in range(0, len(values), _IN_LIST):
        yield values[at : at + _IN_LIST]


def _execute(connection: Connection, statement: Executable, values: Iterable[Values]) -> None:
    many = list(values)
    if many:
        connection.execute(statement, many)
