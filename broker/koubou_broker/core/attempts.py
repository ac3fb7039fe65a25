"""Attempts: dispatched to workers, ended by results, failures, silence; found alive, found unknown."""

import heapq
from dataclasses import replace

from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.state import ALERT_LASTS_S, State
from koubou_broker.effects import FindAttempt, Found
from koubou_broker.records import Attempt, BodyRef, Parked, WorkerMetric
from koubou_broker.routing import model_bytes_of
from koubou_broker.task import LiveAttempt, Task, charge, forgive, judge
from koubou_broker.timers import Timer
from koubou_broker.workers import LiveWorker
from koubou_common.errors import Category, ErrorClass, category_of
from koubou_common.messages import Abort, Dispatch, Failure, Result, ResultStored
from koubou_common.messages.values import (
    AbortReason,
    AttemptState,
    Body,
    Disposition,
    Metrics,
    TaskState,
)

_MEASURED_TOKENS_LEAST = 200  # a shorter prompt says little about the ratio of bytes to tokens
_MEASURED_WEIGHT = 0.1  # of one more measurement
_MESSAGE_CHARS = 2_000
_OPEN = (AttemptState.RUNNING, AttemptState.LOST, AttemptState.ABORTED)
_ENDED_AFTER = "the task had ended before"


class Attempts:
    """Hands out attempts and takes in their outcomes."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self._state = state
        self._lifecycle = lifecycle

    def dispatch_ready(self) -> None:
        """Give out what can go now: the most urgent first, then first in, first out."""
        state = self._state
        room = sum(worker.free for worker in state.workers.values()) if len(state.queue) else 0
        if not room:
            return
        heads = state.queue.heads()
        now_s = state.now.mono_s
        while heads and room:
            _, task_id, need = heapq.heappop(heads)
            task = state.tasks[task_id]
            worker = state.router.place(need, now_s, now_s - task.ready_since_s)
            if worker is None:
                continue  # nor is there a place for the rest of this bucket
            self._dispatch(task, worker)
            room -= 1
            head = state.queue.head(need)
            if head is not None:
                heapq.heappush(heads, head)

    def on_result(self, session: int, worker: LiveWorker, message: Result) -> None:
        """A success was delivered, perhaps again, perhaps long after."""
        attempt = self._of(worker, message.attempt_uid)
        if attempt is None:
            self._look_up(session, worker.worker_id, message)
            return
        fault = self._fault_of(message)
        if fault is not None:
            self._on_known_failure(session, worker, attempt, fault)
            return
        if attempt.may_succeed:
            self._succeed(worker, attempt, message)
            self._stored(session, attempt.uid, Disposition.RECORDED)
            return
        late = attempt.record.state in (AttemptState.ABORTED, AttemptState.LATE, AttemptState.LOST)
        if late:
            self._late(attempt.record, message)
        self._lifecycle.forget(attempt)
        self._stored(session, attempt.uid, Disposition.LATE if late else Disposition.RECORDED)

    def on_failure(self, session: int, worker: LiveWorker, message: Failure) -> None:
        """A failure was delivered, perhaps again, perhaps long after."""
        attempt = self._of(worker, message.attempt_uid)
        if attempt is None:
            self._look_up(session, worker.worker_id, message)
            return
        if category_of(message.error_class) is Category.ENDED:
            message = replace(message, error_class=ErrorClass.AGENT_ERROR)  # only the broker ends tasks
        self._on_known_failure(session, worker, attempt, message)

    def lease_over(self, uid: str) -> None:
        """The agent said nothing of the attempt for a whole lease."""
        attempt = self._state.attempts.get(uid)
        if attempt is None:
            return
        if attempt.is_current:
            self.lost(attempt, ErrorClass.AGENT_LOST, f"{attempt.record.worker_id} stopped answering")
        else:
            self._lifecycle.forget(attempt)

    def lost(self, attempt: LiveAttempt, error_class: ErrorClass, message: str) -> None:
        """Take a running attempt back; a success of it still counts while the task is open."""
        state = self._state
        assert attempt.is_current, f"{attempt.uid} does not run task {attempt.task.task_id}"
        attempt.record = replace(
            attempt.record,
            state=AttemptState.LOST,
            ended_ms=state.now.wall_ms,
            error_class=error_class,
            message=message[:_MESSAGE_CHARS],
        )
        state.save(attempt.record)
        worker = state.workers.get(attempt.record.worker_id)
        if worker is not None:
            self._note_failure(worker, error_class, attempt.record.boot_id)
        self._lifecycle.forget(attempt)
        self._after_failure(attempt, error_class, message)

    def found_alive(self, worker: LiveWorker, attempt: LiveAttempt) -> None:
        """The agent lists the attempt as running or spooled: renew it, take it up again, or stop it."""
        state = self._state
        worker.attempts.add(attempt.uid)
        state.timers.set(Timer.LEASE, attempt.uid, state.now.mono_s + state.settings.lease_s)
        task = attempt.task
        if attempt.may_succeed and task.state is TaskState.QUEUED:
            forgive(task, worker.worker_id, attempt.record.boot_id)
            self._lifecycle.adopted(task, attempt)

    def look_up_running(self, session: int, worker_id: str, uid: str) -> None:
        """An agent runs what no live task knows: tell it to stop, and why."""

        def then(found: Found) -> None:
            known = any(row.worker_id == worker_id for row in found.attempts)
            self._state.send(session, Abort(uid, AbortReason.OVER if known else AbortReason.UNKNOWN))

        if self._state.may_look_up(session):
            self._state.lookup(session, FindAttempt(uid), then)

    def _dispatch(self, task: Task, worker: LiveWorker) -> None:
        state = self._state
        spec = task.spec
        now = state.now
        # Before the attempt is counted: the decision is explained as it was taken.
        placement = state.router.placement(spec, task.excluded, task.avoid, worker, now.mono_s)
        uid = state.draw_uid()
        record = Attempt(
            attempt_uid=uid,
            task_id=task.task_id,
            number=task.issued + 1,
            generation=task.generation,
            worker_id=worker.worker_id,
            boot_id=worker.boot_id,
            state=AttemptState.RUNNING,
            started_ms=now.wall_ms,
            ended_ms=0,
            error_class=None,
            message="",
            metrics=Metrics(),
            log="",
            placement=placement,
        )
        attempt = LiveAttempt(record, task, worker.dispatched(uid))
        self._lifecycle.dispatched(task, attempt)
        state.unsealed.append(uid)
        model = worker.model_for(spec.model)
        state.send(
            worker.session,
            Dispatch(
                number=attempt.number,
                session=worker.session,
                attempt_uid=uid,
                attempt=record.number,
                task_id=task.task_id,
                prompt=Body(spec.prompt.sha256, spec.prompt.size_bytes),
                files=spec.files,
                target=spec.target,
                repo=spec.repo,
                task_type=spec.task_type,
                model=model,
                options=spec.options,
                timeout_s=spec.timeout_s,
                strict_output=spec.strict_output,
                bytes_per_token=state.router.bytes_per_token(model),
            ),
        )

    def _of(self, worker: LiveWorker, uid: str) -> LiveAttempt | None:
        # An attempt issued to another worker is as good as unknown: nobody speaks for somebody else.
        attempt = self._state.attempts.get(uid)
        return attempt if attempt is not None and attempt.record.worker_id == worker.worker_id else None

    def _fault_of(self, message: Result) -> Failure | None:
        """The failure that a delivered success really is (law 8), whatever the agent thinks."""
        most = self._state.settings.limits.result_bytes
        if message.raw.size_bytes > most:
            said = f"the answer has {message.raw.size_bytes:,} bytes; the limit result_bytes is {most:,}"
            error_class = ErrorClass.OUTPUT_TOO_LARGE
        elif message.output_offset + message.output_length > message.raw.size_bytes:
            said = "the agent named an output outside of the answer"
            error_class = ErrorClass.AGENT_ERROR
        elif message.output_length == 0:
            said = "the answer is empty"
            error_class = ErrorClass.EMPTY_OUTPUT
        else:
            return None
        return Failure(message.attempt_uid, error_class, said, message.metrics, message.log, message.status)

    def _succeed(self, worker: LiveWorker, attempt: LiveAttempt, message: Result) -> None:
        state = self._state
        attempt.record = replace(
            attempt.record,
            state=AttemptState.SUCCEEDED,
            ended_ms=state.now.wall_ms,
            error_class=None,
            message="",
            metrics=message.metrics,
            log=message.log,
        )
        state.save(attempt.record)
        self._metric(attempt, message.metrics, message.model, message.output_length, None)
        if worker.note_success():
            state.alert(f"cooling:{worker.worker_id}", "")
        self._measure(attempt.task, message)
        # Before the task ends, so that the attempt leaves the index with it.
        self._lifecycle.forget(attempt)
        self._lifecycle.succeeded(attempt, message)

    def _on_known_failure(self, session: int, worker: LiveWorker, attempt: LiveAttempt, message: Failure) -> None:
        state = self._state
        was_over = attempt.task.is_over
        if attempt.record.state in _OPEN:
            runs = attempt.is_current
            # Aborted on our word it stays aborted; what the agent said about it is kept.
            aborted = attempt.record.state is AttemptState.ABORTED
            attempt.record = replace(
                attempt.record,
                state=AttemptState.ABORTED if aborted else AttemptState.FAILED,
                ended_ms=attempt.record.ended_ms if aborted else state.now.wall_ms,
                error_class=message.error_class,
                message=message.message[:_MESSAGE_CHARS],
                metrics=message.metrics,
                log=message.log,
            )
            state.save(attempt.record)
            if not aborted:
                model = worker.model_for(attempt.task.spec.model)
                self._metric(attempt, message.metrics, model, 0, message.error_class)
                self._note_failure(worker, message.error_class, attempt.record.boot_id)
            self._lifecycle.forget(attempt)
            if runs:
                attempt.task.metrics = message.metrics  # what a failed task cost is part of its record
                self._after_failure(attempt, message.error_class, message.message)
        else:
            self._lifecycle.forget(attempt)
        self._stored(session, attempt.uid, Disposition.LATE if was_over else Disposition.RECORDED)

    def _after_failure(self, attempt: LiveAttempt, error_class: ErrorClass, message: str) -> None:
        state = self._state
        task = attempt.task
        record = attempt.record
        charge(task, error_class, record.worker_id, record.boot_id)
        another_left = True
        if category_of(error_class) is Category.WORKER:
            need = state.router.need_of(task.spec, task.excluded, task.avoid)
            another_left = bool(state.router.could_run(need))
        verdict = judge(task, error_class, message, state.settings, another_left=another_left)
        if verdict.error_class is not None:
            self._lifecycle.failed(task, verdict.error_class, verdict.message, record.worker_id, record.number)
            if verdict.error_class is ErrorClass.POISON:
                text = f"task {task.task_id}: {verdict.message}"
                state.alert(f"poison:{task.task_id}", text, lasts_s=ALERT_LASTS_S)
            return
        reason = f"{error_class}: {message}" if message else str(error_class)
        wait_s = state.draw_fraction() * verdict.wait_most_s if verdict.wait_most_s else 0.0
        self._lifecycle.requeued(task, record.worker_id, record.number, reason, wait_s)

    def _note_failure(self, worker: LiveWorker, error_class: ErrorClass, boot_id: str) -> None:
        state = self._state
        if not worker.note_failure(error_class, boot_id, state.now.mono_s, state.settings):
            return
        assert worker.cooling_until_s is not None, "an open breaker has an end"
        state.timers.set(Timer.COOLDOWN, worker.worker_id, worker.cooling_until_s)
        text = (
            f"{worker.worker_id} failed {worker.failures_in_row} times in a row (the last: {error_class}):"
            f" it gets nothing for {state.settings.breaker_cooldown_s:g} s, then one task to try"
        )
        state.alert(f"cooling:{worker.worker_id}", text)

    def _measure(self, task: Task, message: Result) -> None:
        tokens = message.metrics.prompt_tokens
        if tokens < _MEASURED_TOKENS_LEAST or not message.model:
            return
        router = self._state.router
        seen = model_bytes_of(task.spec) / tokens
        before = router.bytes_per_token(message.model)
        router.measured(message.model, before + _MEASURED_WEIGHT * (seen - before) if before else seen)

    def _metric(
        self,
        attempt: LiveAttempt,
        metrics: Metrics,
        model: str,
        output_length: int,
        error_class: ErrorClass | None,
    ) -> None:
        state = self._state
        elapsed_ms = max(0, state.now.wall_ms - attempt.record.started_ms)
        state.save(
            WorkerMetric(
                worker_id=attempt.record.worker_id,
                task_id=attempt.task.task_id,
                execution_time_ms=metrics.total_ms or elapsed_ms,
                tokens_processed=metrics.prompt_tokens + metrics.thinking_tokens + metrics.output_tokens,
                prompt_length=model_bytes_of(attempt.task.spec),
                output_length=output_length,
                success=error_class is None,
                error_type=error_class or "",
                measured_ms=state.now.wall_ms,
                model=model,
                prompt_tokens=metrics.prompt_tokens,
                output_tokens=metrics.output_tokens,
                eval_ms=metrics.eval_ms,
            )
        )

    def _look_up(self, session: int, worker_id: str, message: Result | Failure) -> None:
        """The task has ended, was reopened since, or is of a database we do not have any more."""

        def then(found: Found) -> None:
            state = self._state
            record = next((row for row in found.attempts if row.worker_id == worker_id), None)
            if record is None:
                self._park(session, worker_id, message)
            elif record.state is AttemptState.SUCCEEDED or record.state is AttemptState.FAILED:
                self._stored(session, record.attempt_uid, Disposition.RECORDED)
            else:
                if isinstance(message, Result):
                    self._late(record, message)
                elif record.error_class is None:
                    state.save(
                        replace(
                            record,
                            error_class=message.error_class,
                            message=message.message,
                            metrics=message.metrics,
                            log=message.log,
                        )
                    )
                self._stored(session, record.attempt_uid, Disposition.LATE)

        if self._state.may_look_up(session):
            self._state.lookup(session, FindAttempt(message.attempt_uid), then)

    def _late(self, record: Attempt, message: Result) -> None:
        if record.state is AttemptState.LATE:
            return
        now_ms = self._state.now.wall_ms
        self._state.save(
            replace(
                record,
                state=AttemptState.LATE,
                ended_ms=now_ms,
                message=_ENDED_AFTER,
                metrics=message.metrics,
                log=message.log,
            )
        )

    def _park(self, session: int, worker_id: str, message: Result | Failure) -> None:
        state = self._state
        if isinstance(message, Result):
            raw = BodyRef(message.raw.sha256, message.raw.size_bytes)
            detail = f"a success of model {message.model}, {message.output_length} bytes of output"
        else:
            raw = None
            detail = f"a failure, {message.error_class}: {message.message}"
        state.save(Parked(message.attempt_uid, worker_id, state.now.wall_ms, raw, detail))
        self._stored(session, message.attempt_uid, Disposition.PARKED)
        state.alert(
            f"parked:{worker_id}",
            f"{worker_id} delivered work that this database does not know (restored from a backup?): it is parked",
            lasts_s=ALERT_LASTS_S,
        )

    def _stored(self, session: int, uid: str, disposition: Disposition) -> None:
        self._state.send(session, ResultStored(uid, disposition))
