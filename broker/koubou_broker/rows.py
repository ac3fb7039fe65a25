"""Records to rows and back: the only place that knows which field is which column."""

from typing import Any

from sqlalchemy import Row

from koubou_broker import effects
from koubou_broker import records as r
from koubou_common.codec import pack, unpack
from koubou_common.errors import ErrorClass
from koubou_common.messages.values import (
    AttemptState,
    Decision,
    File,
    Label,
    Metrics,
    Option,
    Role,
    TaskState,
    WorkerMode,
)
from koubou_common.models import normal_model

Values = dict[str, Any]  # one row by column name: what SQLAlchemy takes

_NOTHING = pack(())  # most tuples are empty: not packed again for every row


def new_task_row(task: r.NewTask) -> Values:
    """The unchanging half of a task."""
    return {
        "task_id": task.task_id,
        "batch_id": task.batch_id,
        "batch_index": task.batch_index,
        "principal": task.principal,
        "custom_id": task.custom_id,
        "idempotency_key": task.idempotency_key,
        "prompt_sha256": task.prompt.sha256,
        "prompt_bytes": task.prompt.size_bytes,
        "files": _packed(task.files),
        "target": task.target,
        "repo": task.repo,
        "model": task.model,
        "priority": task.priority,
        "task_type": task.task_type,
        "options": _packed(task.options),
        "worker": task.worker,
        "labels": _packed(task.labels),
        "min_context": task.min_context,
        "timeout_s": task.timeout_s,
        "deadline_ms": task.deadline_ms,
        "max_attempts": task.max_attempts,
        "strict_output": task.strict_output,
        "out_path": task.out_path,
        "out_digest": task.out_digest,
        "submitted_ms": task.submitted_ms,
        "queue_timeout_s": task.queue_timeout_s,
        "capabilities": _packed(task.capabilities),
        "digest": task.digest,
        "use_cache": task.use_cache,
        "prefix_files": task.prefix_files,
    }


def progress_row(progress: r.TaskProgress) -> Values:
    """The changing half of a task, its id left out: an UPDATE names it apart."""
    return {
        "state": progress.state.value,
        "generation": progress.generation,
        "attempts": progress.attempts,
        "transient_failures": progress.transient_failures,
        "infra_failures": progress.infra_failures,
        "deaths": _packed(progress.deaths),
        "excluded": _packed(progress.excluded),
        "not_before_ms": progress.not_before_ms,
        "worker_id": progress.worker_id,
        "error_class": progress.error_class.value if progress.error_class else None,
        "error_cause": progress.error_cause.value if progress.error_cause else None,
        "error_message": progress.error_message,
        "started_ms": progress.started_ms,
        "finished_ms": progress.finished_ms,
        "result_sha256": progress.result.sha256 if progress.result else None,
        "result_bytes": progress.result.size_bytes if progress.result else 0,
        "output_offset": progress.output_offset,
        "output_length": progress.output_length,
        "flags": _packed(progress.flags),
        "metrics": pack(progress.metrics) if progress.metrics else None,
        "opened_ms": progress.opened_ms,
    }


def stored_task(row: Row[Any]) -> effects.StoredTask:
    """A row of `tasks` as the two records it was written from."""
    task = r.NewTask(
        task_id=row.task_id,
        batch_id=row.batch_id,
        batch_index=row.batch_index,
        principal=row.principal,
        custom_id=row.custom_id,
        idempotency_key=row.idempotency_key,
        prompt=r.BodyRef(row.prompt_sha256, row.prompt_bytes),
        files=_unpacked(row.files, tuple[File, ...]),
        target=row.target,
        repo=row.repo,
        model=normal_model(row.model) if row.model else "",  # older releases kept the case
        priority=row.priority,
        task_type=row.task_type,
        options=_unpacked(row.options, tuple[Option, ...]),
        worker=row.worker,
        labels=_unpacked(row.labels, tuple[Label, ...]),
        min_context=row.min_context,
        timeout_s=row.timeout_s,
        deadline_ms=row.deadline_ms,
        max_attempts=row.max_attempts,
        strict_output=row.strict_output,
        out_path=row.out_path,
        out_digest=row.out_digest,
        submitted_ms=row.submitted_ms,
        queue_timeout_s=row.queue_timeout_s,
        # Of tasks from before these columns they are empty.
        capabilities=_unpacked(row.capabilities, tuple[str, ...]) if row.capabilities else (),
        digest=row.digest or "",
        use_cache=row.use_cache is not False,
        prefix_files=row.prefix_files or 0,
    )
    progress = r.TaskProgress(
        task_id=row.task_id,
        state=TaskState(row.state),
        generation=row.generation,
        attempts=row.attempts,
        transient_failures=row.transient_failures,
        infra_failures=row.infra_failures,
        deaths=_unpacked(row.deaths, tuple[str, ...]),
        excluded=_unpacked(row.excluded, tuple[str, ...]),
        not_before_ms=row.not_before_ms,
        worker_id=row.worker_id,
        error_class=ErrorClass(row.error_class) if row.error_class else None,
        error_cause=ErrorClass(row.error_cause) if row.error_cause else None,
        error_message=row.error_message,
        started_ms=row.started_ms,
        finished_ms=row.finished_ms,
        result=r.BodyRef(row.result_sha256, row.result_bytes) if row.result_sha256 else None,
        output_offset=row.output_offset,
        output_length=row.output_length,
        flags=_unpacked(row.flags, tuple[str, ...]),
        metrics=unpack(row.metrics, Metrics) if row.metrics else None,
        opened_ms=row.opened_ms or 0,
    )
    return effects.StoredTask(task, progress)


