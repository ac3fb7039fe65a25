"""The broker's database as the simulation models it: what is committed survives, what is not does not.

It holds the laws of the store: a terminal state changes only with a new generation, a submission's key is unique, an
attempt belongs to a task. A write that breaks one is an error here, as it is in SQL.
"""

from dataclasses import dataclass, field
from typing import assert_never

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


@dataclass(slots=True)
class Disk:
    """Tables as dictionaries."""

    tasks: dict[int, NewTask] = field(default_factory=dict)
    progress: dict[int, TaskProgress] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    submissions: dict[tuple[str, str], Submission] = field(default_factory=dict)
    principals: dict[str, Principal] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    events: dict[int, list[Event]] = field(default_factory=dict)
    event_seqs: set[int] = field(default_factory=set)
    parked: dict[str, Parked] = field(default_factory=dict)
    epoch: int = 0
    next_batch_id: int = 1

    def commit(self, records: list[Record]) -> None:
        """One transaction."""
        for record in records:
            self._write(record)

    def snapshot(self) -> Snapshot:
        """What a starting broker reads."""
        self.epoch += 1
        live = {task_id for task_id, progress in self.progress.items() if not progress.state.is_terminal}
        return Snapshot(
            epoch=self.epoch,
            next_task_id=max(self.tasks, default=0) + 1,
            next_batch_id=self.next_batch_id,
            next_event_seq=max(self.event_seqs, default=0) + 1,
            tasks=tuple(self._stored(task_id) for task_id in sorted(live)),
            attempts=tuple(
                attempt
                for attempt in self.attempts.values()
                if attempt.task_id in live and attempt.generation == self.progress[attempt.task_id].generation
            ),
            workers=tuple(self.workers.values()),
            principals=tuple(self.principals.values()),
            submission_hashes=frozenset(submission_hash(*key) for key in self.submissions),
        )

    def find(self, query: Query) -> Found:
        """What a look-up brings."""
        match query:
            case FindTasks():
                wanted = [
                    task_id
                    for task_id, task in sorted(self.tasks.items(), reverse=True)
                    if (not query.principal or task.principal == query.principal)
                    and (not query.task_ids or task_id in query.task_ids)
                    and (not query.batch_id or task.batch_id == query.batch_id)
                    and (not query.states or self.progress[task_id].state in query.states)
                    and (not query.before_id or task_id < query.before_id)
                ]
                return Found(tasks=tuple(self._stored(task_id) for task_id in wanted[: query.most]))
            case FindMarks(task_ids, batch_id):
                ids = [task_id for task_id in task_ids if task_id in self.tasks]
                ids += [task_id for task_id, task in self.tasks.items() if batch_id and task.batch_id == batch_id]
                return Found(tasks=tuple(self._stored(task_id) for task_id in ids))
            case FindStory(task_id):
                stored = (self._stored(task_id),) if task_id in self.tasks else ()
                attempts = tuple(one for one in self.attempts.values() if one.task_id == task_id)
                return Found(tasks=stored, attempts=attempts, events=tuple(self.events.get(task_id, ())))
            case FindSubmission(principal, key):
                submission = self.submissions.get((principal, key))
                if submission is None:
                    return Found()
                ids = range(submission.first_task_id, submission.first_task_id + submission.count)
                return Found(tasks=tuple(self._stored(task_id) for task_id in ids), submission=submission)
            case FindAttempt(uid):
                attempt = self.attempts.get(uid)
                if attempt is None:
                    return Found()
                return Found(tasks=(self._stored(attempt.task_id),), attempts=(attempt,))
            case CountStates():
                return Found()
            case _:
                assert_never(query)

    def _stored(self, task_id: int) -> StoredTask:
        return StoredTask(self.tasks[task_id], self.progress[task_id])

    def _write(self, record: Record) -> None:
        match record:
            case NewTask():
                assert record.task_id not in self.tasks, f"task {record.task_id} inserted twice"
                self.tasks[record.task_id] = record
                self.next_batch_id = max(self.next_batch_id, record.batch_id + 1)
            case TaskProgress():
                before = self.progress.get(record.task_id)
                if before is not None and before.state.is_terminal:
                    assert record.generation > before.generation, (
                        f"task {record.task_id}: recorded as {before.state}, written again as {record.state}"
                    )
                self.progress[record.task_id] = record
            case Submission():
                key = (record.principal, record.idempotency_key)
                assert key not in self.submissions, f"submission {key} accepted twice"
                self.submissions[key] = record
            case Attempt():
                assert record.task_id in self.tasks, f"attempt {record.attempt_uid} of no task"
                self.attempts[record.attempt_uid] = record
            case Event():
                assert record.seq not in self.event_seqs, f"event {record.seq} twice"
                self.event_seqs.add(record.seq)
                self.events.setdefault(record.task_id, []).append(record)
            case Worker():
                self.workers[record.worker_id] = record
            case Principal():
                self.principals[record.public_key] = record
            case Parked():
                self.parked[record.attempt_uid] = record
            case WorkerMetric() | Audit():
                pass
            case _:
                assert_never(record)
