"""A task as a `concurrent.futures.Future`: the standard library's tools work on it."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from koubou_common.errors import Code, ErrorClass, KoubouError
from koubou_common.messages.values import TaskState, TaskView


@dataclass(frozen=True, slots=True)
class TaskOutput:
    """What a task brought: its text, and the task as recorded."""

    text: str
    task: TaskView


class TaskFailedError(KoubouError):
    """The task ended without an output; `error_class` is its name, `task` all that is recorded."""

    def __init__(self, task: TaskView) -> None:
        what = f"task {task.task_id} {task.state}"
        if task.error_class is not None:
            what += f": {task.error_class}: {task.error_message}"
        super().__init__(Code.TASK_FAILED, what, f"koubou-ctl show {task.task_id}")
        self.task = task

    @property
    def error_class(self) -> ErrorClass | None:
        """Why it failed; None for a cancelled task."""
        return self.task.error_class


class TaskFuture(Future[TaskOutput]):
    """The future of one accepted task; ends when the broker has recorded the task's end."""

    def __init__(self, task_id: int, cancel: Callable[[int], TaskState]) -> None:
        super().__init__()
        self.id = task_id
        self._cancel = cancel
        self.set_running_or_notify_cancel()  # so that only the broker's word ends it

    def cancel(self) -> bool:
        """Ask the broker to cancel the task; True if it is, or already was, cancelled.

        The future then raises TaskFailedError: the broker's record ends it, never the wish alone.
        """
        return self._cancel(self.id) is TaskState.CANCELLED

    def end(self, outcome: TaskOutput | BaseException) -> None:
        """Settle it once; later calls change nothing."""
        with contextlib.suppress(InvalidStateError):  # another thread was faster
            if isinstance(outcome, BaseException):
                self.set_exception(outcome)
            else:
                self.set_result(outcome)