def submission_row(submission: r.Submission) -> Values:
    """A row of `submissions`."""
    return {
        "principal": submission.principal,
        "idempotency_key": submission.idempotency_key,
        "digest": submission.digest,
        "batch_id": submission.batch_id,
        "first_task_id": submission.first_task_id,
        "count": submission.count,
        "submitted_ms": submission.submitted_ms,
    }


def submission(row: Row[Any]) -> r.Submission:
    """A submission read back."""
    return r.Submission(
        principal=row.principal,
        idempotency_key=row.idempotency_key,
        digest=row.digest,
        batch_id=row.batch_id,
        first_task_id=row.first_task_id,
        count=row._mapping["count"],  # noqa: SLF001 - `row.count` is the tuple's own method
        submitted_ms=row.submitted_ms,
    )


def attempt_row(attempt: r.Attempt) -> Values:
    """A row of `attempts`."""
    return {
        "attempt_uid": attempt.attempt_uid,
        "task_id": attempt.task_id,
        "number": attempt.number,
        "generation": attempt.generation,
        "worker_id": attempt.worker_id,
        "boot_id": attempt.boot_id,
        "state": attempt.state.value,
        "started_ms": attempt.started_ms,
        "ended_ms": attempt.ended_ms,
        "error_class": attempt.error_class.value if attempt.error_class else None,
        "message": attempt.message,
        "metrics": pack(attempt.metrics),
        "log": attempt.log,
        "placement": attempt.placement,
    }


def attempt(row: Row[Any]) -> r.Attempt:
    """An attempt read back."""
    return r.Attempt(
        attempt_uid=row.attempt_uid,
        task_id=row.task_id,
        number=row.number,
        generation=row.generation,
        worker_id=row.worker_id,
        boot_id=row.boot_id,
        state=AttemptState(row.state),
        started_ms=row.started_ms,
        ended_ms=row.ended_ms,
        error_class=ErrorClass(row.error_class) if row.error_class else None,
        message=row.message,
        metrics=unpack(row.metrics, Metrics),
        log=row.log,
        placement=row.placement,
    )


def event_row(event: r.Event) -> Values:
    """A row of `events`."""
    return {
        "seq": event.seq,
        "task_id": event.task_id,
        "at_ms": event.at_ms,
        "actor": event.actor,
        "before": event.before,
        "after": event.after,
        "attempt": event.attempt,
        "reason": event.reason,
    }


def event(row: Row[Any]) -> r.Event:
    """An event read back."""
    return r.Event(
        seq=row.seq,
        task_id=row.task_id,
        at_ms=row.at_ms,
        actor=row.actor,
        before=row.before,
        after=row.after,
        attempt=row.attempt,
        reason=row.reason,
    )


def worker_row(worker: r.Worker) -> Values:
    """A row of `workers`."""
    return {
        "worker_id": worker.worker_id,
        "location": worker.location,
        "performance_factor": worker.performance_factor,
        "endpoint_url": worker.endpoint_url,
        "network_latency_ms": worker.network_latency_ms,
        "last_health_check": worker.last_health_check_ms,
        "mode": worker.mode.value,
        "boot_id": worker.boot_id,
        "software": worker.software,
        "models": _packed(worker.models),
    }


