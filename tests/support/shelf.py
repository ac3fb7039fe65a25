"""A store in memory that keeps the laws a database would keep: for the core on its stage, and the simulation."""

from dataclasses import replace

from koubou_broker.effects import (
    CountStates,
    FindAttempt,
    FindMarks,
    FindStory,
    FindSubmission,
    FindTasks,
    Found,
    Query,
    Snapshot,
    StoredTask,
)
from koubou_broker.idempotency import submission_hash
from koubou_broker.records import (
    Attempt,
    Audit,
    Event,
    NewTask,
    Parked,
    Principal,
    Record,
    Submission,
    TaskProgress,
    Worker,
    WorkerMetric,
)


class Shelf:
    """A store in memory: applies Saves, keeps the laws a database would keep, answers Lookups."""

    def __init__(self) -> None:
        self.tasks: dict[int, NewTask] = {}
        self.progress: dict[int, TaskProgress] = {}
        self.submissions: dict[tuple[str, str], Submission] = {}
        self.attempts: dict[str, Attempt] = {}
        self.events: list[Event] = []
        self.workers: dict[str, Worker] = {}
        self.metrics: list[WorkerMetric] = []
        self.principals: dict[str, Principal] = {}
        self.audits: list[Audit] = []
        self.parked: dict[str, Parked] = {}
        #: tasks whose prompt and files retention removed
        self.bodiless: set[int] = set()

    def put(self, record: Record) -> None:
        """Write one row; AssertionError where a database would refuse."""
        match record:
            case NewTask():
                assert record.task_id not in self.tasks, f"task {record.task_id} twice"
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
            case Event():
                assert not self.events or record.seq > self.events[-1].seq, "event out of order"
                self.events.append(record)
            case Worker():
                self.workers[record.worker_id] = record
            case WorkerMetric():
                assert record.worker_id in self.workers, f"metric of unknown worker {record.worker_id}"
                self.metrics.append(record)
            case Principal():
                self.principals[record.public_key] = record
            case Audit():
                self.audits.append(record)
            case Parked():
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
        live = [task_id for task_id, row in self.progress.items() if not row.state.is_terminal]
        return Snapshot(
            epoch=epoch,
            next_task_id=max(self.tasks, default=0) + 1,
            next_batch_id=max((task.batch_id for task in self.tasks.values()), default=0) + 1,
            next_event_seq=max((event.seq for event in self.events), default=0) + 1,
            tasks=tuple(self.stored(task_id) for task_id in live),
            attempts=tuple(
                one
                for one in self.attempts.values()
                if one.task_id in live and one.generation == self.progress[one.task_id].generation
            ),
            workers=tuple(self.workers.values()),
            principals=tuple(self.principals.values()),
            submission_hashes=frozenset(submission_hash(*key) for key in self.submissions),
        )

    def _put_progress(self, record: TaskProgress) -> None:
        assert record.task_id in self.tasks, f"progress of unknown task {record.task_id}"
        before = self.progress.get(record.task_id)
        if before is not None:
            assert record.attempts >= before.attempts, "attempt numbers restarted"
            if before.state.is_terminal:
                # Law 6: a terminal row changes only together with its generation.
                assert record.generation == before.generation + 1, f"an ended task changed: {before} {record}"
        self.progress[record.task_id] = record

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
