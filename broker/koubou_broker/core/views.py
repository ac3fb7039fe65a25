"""What the core holds, as people and scripts are shown it; every list fits one message."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from koubou_broker.core.standings import Waits
from koubou_broker.core.state import State
from koubou_broker.core.windows import model_windows
from koubou_broker.records import Attempt, Event
from koubou_broker.routing.workers import LiveWorker
from koubou_broker.task import Task
from koubou_common.errors import ErrorClass
from koubou_common.messages import PROTO_MAX
from koubou_common.messages.values import (
    AttemptView,
    Candidate,
    Decision,
    EventView,
    Metrics,
    TaskView,
    WorkerView,
)
from koubou_common.models import normal_model

# A message has at most 1,000,000 bytes; a character takes up to four, and fields have names.
_LIST_MESSAGE_CHARS = 300  # of an error in a page of 200 tasks
_LOGS_CHARS = 100_000  # of all attempts in a story: the newest keep theirs whole
_TEXTS_CHARS = 50_000  # of messages and placements in a story
_DECISIONS_SHOWN = 20  # of an explanation, the newest
_REASON_CHARS = 300  # of a candidate's reason, a rule, a note
_EVENTS_MOST = 200  # of a story, the newest
_MODELS_SHOWN = 4_000  # names over all workers of one message
_LOADED_SHOWN = 8
_WINDOWS_SHOWN = 500  # models with their windows and rates, over all workers of one message
_WORKERS_SHOWN = 500
# To a peer of protocol 1, which drops a message with a class it does not know: the nearest of those it knows.
_OLD_WORDS: Mapping[ErrorClass | None, ErrorClass] = {ErrorClass.QUEUE_TIMEOUT: ErrorClass.DEADLINE}


def task_view(state: State, task: Task, *, brief: bool, proto: int = PROTO_MAX, waits: Waits | None = None) -> TaskView:
    """A task for a peer of that protocol version; `brief` in lists, all views of which share `waits`."""
    spec = task.spec
    metrics = task.metrics or Metrics()
    tokens = metrics.output_tokens
    if task.current:
        tokens = state.attempts[task.current].tokens
    message = task.error_message
    if brief and len(message) > _LIST_MESSAGE_CHARS:
        message = f"{message[: _LIST_MESSAGE_CHARS - 3]}..."
    return TaskView(
        task_id=spec.task_id,
        batch_id=spec.batch_id,
        batch_index=spec.batch_index,
        custom_id=spec.custom_id,
        principal=spec.principal,
        state=task.state,
        priority=spec.priority,
        task_type=spec.task_type,
        model=spec.model,
        target=spec.target,
        out_path=spec.out_path,
        worker_id=task.worker_id,
        attempts=task.issued,
        error_class=_OLD_WORDS.get(task.error_class, task.error_class) if proto < 2 else task.error_class,
        error_message=message,
        submitted_ms=spec.submitted_ms,
        started_ms=task.started_ms,
        finished_ms=task.finished_ms,
        not_before_ms=task.not_before_ms,
        prompt_tokens=metrics.prompt_tokens,
        thinking_tokens=metrics.thinking_tokens,
        output_tokens=tokens,
        flags=task.flags,
        waiting_for=(waits or Waits(state)).of(task)[:_LIST_MESSAGE_CHARS],
        output_bytes=task.output_length,
        error_cause=task.error_cause if task.error_class is not None else None,
        queue_timeout_s=spec.queue_timeout_s,
    )


def worker_views(state: State, workers: Iterable[LiveWorker]) -> tuple[WorkerView, ...]:
    """Workers in the order given."""
    shown = list(workers)[:_WORKERS_SHOWN]
    most = max(1, _MODELS_SHOWN // max(1, len(shown)))
    windows = min(64, _WINDOWS_SHOWN // max(1, len(shown)))
    return tuple(
        replace(_worker_view(state, worker, min(500, most)), windows=model_windows(state, worker, windows))
        for worker in shown
    )


def attempt_views(
    attempts: Sequence[Attempt], decisions: Mapping[str, Decision] | None = None
) -> tuple[AttemptView, ...]:
    """Attempts in order, with their logs or the decisions behind them; old ones give up where all would not fit."""
    logs, texts = _LOGS_CHARS if decisions is None else 0, _TEXTS_CHARS
    left = _DECISIONS_SHOWN
    views: list[AttemptView] = []
    for attempt in reversed(attempts[-100:]):
        log = attempt.log[-logs:] if logs else ""
        message, placement = attempt.message[:texts], attempt.placement[:texts]
        logs -= len(log)
        texts = max(0, texts - len(message) - len(placement))
        decision = decisions.get(attempt.attempt_uid) if decisions and left else None
        left -= decision is not None
        views.append(
            AttemptView(
                number=attempt.number,
                uid=attempt.attempt_uid,
                worker_id=attempt.worker_id,
                state=attempt.state,
                started_ms=attempt.started_ms,
                ended_ms=attempt.ended_ms,
                error_class=attempt.error_class,
                message=message,
                metrics=attempt.metrics,
                log=log,
                placement=placement,
                decision=_decision_view(decision) if decision is not None else None,
            )
        )
    return tuple(reversed(views))


def candidate_views(candidates: Sequence[Candidate], most: int) -> tuple[Candidate, ...]:
    """The first of them, their reasons in few words."""
    return tuple(replace(one, reason=one.reason[:_REASON_CHARS]) for one in candidates[:most])


def event_views(events: Sequence[Event]) -> tuple[EventView, ...]:
    """The newest events, in order."""
    return tuple(
        EventView(one.seq, one.at_ms, one.actor, one.before, one.after, one.attempt, one.reason[:300])
        for one in events[-_EVENTS_MOST:]
    )


def _worker_view(state: State, worker: LiveWorker, models_most: int) -> WorkerView:
    now_s = state.now.mono_s
    health = worker.health
    loaded = [normal_model(model.name) for model in health.models if model.loaded]
    silent = bool(worker.session) and not worker.is_alive(now_s, state.settings)
    issue = "stopped answering" if silent else health.issue if worker.session else ""
    running = worker.in_use
    if not worker.session:  # away, it runs on: whoever drains it waits for that
        running = sum(state.attempts[uid].is_current for uid in worker.attempts)
    return WorkerView(
        worker_id=worker.worker_id,
        location=worker.settings.location,
        connected=bool(worker.session) and not silent,
        mode=worker.mode,
        slots=worker.slots,
        running=running,
        default_model=worker.settings.default_model,
        models=worker.known_models()[:models_most],
        loaded=tuple(loaded[:_LOADED_SHOWN]),
        performance_factor=worker.performance_factor,
        success_rate=worker.success_rate,
        succeeded=worker.succeeded,
        failed=worker.failed,
        last_seen_ms=worker.last_heard_ms,
        latency_ms=worker.latency_ms,
        cooling_down=worker.is_cooling(now_s),
        ollama_version=health.ollama_version,
        issue=issue or _breaker(worker, now_s),
        address=worker.settings.endpoint_url[:255],
        agent=f"{worker.software} {worker.platform}".strip()[:255],
        can_work=health.can_work,
        foreign=worker.foreign.text[:2_000],
        configured_factor=worker.settings.performance_factor,
        factor_samples=worker.factor_samples,
    )


def _decision_view(decision: Decision) -> Decision:
    return replace(decision, rule=decision.rule[:_REASON_CHARS], note=decision.note[:_REASON_CHARS])


def overlaid(state: State, rows: Sequence[Attempt]) -> list[Attempt]:
    """Attempts as read, where the core knows better as they are now."""
    live = [state.attempts.get(row.attempt_uid) for row in rows]
    return [one.record if one is not None else row for one, row in zip(live, rows, strict=True)]


def _breaker(worker: LiveWorker, now_s: float) -> str:
    """Why a worker cools down; empty: it does not."""
    if worker.cooling_until_s is None or not worker.is_cooling(now_s):
        return ""
    left_s = worker.cooling_until_s - now_s
    then = f"gets one task to try in {left_s:.0f} s" if left_s > 0 else "one task is being tried"
    return f"failed {worker.failures_in_row} times in a row (the last: {worker.last_failure}): {then}"