def worker(row: Row[Any]) -> r.Worker:
    """A worker read back."""
    return r.Worker(
        worker_id=row.worker_id,
        location=row.location,
        performance_factor=row.performance_factor,
        endpoint_url=row.endpoint_url or "",
        network_latency_ms=row.network_latency_ms or 0,
        last_health_check_ms=row.last_health_check or 0,
        mode=WorkerMode(row.mode),
        boot_id=row.boot_id,
        software=row.software,
        models=_unpacked(row.models, tuple[str, ...]),
    )


def metric_row(metric: r.WorkerMetric) -> Values:
    """A row of `worker_metrics`."""
    return {
        "worker_id": metric.worker_id,
        "task_id": metric.task_id,
        "execution_time_ms": metric.execution_time_ms,
        "tokens_processed": metric.tokens_processed,
        "prompt_length": metric.prompt_length,
        "output_length": metric.output_length,
        "success": metric.success,
        "error_type": metric.error_type or None,
        "measured_at": metric.measured_ms,
        "model": metric.model,
        "prompt_tokens": metric.prompt_tokens,
        "output_tokens": metric.output_tokens,
        "eval_ms": metric.eval_ms,
        "thinking_tokens": metric.thinking_tokens,
        "prompt_ms": metric.prompt_ms,
        "load_ms": metric.load_ms,
        "first_token_ms": metric.first_token_ms,
        "slot_wait_ms": metric.slot_wait_ms,
    }


def factor_row(change: r.FactorChange) -> Values:
    """A row of `worker_factors`."""
    return {
        "worker_id": change.worker_id,
        "at_ms": change.at_ms,
        "factor": change.factor,
        "samples": change.samples,
        "baseline": change.baseline,
    }


def factor_change(row: Row[Any]) -> r.FactorChange:
    """A change of a factor read back."""
    return r.FactorChange(row.worker_id, row.at_ms, row.factor, row.samples, row.baseline)


def decided_row(decided: r.Decided) -> Values:
    """A row of `decisions`."""
    return {
        "attempt_uid": decided.attempt_uid,
        "task_id": decided.task_id,
        "decision": pack(decided.decision),
    }


def decided(row: Row[Any]) -> r.Decided:
    """A decision read back."""
    return r.Decided(row.attempt_uid, row.task_id, unpack(row.decision, Decision))


def cached_row(cached: r.CachedResult) -> Values:
    """A row of `result_cache`."""
    return {"key": cached.key, "task_id": cached.task_id, "stored_ms": cached.stored_ms}


def principal_row(principal: r.Principal) -> Values:
    """A row of `principals`."""
    return {
        "public_key": principal.public_key,
        "name": principal.name,
        "role": principal.role.value,
        "enrol_role": principal.enrol_role.value if principal.enrol_role else None,
        "created_ms": principal.created_ms,
        "expires_ms": principal.expires_ms,
        "revoked_ms": principal.revoked_ms,
        "replaced_by": principal.replaced_by,
    }


def principal(row: Row[Any]) -> r.Principal:
    """A principal read back."""
    return r.Principal(
        public_key=row.public_key,
        name=row.name,
        role=Role(row.role),
        enrol_role=Role(row.enrol_role) if row.enrol_role else None,
        created_ms=row.created_ms,
        expires_ms=row.expires_ms,
        revoked_ms=row.revoked_ms,
        replaced_by=row.replaced_by,
    )


def audit_row(audit: r.Audit) -> Values:
    """A row of `audit`."""
    return {
        "at_ms": audit.at_ms,
        "actor": audit.actor,
        "action": audit.action,
        "subject": audit.subject,
        "detail": audit.detail,
    }


def parked_row(parked: r.Parked) -> Values:
    """A row of `parked`."""
    return {
        "attempt_uid": parked.attempt_uid,
        "worker_id": parked.worker_id,
        "at_ms": parked.at_ms,
        "raw_sha256": parked.raw.sha256 if parked.raw else None,
        "raw_bytes": parked.raw.size_bytes if parked.raw else 0,
        "detail": parked.detail,
    }


def parked(row: Row[Any]) -> r.Parked:
    """A parked outcome read back; its text only as long as it is held (`held_sha256` of the query)."""
    raw = r.BodyRef(row.raw_sha256, row.raw_bytes) if row.held_sha256 is not None else None
    return r.Parked(row.attempt_uid, row.worker_id, row.at_ms, raw, row.detail)


def _packed(values: tuple[Any, ...]) -> bytes:
    return pack(values) if values else _NOTHING


def _unpacked(data: bytes, hint: Any) -> Any:
    return unpack(data, hint) if data != _NOTHING else ()
