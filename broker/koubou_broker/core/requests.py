"""What is asked without changing anything: lists, stories, results, status, watches."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.standings import Waits
from koubou_broker.core.state import Refusal, Session, State
from koubou_broker.core.views import attempt_views, event_views, overlaid, task_view, worker_views
from koubou_broker.effects import CountStates, FindMarks, FindStats, FindStory, FindTasks, Found
from koubou_broker.task import Task
from koubou_common.errors import Code
from koubou_common.messages import (
    Cancel,
    GetResult,
    GetStats,
    GetStatus,
    GetStory,
    GetTasks,
    GetWorkers,
    Purge,
    Retry,
    Stats,
    Status,
    Story,
    TaskResult,
    Tasks,
    Watch,
    Watching,
    Workers,
)
from koubou_common.messages.limits import BATCH_TASKS, PAGE_TASKS
from koubou_common.messages.values import Body, FactorView, Role, StateCount, TaskState, TaskView

_PAGE_CHARS = 150_000  # of the texts in a page: four bytes each at worst, a message has 1,000,000
_ALERTS_SHOWN = 100
_HOUR_MS = 3_600_000
_NAMED_MARKS = 5_000  # more leave out on which worker: 10,000 long names do not fit one message

Rows = tuple[list[Task], list[int]]  # the tasks that may be seen, the ids that are not there


class Requests:
    """Answers from the core, and from the store where the core does not know."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._counting: set[str] = set()  # principals whose stats are being worked out

    def tasks(self, session: Session, message: GetTasks) -> None:
        """A page, newest first."""
        state = self._state
        principal = owner_of(session)
        most = max(1, min(message.most, PAGE_TASKS))

        def then(found: Found) -> None:
            tasks = [state.truth(row) for row in found.tasks]
            if message.states:
                tasks = [task for task in tasks if task.state in message.states]
            views: list[TaskView] = []
            waits = Waits(state)
            chars = 0
            for task in tasks:
                view = task_view(state, task, brief=True, proto=session.proto, waits=waits)
                chars += _chars_of(view)
                if chars > _PAGE_CHARS and views:
                    break
                views.append(view)
            cut = len(views) < len(tasks)
            more = cut or (not message.task_ids and len(found.tasks) == most)
            oldest = views[-1].task_id if cut else found.tasks[-1].task.task_id if found.tasks else 0
            there = {row.task.task_id for row in found.tasks}
            missing = tuple(task_id for task_id in dict.fromkeys(message.task_ids) if task_id not in there)
            answer = Tasks(message.request_id, tuple(views), oldest if more else 0, missing)
            state.send(session.session, answer)

        query = FindTasks(
            principal=principal,
            task_ids=message.task_ids,
            batch_id=message.batch_id,
            states=message.states,
            before_id=message.before_id,
            most=most,
        )
        state.lookup(session.session, query, then, message.request_id)

    def story(self, session: Session, message: GetStory) -> None:
        """A task with its attempts and events."""
        state = self._state

        def then(found: Found) -> None:
            task = one_task(state, session, message.task_id, found)
            answer = Story(
                message.request_id,
                task_view(state, task, brief=False, proto=session.proto),
                attempt_views(overlaid(state, found.attempts)),
                event_views(found.events),
            )
            state.send(session.session, answer)

        state.lookup(session.session, FindStory(message.task_id), then, message.request_id)

    def result(self, session: Session, message: GetResult) -> None:
        """A task's output, or the state it is in."""
        state = self._state

        def then(found: Found) -> None:
            task = one_task(state, session, message.task_id, found)
            body = None
            offset = length = 0
            if task.result is not None and not found.tasks[0].has_output and state.known(task.task_id) is None:
                raise no_longer_kept(task.task_id)
            if task.result is not None:
                body = Body(task.result.sha256, task.result.size_bytes)
                offset, length = task.output_offset, task.output_length
                if message.raw:
                    offset, length = 0, task.result.size_bytes
            answer = TaskResult(
                message.request_id,
                task_view(state, task, brief=False, proto=session.proto),
                body,
                offset,
                length,
                task.spec.out_digest,
            )
            state.send(session.session, answer)

        state.lookup(
            session.session,
            FindTasks(owner_of(session), task_ids=(message.task_id,)),
            then,
            message.request_id,
        )

    def status(self, session: Session, message: GetStatus) -> None:
        """The workshop at a glance."""
        state = self._state
        principal = owner_of(session)

        def then(found: Found) -> None:
            counts = {one: count for one, count in found.counts if one.is_terminal}
            accounts = [state.accounts[name] for name in state.accounts if principal in ("", name)]
            oldest: list[int] = []
            for account in accounts:
                counts[TaskState.RUNNING] = counts.get(TaskState.RUNNING, 0) + account.running
                queued = len(account.tasks) - account.running
                counts[TaskState.QUEUED] = counts.get(TaskState.QUEUED, 0) + queued
                first = next((task for task in account.tasks.values() if task.state is TaskState.QUEUED), None)
                if first is not None:
                    oldest.append(first.spec.submitted_ms)
            alerts = tuple(state.alerts.values()) if not principal else ()
            answer = Status(
                request_id=message.request_id,
                version=state.settings.version,
                principal=session.name,
                role=session.role,
                started_ms=state.started.wall_ms,
                now_ms=state.now.wall_ms,
                counts=tuple(StateCount(one, counts.get(one, 0)) for one in TaskState),
                oldest_queued_ms=min(oldest, default=0),
                workers=worker_views(state, state.workers.values()),
                alerts=alerts[:_ALERTS_SHOWN],
            )
            state.send(session.session, answer)

        state.lookup(session.session, CountStates(principal), then, message.request_id)

    def workers(self, session: Session, message: GetWorkers) -> None:
        """One worker, or all."""
        state = self._state
        shown = list(state.workers.values())
        if message.worker_id:
            shown = [worker for worker in shown if worker.worker_id == message.worker_id]
            if not shown:
                raise _unknown_worker(state, message.worker_id)
        state.send(session.session, Workers(message.request_id, worker_views(state, shown)))

    def stats(self, session: Session, message: GetStats) -> None:
        """What the workers did in the last hours; everybody may know, as everybody shares them."""
        state = self._state
        known = message.worker_id in ("", *state.workers)
        if session.name in self._counting:
            # Over a year's rows it takes a second or more, in which nobody else's questions are looked up.
            raise Refusal(Code.BUSY, "stats are being worked out for you already", retry_after_s=1.0)

        def failed(refusal: Refusal) -> None:
            self._counting.discard(session.name)
            if session.session in state.sessions:
                state.refuse(session.session, message.request_id, refusal)

        def then(found: Found) -> None:
            self._counting.discard(session.name)
            if not known and not found.stats:
                raise _unknown_worker(state, message.worker_id)
            factors = tuple(
                FactorView(one.worker_id, one.at_ms, one.factor, one.samples, one.baseline) for one in found.factors
            )
            state.send(session.session, Stats(message.request_id, message.hours, found.stats, factors))

        since_ms = max(1, state.now.wall_ms - message.hours * _HOUR_MS)
        state.lookup(session.session, FindStats(since_ms, message.worker_id), then, message.request_id, failed=failed)
        self._counting.add(session.name)

    def watch(self, session: Session, message: Watch) -> None:
        """The states now, then every change until all have ended."""
        state = self._state

        def then(tasks: list[Task], missing: list[int]) -> None:
            peer = state.sessions.get(session.session)
            if peer is None:
                return
            live = [task.task_id for task in tasks if not task.is_over]
            state.unwatch(peer, message.request_id)
            _check_watched(state, peer, len(live))
            if live:
                peer.watches[message.request_id] = set(live)
                for task_id in live:
                    state.watchers.setdefault(task_id, {})[peer.session, message.request_id] = None
            marks = tuple(self._lifecycle.mark(task) for task in tasks)
            if len(marks) > _NAMED_MARKS:
                marks = tuple(replace(mark, worker_id="") for mark in marks)
            state.send(session.session, Watching(message.request_id, marks, tuple(missing)))

        resolve(state, session, message, then)


