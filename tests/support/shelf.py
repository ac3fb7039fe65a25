"""A store in memory that keeps the laws a database would keep: for the core on its stage, and the simulation."""

from collections.abc import Iterator
from dataclasses import replace

from koubou_broker.batches import NewBlob, Quarantined
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
    Peer,
    Query,
    Snapshot,
    StoredTask,
)
from koubou_broker.idempotency import submission_hash
from koubou_broker.records import (
    Attempt,
    Audit,
    CachedResult,
    Decided,
    Event,
    FactorChange,
    NewTask,
    Parked,
    Principal,
    Record,
    Submission,
    TaskProgress,
    Worker,
    WorkerMetric,
)
from koubou_broker.routing.speeds import speeds_of
from koubou_broker.transaction import OWNED_BYTES
from koubou_common.messages.limits import CHUNK_BYTES, PAGE_PARKED
from koubou_common.messages.values import AttemptState, Role, TaskState, WorkerStats


class Shelf:
    """A store in memory: applies Saves, keeps the laws a database would keep, answers Lookups."""

    def __init__(self, *, keeps_bodies: bool = False) -> None:
        """`keeps_bodies`: what a task or a result names must be there, as in the database."""
        self.keeps_bodies = keeps_bodies
        #: `epoch`, and the floors under the numbers to give out next
        self.meta: dict[str, int] = {}
        self.blobs: dict[bytes, bytes] = {}
        self.owners: set[tuple[str, bytes]] = set()
        #: which task names, or named, which body: an output stays its task's when a retry brings another
        self.refs: dict[int, set[bytes]] = {}
        self.quarantined: list[Quarantined] = []
        self.tasks: dict[int, NewTask] = {}
        self.progress: dict[int, TaskProgress] = {}
        self.submissions: dict[tuple[str, str], Submission] = {}
        self.attempts: dict[str, Attempt] = {}
        self.events: list[Event] = []
        self.workers: dict[str, Worker] = {}
        self.metrics: list[WorkerMetric] = []
        self.factors: list[FactorChange] = []
        self.decisions: dict[str, Decided] = {}
        self.cached: dict[bytes, CachedResult] = {}
        self.principals: dict[str, Principal] = {}
        self.audits: list[Audit] = []
        self.parked: dict[str, Parked] = {}
        #: every row of a task's and an attempt's state, in the order they were written
        self.written: list[TaskProgress | Attempt] = []
        #: tasks whose prompt and files retention removed
        self.bodiless: set[int] = set()

    def copy(self) -> "Shelf":
        """Another one with the same rows."""
        other = Shelf(keeps_bodies=self.keeps_bodies)
        for name, rows in vars(self).items():
            setattr(other, name, rows if isinstance(rows, bool) else rows.copy())
        other.refs = {task_id: hashes.copy() for task_id, hashes in self.refs.items()}
        return other

    def put_blob(self, new: NewBlob) -> None:
        """Keep a body; whoever uploaded a larger one may refer to it again."""
        self.blobs[new.sha256] = new.data
        if new.owner and len(new.data) >= OWNED_BYTES:
            self.owners.add((new.owner, new.sha256))

    def owned(self, principal: str, hashes: tuple[bytes, ...]) -> tuple[tuple[bytes, int], ...]:
        """Which of these bodies the principal may refer to, with their sizes."""
        return tuple((sha256, len(self.blobs[sha256])) for sha256 in hashes if (principal, sha256) in self.owners)

    def may_read(self, peer: Peer, sha256: bytes) -> bool:
        """Whether a peer may have a body: a worker what its running attempts name, a client what its tasks hold."""
        if peer.role is Role.OPERATOR:
            return any(self._names(task_id, sha256) for task_id in self.tasks)
        if peer.role is Role.CLIENT:
            mine = [task_id for task_id, task in self.tasks.items() if task.principal == peer.name]
            return any(self._names(task_id, sha256) for task_id in mine)
        return peer.role is Role.WORKER and any(
            self._names(one.task_id, sha256)
            for one in self.attempts.values()
            if one.worker_id == peer.name and one.state is AttemptState.RUNNING
        )

    def chunk(self, sha256: bytes, index: int) -> bytes | None:
        """One piece of a body."""
        data = self.blobs.get(sha256)
        start = index * CHUNK_BYTES
        if data is None or start >= max(1, len(data)):
            return None
        return data[start : start + CHUNK_BYTES]

    def put(self, record: Record) -> None:
        """Write one row; AssertionError where a database would refuse."""
        match record:
            case NewTask():
                assert record.task_id not in self.tasks, f"task {record.task_id} twice"
                hashes = {record.prompt.sha256, *(file.body.sha256 for file in record.files)}
                self._require(*hashes)
                self.refs[record.task_id] = hashes
                self.tasks[record.task_id] = record
            case TaskProgress():
                self._put_progress(record)
            case Submission():
                key = (record.principal, record.idempotency_key)
                assert key not in self.submissions, f"submission {key} twice"
                self.submissions[key] = record
            case Attempt():
                before = self.attempts.get(record.attempt_uid)
                assert before is None or before.number == record.number, "an attempt's number changed"
                assert record.task_id in self.tasks, f"attempt {record.attempt_uid} of no task"
                self.attempts[record.attempt_uid] = record
                self.written.append(record)
            case Event():
                assert not self.events or record.seq > self.events[-1].seq, "event out of order"
                self.events.append(record)
            case Worker():
                self.workers[record.worker_id] = record
            case WorkerMetric():
                assert record.worker_id in self.workers, f"metric of unknown worker {record.worker_id}"
                self.metrics.append(record)
            case FactorChange():
                self.factors.append(record)
            case Decided():
                assert record.attempt_uid in self.attempts, f"a decision of no attempt {record.attempt_uid}"
                self.decisions[record.attempt_uid] = record
            case CachedResult():
                self.cached[record.key] = record
            case Principal():
                self.principals[record.public_key] = record
            case Audit():
                self.audits.append(record)
            case Parked():
                if record.raw is not None:
                    self._require(record.raw.sha256)
                self.parked[record.attempt_uid] = record

    def find(self, query: Query) -> Found:
        """The rows of a Lookup."""
        match query:
            case FindTasks():
                return Found(tasks=tuple(self._page(query)))
            case FindMarks():
                ids = {*query.task_ids, *(one.task_id for one in self.tasks.values() if one.batch_id == query.batch_id)}
                if not query.batch_id:
                    ids = set(query.task_ids)
                there = [self.stored(task_id) for task_id in sorted(ids) if task_id in self.tasks]
                return Found(
                    tasks=tuple(replace(one, has_bodies=one.task.task_id not in self.bodiless) for one in there)
                )
            case FindStory():
                if query.task_id not in self.tasks:
                    return Found()
                return Found(
                    tasks=(self.stored(query.task_id),),
                    attempts=tuple(one for one in self.attempts.values() if one.task_id == query.task_id),
                    events=self.events_of(query.task_id),
                    decisions=tuple(one for one in self.decisions.values() if one.task_id == query.task_id)
                    if query.with_decisions
                    else (),
                )
            case FindSubmission():
                submission = self.submissions.get((query.principal, query.idempotency_key))
                if submission is None:
                    return Found()
                first = submission.first_task_id
                ids = set(range(first, first + submission.count))
                return Found(submission=submission, tasks=tuple(self.stored(task_id) for task_id in sorted(ids)))
            case FindAttempt():
                attempt = self.attempts.get(query.attempt_uid)
                if attempt is None:
                    return Found()
                return Found(attempts=(attempt,), tasks=(self.stored(attempt.task_id),))
            case FindParked():
                rows = [row for row in self.parked.values() if query.attempt_uid in ("", row.attempt_uid)]
                rows.sort(key=lambda row: (-row.at_ms, row.attempt_uid))
                return Found(parked=tuple(rows[query.skip :][:PAGE_PARKED]), parked_total=len(self.parked))
            case FindSpeeds():
                return Found(speeds=speeds_of(self.metrics, query.since_ms))
            case FindCached():
                return Found(cached=tuple(self._cached(query)))
            case FindStats():
                wanted = [one for one in self.metrics if one.measured_ms >= query.since_ms]
                changes = [one for one in self.factors if query.worker_id in ("", one.worker_id)]
                return Found(
                    stats=tuple(
                        _stats([one for one in wanted if one.worker_id == worker_id])
                        for worker_id in sorted({one.worker_id for one in wanted})
                        if query.worker_id in ("", worker_id)
                    ),
                    factors=tuple(one for one in changes[::-1] if one.at_ms >= query.since_ms),
                )
            case CountStates():
                states = [
                    self.progress[task_id].state
                    for task_id, task in self.tasks.items()
                    if query.principal in ("", task.principal)
                ]
                return Found(counts=tuple((state, states.count(state)) for state in dict.fromkeys(states)))

    def stored(self, task_id: int) -> StoredTask:
        """One task whole."""
        return StoredTask(self.tasks[task_id], self.progress[task_id])

    def events_of(self, task_id: int) -> tuple[Event, ...]:
        """A task's history, in order."""
        return tuple(one for one in self.events if one.task_id == task_id)

    def snapshot(self, epoch: int = 2) -> Snapshot:
        """What a new core starts from."""
        numbers = self.numbers()
        live = [task_id for task_id, row in self.progress.items() if not row.state.is_terminal]
        return Snapshot(
            epoch=epoch,
            next_task_id=numbers["next_task_id"],
            next_batch_id=numbers["next_batch_id"],
            next_event_seq=numbers["next_event_seq"],
            tasks=tuple(self.stored(task_id) for task_id in live),
            attempts=tuple(
                one
                for one in self.attempts.values()
                if one.task_id in live and one.generation == self.progress[one.task_id].generation
            ),
            workers=tuple(self.workers.values()),
            principals=tuple(self.principals.values()),
            loss=Loss(*(self.meta.get(key, 0) for key in ("restored_ms", "lost_first_id", "lost_end_id"))),
            submission_hashes=frozenset(submission_hash(*key) for key in self.submissions),
        )

    def numbers(self) -> dict[str, int]:
        """The numbers to give out next: above all that are there, and above all that were."""
        highest = {
            "next_task_id": max(self.tasks, default=0),
            "next_batch_id": max((task.batch_id for task in self.tasks.values()), default=0),
            "next_event_seq": self.events[-1].seq if self.events else 0,
        }
        return {name: max(number + 1, self.meta.get(name, 0)) for name, number in highest.items()}

    def _require(self, *hashes: bytes) -> None:
        if self.keeps_bodies:
            missing = [sha256.hex() for sha256 in hashes if sha256 not in self.blobs]
            assert not missing, f"no body {missing[0]} for what refers to it"

    def _names(self, task_id: int, sha256: bytes) -> bool:
        return sha256 in self.refs.get(task_id, ())

    def _put_progress(self, record: TaskProgress) -> None:
        assert record.task_id in self.tasks, f"progress of unknown task {record.task_id}"
        before = self.progress.get(record.task_id)
        if before is not None:
            assert record.attempts >= before.attempts, "attempt numbers restarted"
            if before.state.is_terminal:
                # Law 6: a terminal row changes only together with its generation.
                assert record.generation == before.generation + 1, f"an ended task changed: {before} {record}"
        if record.result is not None:
            self._require(record.result.sha256)
            self.refs.setdefault(record.task_id, set()).add(record.result.sha256)
        self.progress[record.task_id] = record
        self.written.append(record)

    def _cached(self, query: FindCached) -> Iterator[CachedAnswer]:
        for key in query.keys:
            row = self.cached.get(key)
            if row is None or row.stored_ms < query.since_ms:
                continue
            stored = self.stored(row.task_id)
            result = stored.progress.result
            if stored.progress.state is TaskState.SUCCEEDED and stored.progress.finished_ms == row.stored_ms:
                assert result is not None, f"task {row.task_id} succeeded without a result"
                if self._names(row.task_id, result.sha256):
                    yield CachedAnswer(key, stored)

    def _page(self, query: FindTasks) -> list[StoredTask]:
        found = [
            self.stored(task_id)
            for task_id, task in sorted(self.tasks.items(), reverse=True)
            if query.principal in ("", task.principal)
            and (not query.task_ids or task_id in query.task_ids)
            and query.batch_id in (0, task.batch_id)
            and (not query.states or self.progress[task_id].state in query.states)
            and (not query.before_id or task_id < query.before_id)
        ]
        return found[: query.most]


def _stats(rows: list[WorkerMetric]) -> WorkerStats:
    """What the core passes on as it is: the sums themselves are the database's business."""
    good = [one.execution_time_ms for one in rows if one.success]
    return WorkerStats(
        worker_id=rows[0].worker_id,
        total=len(rows),
        successful=len(good),
        avg_ms=sum(good) / len(good) if good else 0.0,
        min_ms=min(good, default=0),
        max_ms=max(good, default=0),
        success_rate=len(good) / len(rows),
    )
