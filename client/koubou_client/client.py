"""`Client`: submit tasks, get futures; everything `koubou-ctl` does, for Python programs."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

from koubou_client.connection import CONNECT_TIMEOUT_S, Connection, new_request_id
from koubou_client.futures import TaskFailedError, TaskFuture, TaskOutput
from koubou_client.inputs import InputLimits
from koubou_client.layout import lay_out
from koubou_client.pending import PATIENCE_S, Waits
from koubou_client.tasks import TaskDraft, draft_task, new_idempotency_key, parts_of
from koubou_client.where import Where, find_broker
from koubou_common import __version__
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import (
    Cancel,
    Changes,
    ClientWelcome,
    Explain,
    Explanation,
    GetResult,
    GetStats,
    GetStatus,
    GetStory,
    GetTasks,
    PartStaged,
    Preview,
    Retry,
    Stats,
    Status,
    Story,
    Submitted,
    TaskResult,
    Tasks,
)
from koubou_common.messages.limits import PAGE_TASKS
from koubou_common.messages.values import Change, Plan, TaskMark, TaskSpec, TaskState, TaskView

WATCH_TASKS = 2_000  # watched under one request: all their states come in one message
_PREVIEW_TASKS = 10  # planned in one message: each plan names every worker
# What a broker of protocol 1 passes over: whether a task asks for it, its name, the option that asks.
_SINCE_2: Sequence[tuple[Callable[[TaskSpec], bool], str, str]] = (
    (lambda spec: spec.queue_timeout_s is not None, "queue time limit", "--queue-timeout"),
    (lambda spec: bool(spec.capabilities), "required capabilities", "--capability"),
    (lambda spec: spec.same_digest, "choice of a model's version", "--same-digest"),
)


class Client:
    """A connection to the broker of this home. Thread-safe; use it as a context manager.

    Every method raises KoubouError: `code` is the stable slug, `hint` says what to do.
    """

    def __init__(
        self,
        *,
        home: str | Path | None = None,
        where: Where | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        software: str = f"koubou-client {__version__}",
        patience_s: float = PATIENCE_S,
    ) -> None:
        where = where or find_broker(os.environ, home)
        self.connection = Connection(
            where.addresses,
            where.broker_key,
            where.pair,
            software=software,
            connect_timeout_s=connect_timeout_s,
        )
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._open: dict[int, TaskFuture] = {}  # not ended yet
        # Ended ones too, as long as the caller holds them: nothing is kept of what nobody wants any more.
        self._futures: WeakValueDictionary[int, TaskFuture] = WeakValueDictionary()

    def welcome(self) -> ClientWelcome:
        """Who we are to the broker, and its limits."""
        return self.connection.welcome()

    def limits(self) -> InputLimits:
        """The broker's limits on inputs."""
        told = self.welcome()
        return InputLimits(told.prompt_bytes, told.file_bytes, told.task_bytes, told.task_files)

    def submit(self, prompt: str, *, idempotency_key: str = "", **task: Any) -> TaskFuture:
        """Submit one task (keywords as in `draft_task`); its future ends when the task has.

        Where the broker takes no more for now this waits, as long as the client's `patience_s` allows.
        """
        draft = draft_task(prompt, limits=self.limits(), **task)
        accepted = self.submit_drafts([draft], key=idempotency_key)
        return self.futures([ref.task_id for ref in accepted.tasks])[0]

    def map(self, prompts: Iterable[str], *, ordered: bool = True, **task: Any) -> Iterator[TaskOutput]:
        """Submit one task a prompt as a batch; yield the outputs, in the prompts' order or as they come."""
        limits = self.limits()
        drafts = [draft_task(prompt, limits=limits, **task) for prompt in prompts]
        if not drafts:
            return
        accepted = self.submit_drafts(drafts, as_batch=True)
        futures = self.futures([ref.task_id for ref in accepted.tasks])
        for future in futures if ordered else as_completed(futures):
            yield future.result()

    def submit_many(
        self,
        items: Iterable[str | Mapping[str, Any]],
        *,
        idempotency_key: str = "",
        keep_order: bool = False,
        **common: Any,
    ) -> list[TaskFuture]:
        """Submit a batch, all of it or none; its futures are in the items' order.

        An item is a prompt, or the keywords of `draft_task` with its `prompt`; `common` ones hold where an item says
        nothing else. Its `files` come after the common ones, of which it need not name any. Tasks with the same prompt
        have the files that all of them share put first, so that a model reads these once, unless `keep_order`.
        """
        limits = self.limits()
        drafts = [_draft_of(item, common, limits) for item in items]
        if not drafts:
            return []
        if not keep_order:
            drafts = lay_out(drafts)
        accepted = self.submit_drafts(drafts, key=idempotency_key, as_batch=True)
        return self.futures([ref.task_id for ref in accepted.tasks])

    def submit_drafts(
        self,
        drafts: Sequence[TaskDraft],
        *,
        key: str = "",
        as_batch: bool = False,
        patience_s: float | None = None,
        on_wait: Waits | None = None,
    ) -> Submitted:
        """Submit tasks, all or none; returns when they are durable.

        A refusal that says when to come again (the queue or the disk is full) is obeyed for `patience_s` (that of the
        client, if none is given), and `on_wait` is told why and for how long each time.
        """
        patience_s = self._patience_s if patience_s is None else patience_s
        request_ids = [new_request_id() for _ in range(len(drafts) or 1)]
        parts = parts_of(drafts, request_ids, key or new_idempotency_key(), as_batch=as_batch, dry_run=False)
        last, bodies_of_last = parts[-1]
        while True:
            _check_known(drafts, self.connection.welcome())
            session = self.connection.session if len(parts) > 1 else None
            try:
                for message, bodies in parts[:-1]:
                    self.connection.call(
                        message, PartStaged, bodies, session=session, patience_s=patience_s, on_wait=on_wait
                    )
                return self.connection.call(
                    last, Submitted, bodies_of_last, session=session, patience_s=patience_s, on_wait=on_wait
                )
            except KoubouError as error:
                # A new session has forgotten the earlier parts: the same key makes beginning again harmless.
                if error.code is not Code.HELLO_REQUIRED or session is None:
                    raise

    def preview(self, drafts: Sequence[TaskDraft]) -> tuple[Plan, ...]:
        """What submitting these would do; nothing is stored."""
        plans: list[Plan] = []
        _check_known(drafts, self.connection.welcome())
        for first in range(0, len(drafts), _PREVIEW_TASKS):
            some = drafts[first : first + _PREVIEW_TASKS]
            request_ids = [new_request_id() for _ in some]
            for message, bodies in parts_of(some, request_ids, new_idempotency_key(), as_batch=False, dry_run=True):
                plans += self.connection.call(message, Preview, bodies).plans
        return tuple(plans)

    def futures(self, task_ids: Sequence[int]) -> list[TaskFuture]:
        """Futures of tasks accepted earlier, by this or another program."""
        with self._lock:
            futures = []
            for task_id in task_ids:
                future = self._futures.get(task_id)
                if future is None:
                    future = self._open[task_id] = self._futures[task_id] = TaskFuture(task_id, self._cancel_one)
                futures.append(future)
            waited = [future.id for future in futures if not future.done()]
        for first in range(0, len(waited), WATCH_TASKS):
            self._watch(waited[first : first + WATCH_TASKS])
        return futures

    def wait(
        self, task_ids: Sequence[int], *, timeout_s: float | None = None, for_all: bool = True
    ) -> list[TaskFuture]:
        """Wait until all (or any) have ended; returns those that have. Never raises for a failed task."""
        futures = self.futures(task_ids)
        done, _ = wait(futures, timeout_s, "ALL_COMPLETED" if for_all else FIRST_COMPLETED)
        return [future for future in futures if future in done]

    def tasks(
        self,
        *,
        task_ids: Sequence[int] = (),
        batch_id: int = 0,
        states: Sequence[TaskState] = (),
        most: int = PAGE_TASKS,
    ) -> list[TaskView]:
        """Tasks by id, of a batch, or all that match, newest first; KoubouError (not_found) for an unknown id."""
        found: list[TaskView] = []
        asked = [tuple(task_ids[i : i + PAGE_TASKS]) for i in range(0, len(task_ids), PAGE_TASKS)] or [()]
        for ids in asked:
            before = 0
            while len(found) < most:
                page = self.connection.call(
                    GetTasks(
                        new_request_id(),
                        ids,
                        batch_id,
                        tuple(states),
                        before,
                        min(PAGE_TASKS, most - len(found)),
                    ),
                    Tasks,
                )
                if page.missing:
                    raise _not_found(page.missing, self.welcome())
                found += page.tasks
                before = page.next_before
                if not before:
                    break
        return found

    def story(self, task_id: int) -> Story:
        """A task with its attempts and events."""
        return self.connection.call(GetStory(new_request_id(), task_id), Story)

    def explain(self, task_id: int) -> Explanation:
        """Why a task went where it did; of one that waits, who could take it, why not, about when it begins."""
        if self.welcome().proto < 2:  # an older broker would drop the question without a word
            hint = "install the same version of Koubou on both sides; koubou-ctl show tells where it ran"
            raise KoubouError(Code.VERSION, "the broker is older than this client and explains nothing", hint)
        return self.connection.call(Explain(new_request_id(), task_id), Explanation)

    def stats(self, hours: int = 24, *, worker_id: str = "") -> Stats:
        """What each worker (or one) did in the last hours, and how their factors went."""
        if self.welcome().proto < 2:  # an older broker would drop the question without a word
            hint = "install the same version of Koubou on both sides; koubou-ctl workers list shows some"
            raise KoubouError(Code.VERSION, "the broker is older than this client and keeps no statistics", hint)
        return self.connection.call(GetStats(new_request_id(), hours, worker_id), Stats)

    def result(self, task_id: int, *, raw: bool = False) -> tuple[TaskResult, bytes]:
        """A task's record and its output; the bytes are empty where there is none (see `task.state`)."""
        reply = self.connection.call(GetResult(new_request_id(), task_id, raw), TaskResult)
        if reply.body is None:
            return reply, b""
        data = self.connection.fetch(reply.body).result()
        return reply, data if raw else data[reply.output_offset : reply.output_offset + reply.output_length]

    def cancel(self, task_ids: Sequence[int] = (), *, batch_id: int = 0, reason: str = "") -> tuple[Change, ...]:
        """Cancel what has not ended; tells the state now recorded of each."""
        reply = self.connection.call(Cancel(new_request_id(), tuple(task_ids), batch_id, reason), Changes)
        if reply.missing:
            raise _not_found(reply.missing, self.welcome())
        return reply.changes

    def retry(self, task_ids: Sequence[int] = (), *, batch_id: int = 0) -> tuple[Change, ...]:
        """Open ended tasks again; of a batch those that failed or were cancelled."""
        reply = self.connection.call(Retry(new_request_id(), tuple(task_ids), batch_id), Changes)
        if reply.missing:
            raise _not_found(reply.missing, self.welcome())
        with self._lock:
            for change in reply.changes:
                if change.changed:
                    self._open.pop(change.task_id, None)
                    self._futures.pop(change.task_id, None)
        return reply.changes

    def status(self) -> Status:
        """The workshop at a glance."""
        return self.connection.call(GetStatus(new_request_id()), Status)

    def close(self) -> None:
        """End the connection; tasks go on, futures that are not done fail."""
        with self._lock:
            futures = list(self._open.values())
        for future in futures:  # before the connection, whose end would be given as the reason
            future.end(KoubouError(Code.DETACHED, "the client was closed; the task goes on"))
        self.connection.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cancel_one(self, task_id: int) -> TaskState:
        return self.cancel([task_id])[0].state

    def _watch(self, task_ids: Sequence[int]) -> None:
        going_on = set(task_ids)

        def on_marks(marks: Sequence[TaskMark], missing: Sequence[int]) -> bool:
            for task_id in missing:
                self._end(task_id, _not_found([task_id], self.welcome()))
            for mark in marks:
                if mark.state.is_terminal and mark.task_id in going_on:
                    self._fetch_end(mark.task_id)
                    going_on.discard(mark.task_id)
            going_on.difference_update(missing)
            return not going_on

        def on_error(error: KoubouError) -> None:
            for task_id in going_on:
                self._end(task_id, error)

        self.connection.watch(task_ids, on_marks, on_error)

    def _fetch_end(self, task_id: int) -> None:
        def on_result(reply: TaskResult | KoubouError) -> None:
            if isinstance(reply, KoubouError):
                self._end(task_id, reply)
            elif reply.task.state is not TaskState.SUCCEEDED or reply.body is None:
                self._end(task_id, TaskFailedError(reply.task))
            else:
                self.connection.fetch(reply.body).add_done_callback(lambda done: self._end_with(reply, done))

        self.connection.begin(GetResult(new_request_id(), task_id), on_result)

    def _end_with(self, reply: TaskResult, fetched: "Future[bytes]") -> None:
        error = fetched.exception()
        if error is not None:
            self._end(reply.task.task_id, error)
            return
        data = fetched.result()[reply.output_offset : reply.output_offset + reply.output_length]
        self._end(reply.task.task_id, TaskOutput(data.decode("utf-8", "replace"), reply.task))

    def _end(self, task_id: int, outcome: TaskOutput | BaseException) -> None:
        with self._lock:
            future = self._open.pop(task_id, None)
            if not isinstance(outcome, TaskOutput | TaskFailedError):
                self._futures.pop(task_id, None)  # only the connection's end: the next one to ask shall wait anew
        if future is not None:
            future.end(outcome)