def owner_of(session: Session) -> str:
    """Whose tasks this peer sees: its own, an operator everyone's ("")."""
    return "" if session.role is Role.OPERATOR else session.name


def no_longer_kept(task_id: int) -> Refusal:
    """The record says that there was an output."""
    hint = "outputs go some weeks after the task ended (retention.bodies_days), or at once by `koubou-ctl purge`"
    return Refusal(Code.NOT_FOUND, f"the output of task {task_id} is no longer kept", hint)


def may_see(session: Session, task: Task) -> bool:
    """Whether the task is this peer's business; if not, it looks as if it did not exist."""
    return session.role is Role.OPERATOR or task.spec.principal == session.name


def resolve(
    state: State,
    session: Session,
    wanted: Watch | Cancel | Retry | Purge,
    then: Callable[[list[Task], list[int]], None],
) -> None:
    """Tasks by ids and batch, live or ended; those of others look like those that do not exist."""
    ids, batch_id = tuple(dict.fromkeys(wanted.task_ids)), wanted.batch_id
    if not ids and not batch_id:
        raise Refusal(Code.BAD_INPUT, "neither a task nor a batch is named")
    if not batch_id and all(task_id in state.tasks for task_id in ids):
        then(*_sorted_out(session, (state.tasks[task_id] for task_id in ids), ids))
        return

    named = set(ids)

    def found(rows: Found) -> None:
        known = {row.task.task_id: state.truth(row) for row in rows.tasks}
        tasks = [task for task in known.values() if task.task_id in named or task.spec.batch_id == batch_id]
        seen, missing = _sorted_out(session, tasks, ids)
        if batch_id and not ids and not seen:
            raise Refusal(Code.NOT_FOUND, f"there is no batch b{batch_id} of yours")
        then(seen[:BATCH_TASKS], missing)

    state.lookup(session.session, FindMarks(ids, batch_id), found, wanted.request_id)


