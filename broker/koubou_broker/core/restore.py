"""The core's state from a snapshot: every running task gets one full lease of grace."""

from dataclasses import replace

from koubou_broker.core.lifecycle import BROKER, Lifecycle
from koubou_broker.core.state import State
from koubou_broker.effects import Snapshot
from koubou_broker.records import Attempt
from koubou_broker.task import LiveAttempt, Task, is_avoided_after
from koubou_broker.timers import Timer
from koubou_common.messages.values import AttemptState, Role, TaskState


def restore(state: State, lifecycle: Lifecycle, snapshot: Snapshot) -> None:
    """Fill all indexes; says nothing."""
    for principal in snapshot.principals:
        state.principals[principal.public_key] = principal
    for settings in state.settings.workers:
        state.add_worker(settings.worker_id)
    for principal in snapshot.principals:
        if principal.role is Role.WORKER and not principal.revoked_ms:
            state.add_worker(principal.name)
    for row in snapshot.workers:
        if row.worker_id in state.workers:
            state.workers[row.worker_id].restore(row)
    for worker_id, succeeded, failed in snapshot.worker_scores:
        if worker_id in state.workers:
            state.workers[worker_id].restore_scores(succeeded, failed)
    for model, ratio in snapshot.bytes_per_token:
        state.router.fitting.measured(model, ratio)
    of_task: dict[int, list[Attempt]] = {}
    for attempt in sorted(snapshot.attempts, key=lambda one: one.number):
        of_task.setdefault(attempt.task_id, []).append(attempt)
    for stored in sorted(snapshot.tasks, key=lambda one: one.task.task_id):
        task = Task.restored(stored.task, stored.progress)
        task.tell(f"restored as {task.state}")
        for attempt in of_task.get(task.task_id, ()):
            if attempt.generation == task.generation:
                _restore_attempt(state, task, attempt)
        lifecycle.restore(task)


def repair(state: State, lifecycle: Lifecycle) -> None:
    """Bring what no transaction of ours leaves behind back into the table."""
    for attempt in list(state.attempts.values()):
        if attempt.record.state is AttemptState.RUNNING and not attempt.is_current:
            attempt.record = replace(attempt.record, state=AttemptState.LOST, ended_ms=state.now.wall_ms)
            state.save(attempt.record)
    for task in list(state.tasks.values()):
        if task.state is TaskState.RUNNING and not task.current:
            lifecycle.requeued(task, BROKER, task.issued, "found running without an attempt", 0.0)


def _restore_attempt(state: State, task: Task, record: Attempt) -> None:
    attempt = LiveAttempt(record, task)
    task.uids.append(attempt.uid)
    state.attempts[attempt.uid] = attempt
    task.avoid = ""
    if record.state is AttemptState.FAILED and record.error_class and is_avoided_after(record.error_class):
        task.avoid = record.worker_id
    if record.state is not AttemptState.RUNNING or task.state is not TaskState.RUNNING:
        return
    task.current = attempt.uid
    worker = state.workers.get(record.worker_id)
    if worker is not None:
        worker.attempts.add(attempt.uid)
    state.timers.set(Timer.LEASE, attempt.uid, state.now.mono_s + state.settings.lease_s)