def _draft_of(item: str | Mapping[str, Any], common: Mapping[str, Any], limits: InputLimits) -> TaskDraft:
    own: Mapping[str, Any] = {"prompt": item} if isinstance(item, str) else item
    wanted = {**common, **own}
    shared = common.get("files", ())
    wanted["files"] = [*shared, *(name for name in own.get("files", ()) if name not in shared)]
    return draft_task(wanted.pop("prompt"), limits=limits, **wanted)


def _not_found(task_ids: Sequence[int], welcome: ClientWelcome) -> KoubouError:
    named = ", ".join(str(task_id) for task_id in task_ids[:5])
    hint = "koubou-ctl ps -a lists them"
    if any(welcome.lost_first_id <= task_id < welcome.lost_end_id for task_id in task_ids):
        when = datetime.fromtimestamp(welcome.restored_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        hint = (
            f"the workshop was restored from a backup on {when}, and tasks accepted after that backup are gone:"
            f" submit again; {hint}"
        )
    return KoubouError(Code.NOT_FOUND, f"no task {named} of yours" + (", …" if len(task_ids) > 5 else ""), hint)


def _check_known(drafts: Sequence[TaskDraft], welcome: ClientWelcome) -> None:
    """Refuse what an older broker would pass over in silence: it ignores fields that it does not know."""
    if welcome.proto >= 2:
        return
    for is_asked, what, option in _SINCE_2:
        if any(is_asked(draft.spec) for draft in drafts):
            raise KoubouError(
                Code.VERSION,
                f"the broker is older than this client and knows no {what}",
                f"leave {option} out, or install the same version of Koubou on both sides",
            )
