"""Attempts: dispatched to workers, ended by results, failures, silence; found alive, found unknown."""

from dataclasses import replace

from koubou_broker.core.cache import ResultCache
from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.measuring import note_end, note_success
from koubou_broker.core.state import ALERT_LASTS_S, State
from koubou_broker.core.windows import limits_of
from koubou_broker.effects import FindAttempt, Found
from koubou_broker.records import Attempt, BodyRef, Decided, Parked
from koubou_broker.routing.placing import Placed, placement_text
from koubou_broker.routing.queue import Need
from koubou_broker.routing.versions import short_digest
from koubou_broker.routing.workers import LiveWorker
from koubou_broker.task import LiveAttempt, Task, charge, forgive, judge
from koubou_broker.timers import Timer
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

_MESSAGE_CHARS = 2_000
_LOOK_AGAIN_S = 5.0  # as often as agents say something: what the choice to wait rested on has moved on by then
_OPEN = (AttemptState.RUNNING, AttemptState.LOST, AttemptState.ABORTED)
_ENDED_AFTER = "the task had ended before"


class Attempts:
    """Hands out attempts and takes in their outcomes."""

    def __init__(self, state: State, lifecycle: Lifecycle, cache: ResultCache) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._cache = cache

    def on_result(self, session: int, worker: LiveWorker, message: Result) -> None:
        """A success was delivered, perhaps again, perhaps long after."""
        attempt = self._of(worker, message.attempt_uid)
        if attempt is None:
            self._look_up(session, worker.worker_id, message)
            return
        fault = self._fault_of(message, attempt.task.spec.digest)
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
        note_end(state, attempt, error_class)
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
        # Also what an earlier broker gave out is loaded for us.
        worker.foreign.dispatched(worker.model_for(task.spec.model), state.now.mono_s)
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

    def dispatch(self, task: Task, need: Need, placed: Placed) -> None:
        state = self._state
        spec = task.spec
        now = state.now
        worker = placed.worker
        model = worker.model_for(spec.model)
        # Before the attempt is counted: the decision is explained as it was taken.
        decision = state.router.decision(spec, task.excluded, need, placed)
        ends_s = now.mono_s + placed.choice.finish_s
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
            placement=placement_text(decision),
        )
        attempt = LiveAttempt(record, task, worker.dispatched(uid, model, need.prefix, ends_s), expected_end_s=ends_s)
        worker.foreign.dispatched(model, now.mono_s)
        self._lifecycle.dispatched(task, attempt)
        state.save(Decided(uid, task.task_id, decision))
        state.unsealed.append(uid)
        limits = limits_of(state, worker, model, spec)
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
                bytes_per_token=state.router.fitting.bytes_per_token(model),
                model_options=worker.models.options(model),
                first_token_s=limits.first_token_s if limits is not None else None,
                # A task that names its own time means it.
                total_s=limits.total_s if limits is not None and spec.timeout_s is None else None,
            ),
        )

    def _of(self, worker: LiveWorker, uid: str) -> LiveAttempt | None:
        # An attempt issued to another worker is as good as unknown: nobody speaks for somebody else.
        attempt = self._state.attempts.get(uid)
        return attempt if attempt is not None and attempt.record.worker_id == worker.worker_id else None

    def _fault_of(self, message: Result, digest: str) -> Failure | None:
        """The failure that a delivered success really is (law 8), whatever the agent thinks.

        `digest`: the version of the model that was asked for; empty: any.
        """
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
        elif digest and message.model_digest and message.model_digest != digest:
            made_by, wanted = short_digest(message.model_digest), short_digest(digest)
            said = f"version {made_by} of {message.model} made this answer, {wanted} was asked for (pulled again?)"
            error_class = ErrorClass.MODEL_MISSING
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
        self._look_for_others(worker, message)
        note_success(state, attempt, worker, message)
        worker.answered(attempt.uid, message.model)
        if worker.note_success():
            state.alert(f"cooling:{worker.worker_id}", "")
        state.router.fitting.observed(message.model, attempt.task.spec, message.metrics.prompt_tokens)
        # Before the task ends, so that the attempt leaves the index with it.
        self._lifecycle.forget(attempt)
        self._lifecycle.succeeded(attempt, message)
        self._cache.remember(attempt, worker, message)

    def _on_known_failure(self, session: int, worker: LiveWorker, attempt: LiveAttempt, message: Failure) -> None:
        state = self._state
        was_over = attempt.task.is_over
        if attempt.record.state in _OPEN:
            runs = attempt.is_current
            # Aborted on our word it stays aborted; what the agent said about it is kept.
            aborted = attempt.record.state is AttemptState.ABORTED
            is_noted = attempt.record.state is not AttemptState.RUNNING  # its end was, when it was taken back
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
            if not is_noted:
                note_end(state, attempt, message.error_class, message.metrics)
            if not aborted:
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
        if error_class is ErrorClass.CONTEXT_OVERFLOW:
            self._exclude_no_larger(task, record)
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

    def _exclude_no_larger(self, task: Task, record: Attempt) -> None:
        """What did not fit a window does not fit an equal or a smaller one."""
        worker = self._state.workers.get(record.worker_id)
        num_ctx = record.metrics.num_ctx or (worker.num_ctx_for(task.spec.model) if worker is not None else 0)
        no_larger = self._state.router.fitting.no_larger(task.spec.model, num_ctx)
        task.excluded = tuple(dict.fromkeys((*task.excluded, *no_larger)))

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

    def _look_for_others(self, worker: LiveWorker, message: Result) -> None:
        """A first token that came far too late is a sign that somebody else uses this Ollama."""
        state = self._state
        metrics = message.metrics
        prompt_per_s, _ = state.router.performance.measured_rates(worker, message.model)
        if not prompt_per_s or not metrics.first_token_ms:
            return
        was_there = worker.foreign.is_there
        worker.foreign.answered(
            max(0, metrics.first_token_ms - metrics.load_ms) / 1_000,
            metrics.prompt_tokens / prompt_per_s,
            worker.slots,
            state.now.mono_s,
        )
        if worker.foreign.is_there is not was_there:
            state.router.roster.touch(worker.worker_id)

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
