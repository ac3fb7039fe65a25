"""Tasks and workers as JSON documents: the stable contract of `--json`."""

from collections.abc import Sequence
from typing import Any

from koubou_client.ctl.times import rfc3339
from koubou_common.messages.values import (
    AttemptView,
    Candidate,
    Decision,
    EventView,
    ReasonCount,
    TaskView,
    WorkerView,
)

CACHED = "cached"  # the flag of a task that the broker's result cache answered


def task_json(task: TaskView, output: str | None = None) -> dict[str, Any]:
    """A task; `output` where it was asked for and there is one."""
    error = None
    if task.error_class is not None:
        cause = task.error_cause.value if task.error_cause is not None else None
        error = {"class": task.error_class.value, "cause": cause, "message": task.error_message}
    return {
        "id": task.task_id,
        "batch": batch_name(task.batch_id) if task.batch_id else None,
        "custom_id": task.custom_id or None,
        "state": task.state.value,
        "priority": task.priority,
        "type": task.task_type,
        "model": task.model or None,
        "target": task.target or None,
        "worker": task.worker_id or None,
        "attempts": task.attempts,
        "error": error,
        "submitted_at": rfc3339(task.submitted_ms),
        "started_at": rfc3339(task.started_ms),
        "finished_at": rfc3339(task.finished_ms),
        "wait_s": _between_s(task.submitted_ms, task.started_ms or task.finished_ms),
        "run_s": _between_s(task.started_ms, task.finished_ms),
        "tokens": {
            "prompt": task.prompt_tokens,
            "thinking": task.thinking_tokens,
            "output": task.output_tokens,
        },
        "flags": list(task.flags),
        "output": output,
    }


def attempt_json(attempt: AttemptView) -> dict[str, Any]:
    """One try of a task, without its log."""
    error = None
    if attempt.error_class is not None:
        error = {"class": attempt.error_class.value, "message": attempt.message}
    metrics = attempt.metrics
    return {
        "attempt": attempt.number,
        "uid": attempt.uid,
        "worker": attempt.worker_id,
        "state": attempt.state.value,
        "started_at": rfc3339(attempt.started_ms),
        "ended_at": rfc3339(attempt.ended_ms),
        "run_s": _between_s(attempt.started_ms, attempt.ended_ms),
        "error": error,
        "tokens": {
            "prompt": metrics.prompt_tokens,
            "thinking": metrics.thinking_tokens,
            "output": metrics.output_tokens,
        },
        "load_s": metrics.load_ms / 1_000,
        "first_token_s": metrics.first_token_ms / 1_000,
        "overhead_s": metrics.overhead_ms / 1_000,
        "num_ctx": metrics.num_ctx,
        "num_predict": metrics.num_predict,
        "placement": attempt.placement,
    }


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """A worker weighed for a task."""
    return {
        "worker": candidate.worker_id,
        "eligible": candidate.eligible,
        "available": candidate.available,
        "score": candidate.score,
        "parts": {part.name: part.points for part in candidate.parts},
        "group": candidate.group,
        "finish_s": candidate.finish_s or None,
        "code": candidate.code.value if candidate.code is not None else None,
        "reason": candidate.reason or None,
    }


def reasons_json(reasons: Sequence[ReasonCount]) -> dict[str, int]:
    """How many workers were out, by the reason's word."""
    return {one.reason.value: one.count for one in reasons}


def decision_json(decision: Decision) -> dict[str, Any]:
    """Why a worker got an attempt; the winner is the first candidate."""
    return {
        "strategy": decision.strategy,
        "rule": decision.rule,
        "candidates": [candidate_json(candidate) for candidate in decision.candidates],
        "reasons": reasons_json(decision.reasons),
        "note": decision.note or None,
    }


def event_json(event: EventView) -> dict[str, Any]:
    """One change of a task."""
    return {
        "seq": event.seq,
        "at": rfc3339(event.at_ms),
        "actor": event.actor,
        "before": event.before or None,
        "after": event.after,
        "attempt": event.attempt or None,
        "reason": event.reason,
    }


def worker_json(worker: WorkerView) -> dict[str, Any]:
    """A worker."""
    return {
        "id": worker.worker_id,
        "state": worker_state(worker),
        "location": worker.location,
        "connected": worker.connected,
        "mode": worker.mode.value,
        "slots": worker.slots,
        "running": worker.running,
        "default_model": worker.default_model,
        "models": list(worker.models),
        "loaded": list(worker.loaded),
        "performance_factor": worker.performance_factor,
        "configured_factor": worker.configured_factor or None,
        "factor_samples": worker.factor_samples,
        "success_rate": worker.success_rate,
        "succeeded": worker.succeeded,
        "failed": worker.failed,
        "last_seen_at": rfc3339(worker.last_seen_ms),
        "latency_ms": worker.latency_ms,
        "cooling_down": worker.cooling_down,
        "ollama_version": worker.ollama_version or None,
        "can_work": worker.can_work,
        "issue": worker.issue or None,
        "address": worker.address or None,
        "agent": worker.agent or None,
        "foreign": worker.foreign or None,
        "windows": [
            {
                "model": one.model,
                "num_ctx": one.num_ctx,
                "digest": one.digest or None,
                "prompt_tokens_per_s": one.prompt_tokens_per_s or None,
                "output_tokens_per_s": one.output_tokens_per_s or None,
                "first_token_limit_s": one.first_token_limit_s or None,
                "total_limit_s": one.total_limit_s or None,
            }
            for one in worker.windows
        ],
    }


def worker_state(worker: WorkerView) -> str:
    """One word for a worker's row: what keeps it from work comes first."""
    if not worker.connected:
        return "away" if worker.last_seen_ms else "never seen"
    if worker.mode.value != "active":
        return worker.mode.value
    if not worker.can_work:
        return "blocked"
    if worker.cooling_down:
        return "cooling down"
    return "busy" if worker.running >= worker.slots else "ready"


def batch_name(batch_id: int) -> str:
    """A batch as people type it: `b12`."""
    return f"b{batch_id}"


def task_name(task: TaskView) -> str:
    """A task as people type it, with its place in a batch: `142`, `142 (b12.7)`."""
    if not task.batch_id:
        return str(task.task_id)
    return f"{task.task_id} ({batch_name(task.batch_id)}.{task.batch_index})"


def _between_s(start_ms: int, end_ms: int) -> float | None:
    """Seconds from one time to another; None unless both have come."""
    if not start_ms or not end_ms:
        return None
    return max(0, end_ms - start_ms) / 1_000
