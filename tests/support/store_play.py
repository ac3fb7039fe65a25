"""Records and a store for tests: builders with defaults, and a store thread on a real file."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, event

from koubou_broker import migrate, records
from koubou_broker.batches import Batch, Durable, Entry, Failed, NewBlob, Outcome
from koubou_broker.database import open_reader, open_writer
from koubou_broker.effects import Snapshot
from koubou_broker.lookups import read_snapshot
from koubou_broker.retention import Keep, Sweep
from koubou_broker.statements import PUT_META
from koubou_broker.store import Store
from koubou_broker.wake import Wake
from koubou_common.messages.values import (
    AttemptState,
    Body,
    Candidate,
    Decision,
    File,
    Label,
    Metrics,
    Option,
    ReasonCount,
    Role,
    ScorePart,
    TaskState,
    WorkerMode,
)
from koubou_common.reasons import Reason
from support.waiting import eventually

EPOCH = 1_700_000_000_000
START_MS = 1_700_000_000_000
SQLITE_PAGES_MAX = 1_073_741_823


def sha(data: bytes) -> bytes:
    """The name of a blob."""
    return hashlib.sha256(data).digest()


def a_blob(data: bytes, owner: str = "mika") -> NewBlob:
    """Bytes on their way into the store."""
    return NewBlob(sha(data), data, owner)


def a_task(
    task_id: int = 1, *, prompt: bytes = b"hello", files: tuple[bytes, ...] = (), **changes: object
) -> records.NewTask:
    """A task's unchanging half."""
    fields: dict[str, object] = {
        "task_id": task_id,
        "batch_id": 0,
        "batch_index": 0,
        "principal": "mika",
        "custom_id": "",
        "idempotency_key": "",
        "prompt": records.BodyRef(sha(prompt), len(prompt)),
        "files": tuple(File(f"f{n}.py", Body(sha(data), len(data))) for n, data in enumerate(files)),
        "target": "out.md",
        "repo": "",
        "model": "gpt-oss:20b",
        "priority": 5,
        "task_type": "general",
        "options": (Option("temperature", 0.3), Option("stop", ("END",))),
        "worker": "",
        "labels": (Label("gpu", "yes"),),
        "min_context": 0,
        "timeout_s": None,
        "deadline_ms": 0,
        "max_attempts": 5,
        "strict_output": False,
        "out_path": "",
        "out_digest": "",
        "submitted_ms": START_MS,
    }
    return records.NewTask(**{**fields, **changes})  # type: ignore[arg-type] # checked by the record's users


def a_progress(task_id: int = 1, state: TaskState = TaskState.QUEUED, **changes: object) -> records.TaskProgress:
    """A task's changing half."""
    fields: dict[str, object] = {
        "task_id": task_id,
        "state": state,
        "generation": 0,
        "attempts": 0,
        "transient_failures": 0,
        "infra_failures": 0,
        "deaths": (),
        "excluded": (),
        "not_before_ms": 0,
        "worker_id": "",
        "error_class": None,
        "error_message": "",
        "started_ms": 0,
        "finished_ms": START_MS if state.is_terminal else 0,
        "result": None,
        "output_offset": 0,
        "output_length": 0,
        "flags": (),
        "metrics": None,
    }
    return records.TaskProgress(**{**fields, **changes})  # type: ignore[arg-type] # as above


def an_attempt(
    uid: str = "a" * 32, task_id: int = 1, state: AttemptState = AttemptState.RUNNING, **changes: object
) -> records.Attempt:
    """One try."""
    fields: dict[str, object] = {
        "attempt_uid": uid,
        "task_id": task_id,
        "number": 1,
        "generation": 0,
        "worker_id": "lan_001",
        "boot_id": "b" * 32,
        "state": state,
        "started_ms": START_MS,
        "ended_ms": 0,
        "error_class": None,
        "message": "",
        "metrics": Metrics(prompt_tokens=7),
        "log": "",
        "placement": "lan_001 130",
    }
    return records.Attempt(**{**fields, **changes})  # type: ignore[arg-type] # as above


def a_decision(uid: str = "a" * 32, task_id: int = 1) -> records.Decided:
    """Why an attempt went to its worker."""
    parts = (ScorePart("factor", 50.0), ScorePart("idle", 50.0), ScorePart("success", 30.0))
    winner = Candidate("lan_001", True, True, 130.0, "", None, parts, 0, 41.0)
    reasons = (ReasonCount(Reason.BUSY, 3), ReasonCount(Reason.PAUSED, 1))
    decision = Decision("priority_based", "priority 1-5: remote", (winner,), reasons, "waited long")
    return records.Decided(uid, task_id, decision)