def _check_watched(state: State, peer: Session, more: int) -> None:
    limits = state.settings.limits
    here = _watched(peer)
    if here + more > limits.watched_per_session:
        most = limits.watched_per_session
        text = f"{here:,} tasks are watched, {more:,} would come; watched_per_session is {most:,}"
        raise Refusal(Code.BUSY, text)
    everywhere = sum(_watched(one) for one in state.sessions.values() if one.name == peer.name)
    if everywhere + more > limits.watched_per_client:
        most = limits.watched_per_client
        text = f"{everywhere:,} tasks are watched by {peer.name}, {more:,} would come; watched_per_client is {most:,}"
        raise Refusal(Code.BUSY, text)


def _watched(peer: Session) -> int:
    return sum(len(one) for one in peer.watches.values())


def _sorted_out(session: Session, tasks: Iterable[Task], ids: tuple[int, ...]) -> Rows:
    seen = sorted((task for task in tasks if may_see(session, task)), key=lambda task: task.task_id)
    there = {task.task_id for task in seen}
    return seen, [task_id for task_id in ids if task_id not in there]


def one_task(state: State, session: Session, task_id: int, found: Found) -> Task:
    """The task that was looked up; somebody else's looks as if it did not exist."""
    tasks = [state.truth(row) for row in found.tasks]
    if not tasks or not may_see(session, tasks[0]):
        hint = "koubou-ctl ps -a lists your tasks"
        if state.loss.first_task_id <= task_id < state.loss.end_task_id:
            hint = f"the workshop was restored from an older backup: submit again; {hint}"
        raise Refusal(Code.NOT_FOUND, f"there is no task {task_id}", hint)
    return tasks[0]


def _unknown_worker(state: State, worker_id: str) -> Refusal:
    known = ", ".join(state.workers) or "none"
    return Refusal(Code.NOT_FOUND, f"no worker {worker_id!r} is known", f"known are: {known}")


def _chars_of(view: TaskView) -> int:
    texts = (view.custom_id, view.principal, view.model, view.target, view.out_path, view.error_message, *view.flags)
    return sum(len(text) for text in texts) + len(view.waiting_for) + 200
