"""Every change of a task goes through here: state, history, rows, watchers, queue and attempts together."""

import math
from dataclasses import replace

from koubou_broker.core.measuring import note_end
from koubou_broker.core.standings import Waits
from koubou_broker.core.state import State
from koubou_broker.records import BodyRef
from koubou_broker.routing.queue import Need
from koubou_broker.task import Cause, LiveAttempt, Task
from koubou_broker.timers import Timer
from koubou_common.errors import Category, ErrorClass, category_of
from koubou_common.messages import Abort, Result, TaskChanged
from koubou_common.messages.values import AbortReason, AttemptState, TaskMark, TaskState

BROKER = "broker"  # the actor of what nobody asked for
FLAG_CACHED = "cached"  # of an outcome: no attempt made it, the result cache held it
FLAGS_MOST = 16  # what a message holds
_MESSAGE_CHARS = 2_000


class Lifecycle:
    """Moves tasks by the table and keeps every index in step."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._restored_since_s = -math.inf  # of the last task restored
        self._waits_at_s = 0.0
        self._waits = Waits(state)  # at that time

    def admit(self, task: Task, actor: str) -> None:
        """A task just submitted: durable from this step on."""
        state = self._state
        task.waiting_since_s = state.now.mono_s
        state.index_task(task)
        state.save(task.spec)
        task.tell("submitted")
        state.event(task, actor, "", 0, "submitted")
        state.save(task.progress())
        self._set_deadlines(task)
        if not task.asks_cache:
            self.make_ready(task)

    def restore(self, task: Task) -> None:
        """A live task of the snapshot."""
        state = self._state
        # The wall clock may have jumped back while we were away: nothing was submitted after now.
        waited_s = max(0.0, (state.now.wall_ms - (task.opened_ms or task.spec.submitted_ms)) / 1000)
        task.waiting_since_s = state.now.mono_s - waited_s
        if not task.opened_ms:
            # It may have jumped between two submissions too: first in, first out all the same.
            self._restored_since_s = max(self._restored_since_s, task.waiting_since_s)
            task.waiting_since_s = self._restored_since_s
        state.index_task(task)
        self._set_deadlines(task)
        if task.state is TaskState.QUEUED:
            wait_s = (task.not_before_ms - state.now.wall_ms) / 1000 if task.not_before_ms else 0.0
            # The wall clock may have jumped while we were away: never longer than any backoff.
            wait_s = min(wait_s, state.settings.backoff_cap_s)
            if wait_s > 0:
                state.timers.set(Timer.NOT_BEFORE, task.task_id, state.now.mono_s + wait_s)
            else:
                self.make_ready(task)
        else:
            state.account(task.spec.principal).running += 1

    def reopen(self, ended: Task, actor: str) -> Task:
        """An explicit retry: the next generation of an ended task."""
        state = self._state
        task = ended.reopened()
        task.opened_ms = state.now.wall_ms
        task.waiting_since_s = state.now.mono_s
        before = task.move(Cause.REOPENED, actor)
        state.alert(f"poison:{task.task_id}", "")
        state.index_task(task)
        self._record(task, before, actor, 0, "retry")
        self.make_ready(task)
        return task

    def make_ready(self, task: Task) -> None:
        """The task may go as soon as a worker is available."""
        state = self._state
        task.asks_cache = False
        need = state.router.need_of(task.spec, task.excluded, task.avoid)
        task.ready_since_s = state.now.mono_s
        task.hopes_since_s = None
        self._queue(task, need)
        wait_s = state.router.overflow_after_s(need.rule)
        if wait_s > 0:
            state.timers.set(Timer.OVERFLOW, task.task_id, state.now.mono_s + wait_s)

    def requeue_bucket(self, task: Task) -> None:
        """Sort a ready task in again: what it needs is another set of workers now."""
        state = self._state
        need = state.router.need_of(task.spec, task.excluded, task.avoid)
        state.queue.discard(task.task_id)
        self._queue(task, need)

    def dispatched(self, task: Task, attempt: LiveAttempt) -> None:
        """A queued task runs as a new attempt."""
        state = self._state
        task.issued = attempt.record.number
        task.uids.append(attempt.uid)
        state.attempts[attempt.uid] = attempt
        state.save(attempt.record)
        self._run(task, attempt, Cause.DISPATCHED, BROKER, f"dispatched to {attempt.record.worker_id}")

    def adopted(self, task: Task, attempt: LiveAttempt) -> None:
        """A queued task runs as an attempt that was given up too early."""
        attempt.record = replace(attempt.record, state=AttemptState.RUNNING, ended_ms=0, error_class=None, message="")
        self._state.save(attempt.record)
        worker_id = attempt.record.worker_id
        self._run(task, attempt, Cause.ADOPTED, worker_id, f"found alive on {worker_id}")

    def requeued(self, task: Task, actor: str, number: int, reason: str, wait_s: float) -> None:
        """The running attempt is over; the task waits for the next."""
        state = self._state
        before = task.move(Cause.REQUEUED, reason)
        state.account(task.spec.principal).running -= 1
        task.current = ""
        task.not_before_ms = state.now.wall_ms + round(wait_s * 1000) if wait_s > 0 else 0
        self._record(task, before, actor, number, reason)
        if wait_s > 0:
            state.timers.set(Timer.NOT_BEFORE, task.task_id, state.now.mono_s + wait_s)
        else:
            self.make_ready(task)

    def succeeded(self, attempt: LiveAttempt, result: Result) -> None:
        """The recorded outcome: this attempt's text."""
        task = attempt.task
        record = attempt.record
        task.result = BodyRef(result.raw.sha256, result.raw.size_bytes)
        task.output_offset, task.output_length = result.output_offset, result.output_length
        task.flags = result.flags
        task.metrics = result.metrics
        task.error_class, task.error_cause, task.error_message = None, None, ""
        task.worker_id = record.worker_id
        task.started_ms = record.started_ms
        self._end(task, Cause.SUCCEEDED, record.worker_id, record.number, abort=AbortReason.SUPERSEDED)

    def answered_from_cache(self, task: Task, source: Task) -> None:
        """The recorded outcome: what an earlier task with the same question was answered. There is no attempt."""
        task.asks_cache = False
        task.result = source.result
        task.output_offset, task.output_length = source.output_offset, source.output_length
        task.flags = (*source.flags[: FLAGS_MOST - 1], FLAG_CACHED)
        reason = f"the answer of task {source.task_id}, from the result cache"
        self._end(task, Cause.SUCCEEDED, BROKER, 0, reason, abort=AbortReason.SUPERSEDED)

    def failed(self, task: Task, error_class: ErrorClass, message: str, actor: str, number: int = 0) -> None:
        """The recorded outcome: no more attempts."""
        task.error_class = error_class
        if category_of(error_class) is not Category.ENDED:
            task.error_cause = None  # the failure says it all itself
        task.error_message = message[:_MESSAGE_CHARS]
        said = f"{error_class}: {message}" if message else str(error_class)
        self._end(task, Cause.FAILED, actor, number, said, abort=AbortReason.OVER)

    def begun_too_late(self, task: Task) -> None:
        """The recorded outcome: no worker was there for it in the time it was given."""
        waited_for = self._waits_for(task)
        text = f"no worker began it within {task.spec.queue_timeout_s:g} s"
        if waited_for:
            text += f"; it waited for {waited_for}"
        self.failed(task, ErrorClass.QUEUE_TIMEOUT, text, BROKER)

    def cancelled(self, task: Task, actor: str, reason: str) -> None:
        """The recorded outcome: somebody said stop."""
        self._end(task, Cause.CANCELLED, actor, 0, reason, abort=AbortReason.CANCELLED)

    def forget(self, attempt: LiveAttempt) -> None:
        """Its agent does not hold the attempt any more."""
        state = self._state
        worker = state.workers.get(attempt.record.worker_id)
        if worker is not None:
            worker.attempts.discard(attempt.uid)
            worker.release(attempt.uid)
            state.router.roster.touch(worker.worker_id)
        state.timers.drop(Timer.LEASE, attempt.uid)
        if attempt.task.is_over:
            state.attempts.pop(attempt.uid, None)

    def mark(self, task: Task) -> TaskMark:
        """What watchers are told."""
        return TaskMark(task.task_id, task.state, task.worker_id, task.issued)

    def _queue(self, task: Task, need: Need) -> None:
        state = self._state
        work_s = state.router.work_s(task.spec)
        state.queue.add(task.task_id, task.spec.priority, need, work_s, task.waiting_since_s)

    def _run(self, task: Task, attempt: LiveAttempt, cause: Cause, actor: str, reason: str) -> None:
        state = self._state
        state.queue.discard(task.task_id)
        state.timers.drop(Timer.NOT_BEFORE, task.task_id)
        state.timers.drop(Timer.OVERFLOW, task.task_id)
        state.timers.drop(Timer.QUEUE_TIMEOUT, task.task_id)
        before = task.move(cause, f"attempt {attempt.record.number}")
        state.account(task.spec.principal).running += 1
        task.current = attempt.uid
        task.not_before_ms = 0
        task.worker_id = attempt.record.worker_id
        task.started_ms = attempt.record.started_ms
        self._record(task, before, actor, attempt.record.number, reason)

    def _end(self, task: Task, cause: Cause, actor: str, number: int, reason: str = "", *, abort: AbortReason) -> None:
        state = self._state
        state.queue.discard(task.task_id)
        for kind in (Timer.NOT_BEFORE, Timer.OVERFLOW, Timer.DEADLINE, Timer.QUEUE_TIMEOUT):
            state.timers.drop(kind, task.task_id)
        before = task.move(cause, reason)
        if before is TaskState.RUNNING:
            state.account(task.spec.principal).running -= 1
        task.current = ""
        task.not_before_ms = 0
        task.finished_ms = state.now.wall_ms
        self._record(task, before, actor, number, reason)
        for uid in task.uids:
            self._stop(state.attempts[uid], abort)
        state.unindex_task(task)

    def _stop(self, attempt: LiveAttempt, reason: AbortReason) -> None:
        # The slot stays taken until the agent stops listing the attempt: Ollama may still be busy.
        state = self._state
        if attempt.record.state is AttemptState.RUNNING:
            attempt.record = replace(attempt.record, state=AttemptState.ABORTED, ended_ms=state.now.wall_ms)
            state.save(attempt.record)
            note_end(state, attempt, None)
        worker = state.workers.get(attempt.record.worker_id)
        if worker is None or attempt.uid not in worker.attempts:
            state.attempts.pop(attempt.uid, None)
            state.timers.drop(Timer.LEASE, attempt.uid)
        elif worker.session:
            state.send(worker.session, Abort(attempt.uid, reason))

    def _record(self, task: Task, before: TaskState, actor: str, number: int, reason: str) -> None:
        state = self._state
        state.event(task, actor, before, number, reason)
        state.save(task.progress())
        watchers = state.watchers.get(task.task_id)
        if not watchers:
            return
        changed = self.mark(task)
        for session, request_id in list(watchers):
            state.send(session, TaskChanged(request_id, changed))
            if task.is_over:
                watch = state.sessions[session].watches[request_id]
                watch.discard(task.task_id)
                del watchers[session, request_id]
                if not watch:
                    del state.sessions[session].watches[request_id]
        if not watchers:
            del state.watchers[task.task_id]

    def _waits_for(self, task: Task) -> str:
        # A whole batch is too late in one instant: every worker is looked at once for each need, not for each task.
        state = self._state
        if self._waits_at_s != state.now.mono_s:
            self._waits_at_s, self._waits = state.now.mono_s, Waits(state)
        return self._waits.of(task)

    def _set_deadlines(self, task: Task) -> None:
        spec = task.spec
        # Both are wishes of the submission: whoever retries later wants it done all the same.
        if task.generation > 1:
            return
        if spec.deadline_ms:
            self._set_limit(Timer.DEADLINE, task, (spec.deadline_ms - spec.submitted_ms) / 1000)
        # Once it has begun, lost attempts are under deadline and budgets alone.
        if spec.queue_timeout_s is not None and not task.issued:
            self._set_limit(Timer.QUEUE_TIMEOUT, task, spec.queue_timeout_s)

    def _set_limit(self, kind: Timer, task: Task, limit_s: float) -> None:
        now = self._state.now
        left_s = limit_s - (now.wall_ms - task.spec.submitted_ms) / 1000
        # The wall clock may have jumped back while we were away: never longer than was asked for.
        self._state.timers.set(kind, task.task_id, now.mono_s + max(0.0, min(left_s, limit_s)))
