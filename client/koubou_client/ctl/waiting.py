"""Waiting for tasks: progress on stderr, Ctrl-C detaches and never cancels."""

import queue
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from koubou_client.ctl.output import Output, clean
from koubou_client.ctl.tables import shorten
from koubou_client.ctl.times import duration
from koubou_common.errors import Code, KoubouError
from koubou_common.messages.values import TaskMark, TaskState

if TYPE_CHECKING:
    from koubou_client.client import Client

_TICK_S = 0.5  # the progress line shows seconds
_WATCH_TASKS = 2_000  # under one request: all their states come in one message

OnEnd = Callable[[TaskMark], None]


@dataclass(slots=True)
class Waiter:
    """Waits for tasks that this or another command submitted."""

    client: "Client"
    output: Output
    task_ids: Sequence[int]
    name: str  # as the user may type it again: 142, b12
    marks: dict[int, TaskMark] = field(default_factory=dict)
    _news: "queue.SimpleQueue[TaskMark | KoubouError]" = field(default_factory=queue.SimpleQueue)
    _began_s: float = field(default_factory=time.monotonic)
    _line_shown: bool = False

    def wait(
        self, *, for_all: bool = True, timeout_s: float | None = None, on_end: OnEnd | None = None
    ) -> list[TaskMark]:
        """The tasks that have ended, in that order; `on_end` is told at once.

        Raises KoubouError: wait_timed_out, detached (Ctrl-C), or why the broker tells no more.
        """
        deadline_s = None if timeout_s is None else self._began_s + timeout_s
        ended: dict[int, TaskMark] = {}
        wanted = len(self.task_ids) if for_all else min(1, len(self.task_ids))
        try:
            self._watch()
            while len(ended) < wanted:
                self._show(len(ended))
                news = self._next(deadline_s)
                while news is not None:
                    if isinstance(news, KoubouError):
                        raise self._go_on_hint(news)
                    self.marks[news.task_id] = news
                    if news.state.is_terminal and news.task_id not in ended:
                        ended[news.task_id] = news
                        self._tell_end(news)
                        if on_end:
                            on_end(news)
                    news = self._next(0.0)
                if deadline_s is not None and time.monotonic() >= deadline_s and len(ended) < wanted:
                    raise self._timed_out(timeout_s or 0.0, len(ended))
        except KeyboardInterrupt:
            raise self._detached(len(ended)) from None
        finally:
            self._wipe()
        return list(ended.values())

    def _watch(self) -> None:
        def on_marks(marks: Sequence[TaskMark], missing: Sequence[int]) -> bool:
            for mark in marks:
                self._news.put(mark)
            for task_id in missing:
                self._news.put(KoubouError(Code.NOT_FOUND, f"no task {task_id} of yours", "koubou-ctl ps -a"))
            return False

        for first in range(0, len(self.task_ids), _WATCH_TASKS):
            self.client.connection.watch(self.task_ids[first : first + _WATCH_TASKS], on_marks, self._news.put)

    def _next(self, deadline_s: float | None) -> TaskMark | KoubouError | None:
        """The next news; None at the deadline, and every now and then for the progress line."""
        wait_s = _TICK_S if deadline_s is None else min(_TICK_S, max(0.0, deadline_s - time.monotonic()))
        try:
            return self._news.get(timeout=wait_s) if wait_s > 0 else self._news.get_nowait()
        except queue.Empty:
            return None

    def _show(self, ended: int) -> None:
        if self.output.as_json or not sys.stderr.isatty():
            return
        columns = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r\x1b[K" + shorten(clean(self._progress(ended)), columns))
        sys.stderr.flush()
        self._line_shown = True

    def _progress(self, ended: int) -> str:
        passed = duration(int((time.monotonic() - self._began_s) * 1_000))
        if len(self.task_ids) == 1:
            mark = self.marks.get(self.task_ids[0])
            state = "…" if mark is None else mark.state.value
            where = f" on {mark.worker_id}" if mark and mark.worker_id and mark.state is TaskState.RUNNING else ""
            attempt = f", attempt {mark.attempts}" if mark and mark.attempts > 1 else ""
            return f"task {self.task_ids[0]}: {state}{where}{attempt}  {passed}"
        counts = dict.fromkeys(TaskState, 0)
        for mark in self.marks.values():
            counts[mark.state] += 1
        rest = "".join(
            f", {counts[state]} {state}"
            for state in (TaskState.RUNNING, TaskState.FAILED, TaskState.CANCELLED)
            if counts[state]
        )
        return f"{self.name}: {ended} of {len(self.task_ids)} ended{rest}  {passed}"

    def _tell_end(self, mark: TaskMark) -> None:
        """A line per ended task: the log of a wait that nobody watches."""
        if len(self.task_ids) == 1 and mark.state is TaskState.SUCCEEDED:
            return  # its output says so
        if not sys.stderr.isatty() or mark.state is not TaskState.SUCCEEDED:
            self._wipe()
            where = f" on {mark.worker_id}" if mark.worker_id else ""
            self.output.note(f"task {mark.task_id}: {mark.state}{where}")

    def _wipe(self) -> None:
        if self._line_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._line_shown = False

    def _left(self, ended: int) -> str:
        count = len(self.task_ids)
        return f"task {self.task_ids[0]} goes on" if count == 1 else f"{count - ended} of {count} tasks go on"

    def _detached(self, ended: int) -> KoubouError:
        return KoubouError(
            Code.DETACHED,
            f"detached: {self._left(ended)}",
            f"follow: koubou-ctl wait {self.name}   stop: koubou-ctl cancel {self.name}",
        )

    def _timed_out(self, timeout_s: float, ended: int) -> KoubouError:
        return KoubouError(
            Code.WAIT_TIMED_OUT,
            f"waited {duration(int(timeout_s * 1_000))}: {self._left(ended)}",
            f"wait on: koubou-ctl wait {self.name}   stop: koubou-ctl cancel {self.name}",
        )

    def _go_on_hint(self, error: KoubouError) -> KoubouError:
        if error.code is not Code.BROKER_UNREACHABLE:
            return error
        return KoubouError(
            error.code,
            f"{error.message} (accepted tasks are kept)",
            f"{error.hint}; then koubou-ctl wait {self.name}".lstrip("; "),
        )
