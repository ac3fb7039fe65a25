"""What people do to tasks that are there: cancel, retry."""

from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.quotas import check_quota
from koubou_broker.core.requests import resolve
from koubou_broker.core.state import Refusal, Session, State
from koubou_broker.task import Cause, Task, allowed
from koubou_common.errors import Code
from koubou_common.messages import Cancel, Changes, Retry
from koubou_common.messages.values import Change, TaskState

_BATCH_RETRIES = (TaskState.FAILED, TaskState.CANCELLED)


class TaskChanges:
    """Each repeated request finds its work done and says so."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self._state = state
        self._lifecycle = lifecycle

    def cancel(self, session: Session, message: Cancel) -> None:
        """Durable first; the abort of a running attempt follows."""

        def then(tasks: list[Task], missing: list[int]) -> None:
            reason = message.reason or f"cancelled by {session.name}"
            changes = tuple(self._cancel(session, task, reason) for task in tasks)
            self._state.send(session.session, Changes(message.request_id, changes, tuple(missing)))

        resolve(self._state, session, message, then)

    def retry(self, session: Session, message: Retry) -> None:
        """Open ended tasks again, with their history."""
        state = self._state

        def then(tasks: list[Task], missing: list[int]) -> None:
            named = set(message.task_ids)
            chosen = [
                task
                for task in tasks
                if allowed(task.state, Cause.REOPENED)
                and (task.task_id in named or task.state in _BATCH_RETRIES)
                and task.has_bodies
                and not state.is_going(task.task_id)
            ]
            if chosen and state.refused is not None:
                raise Refusal(Code.STORE_FULL, state.refused[0], "nothing was changed", state.refused[1])
            for principal in dict.fromkeys(task.spec.principal for task in chosen):
                check_quota(state, principal, [task.spec for task in chosen if task.spec.principal == principal])
            ids = {task.task_id for task in chosen}
            changes = tuple(self._retry(session, task, chosen=task.task_id in ids) for task in tasks)
            state.send(session.session, Changes(message.request_id, changes, tuple(missing)))

        resolve(state, session, message, then)

    def _cancel(self, session: Session, task: Task, reason: str) -> Change:
        if not allowed(task.state, Cause.CANCELLED):
            return Change(task.task_id, task.state, changed=False, message=f"had {task.state} before")
        self._lifecycle.cancelled(task, session.name, reason)
        return Change(task.task_id, task.state, changed=True, message="")

    def _retry(self, session: Session, task: Task, *, chosen: bool) -> Change:
        if not chosen:
            is_kept = task.has_bodies and not self._state.is_going(task.task_id)
            why = f"is {task.state}" if is_kept else "its prompt is no longer kept"
            return Change(task.task_id, task.state, changed=False, message=why)
        reopened = self._lifecycle.reopen(task, session.name)
        return Change(task.task_id, reopened.state, changed=True, message="")