def an_event(seq: int = 1, task_id: int = 1) -> records.Event:
    """One change of a task."""
    return records.Event(seq, task_id, START_MS, "mika", "", "queued", 0, "submitted")


def a_worker(worker_id: str = "lan_001") -> records.Worker:
    """A worker as last seen."""
    return records.Worker(
        worker_id=worker_id,
        location="remote",
        performance_factor=0.5,
        endpoint_url="http://192.168.1.100:11434",
        network_latency_ms=3,
        last_health_check_ms=START_MS + 123,
        mode=WorkerMode.ACTIVE,
        boot_id="b" * 32,
        software="0.1.0",
        models=("gpt-oss:20b",),
    )


def a_metric(
    task_id: int = 1, *, success: bool = True, measured_ms: int = START_MS, **changes: object
) -> records.WorkerMetric:
    """A finished attempt in numbers."""
    fields: dict[str, object] = {
        "worker_id": "lan_001",
        "task_id": task_id,
        "execution_time_ms": 1_500,
        "tokens_processed": 30,
        "prompt_length": 400,
        "output_length": 90,
        "success": success,
        "error_type": "" if success else "timeout",
        "measured_ms": measured_ms,
        "model": "gpt-oss:20b",
        "prompt_tokens": 100,
        "output_tokens": 20,
        "eval_ms": 900,
    }
    return records.WorkerMetric(**{**fields, **changes})  # type: ignore[arg-type] # as above


def a_principal(public_key: str = "k" * 40, name: str = "mika", role: Role = Role.CLIENT) -> records.Principal:
    """A key and what it may do."""
    return records.Principal(public_key, name, role, None, START_MS, 0, 0, "")


def a_submitted_task(task_id: int = 1, *, prompt: bytes = b"hello") -> Entry:
    """What a Submit of one task writes."""
    return Entry(
        (a_task(task_id, prompt=prompt), a_progress(task_id), an_event(task_id, task_id)),
        (a_blob(prompt),),
    )


class StorePlay:
    """A store thread on a real database file, driven batch by batch."""

    def __init__(self, path: Path, engine: Engine, store: Store, wake: Wake) -> None:
        self.path = path
        self.engine = engine
        self.store = store
        self.wake = wake
        self.term = 0
        self.number = 0
        self.outcomes: list[Outcome] = []
        self._pages = SQLITE_PAGES_MAX

        @event.listens_for(engine, "begin")
        def keep_to_the_quota(connection: Connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {self._pages}")

    def limit_pages(self, pages: int | None) -> None:
        """A tiny quota, None to lift it: SQLite then answers as on a full disk (SQLITE_FULL)."""
        self._pages = pages or SQLITE_PAGES_MAX

    def put(self, *entries: Entry, **more: object) -> int:
        """Hand a batch over; its number."""
        self.number += 1
        self.store.put(Batch(self.number, self.term, entries, **more))  # type: ignore[arg-type] # claims, quarantined
        return self.number

    def write(self, *entries: Entry) -> None:
        """Hand a batch over and wait until it is durable."""
        number = self.put(*entries)
        eventually(lambda: Durable(number, self.term) in self.heard(), what=f"batch {number} is durable")

    def fail(self, *entries: Entry) -> Failed:
        """Hand a batch over and wait until it has failed; the next batch begins a new term."""
        self.put(*entries)
        failed = eventually(lambda: [one for one in self.heard() if isinstance(one, Failed)])[-1]
        self.term += 1
        return failed

    def heard(self) -> list[Outcome]:
        """All outcomes so far."""
        self.outcomes += self.store.take()
        return self.outcomes

    def snapshot(self, now_ms: int = START_MS) -> Snapshot:
        """What a core would start from now."""
        reader = open_reader(self.path)
        try:
            with reader.begin() as connection:
                return read_snapshot(connection, now_ms)
        finally:
            reader.dispose()

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """What a person with a database shell would see."""
        reader = open_reader(self.path)
        try:
            with reader.begin() as connection:
                return [tuple(row) for row in connection.exec_driver_sql(sql)]
        finally:
            reader.dispose()


@contextmanager
def a_store(path: Path, *, epoch: int = EPOCH, sweep: Sweep | None = None) -> Iterator[StorePlay]:
    """A running store on the database at `path`, made if missing."""
    migrate.prepare(path)
    engine = open_writer(path)
    with engine.begin() as connection:
        connection.execute(PUT_META, {"key": "epoch", "value": epoch})
    wake = Wake()
    store = Store(engine, EPOCH, wake.set, sweep or Sweep(Keep()))
    store.start()
    try:
        yield StorePlay(path, engine, store, wake)
    finally:
        assert store.stop(timeout_s=10)
        engine.dispose()
        wake.close()
