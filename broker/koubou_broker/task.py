"""A task's states and attempts: the one table of transitions, and what a failure means. Pure.

Everything that decides how a task may move stands here. What a peer asks is checked with `allowed` and
refused; a move the core itself makes against the table is our bug, hence an assertion.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from koubou_broker.core_settings import CoreSettings
from koubou_broker.records import Attempt, BodyRef, NewTask, TaskProgress
from koubou_common.errors import Category, ErrorClass, category_of
from koubou_common.messages.values import AttemptState, Metrics, TaskState

_STORY_LINES = 24  # of a live task, for assertion messages and debugging


class Cause(StrEnum):
    """Why a task moves."""

    DISPATCHED = "dispatched"
    ADOPTED = "adopted"  # an attempt taken back was found alive
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REQUEUED = "requeued"
    REOPENED = "reopened"  # an explicit retry


TRANSITIONS: Mapping[tuple[TaskState, Cause], TaskState] = {
    (TaskState.QUEUED, Cause.DISPATCHED): TaskState.RUNNING,
    (TaskState.QUEUED, Cause.ADOPTED): TaskState.RUNNING,
    (TaskState.QUEUED, Cause.SUCCEEDED): TaskState.SUCCEEDED,  # of an attempt taken back, or from the result cache
    (TaskState.QUEUED, Cause.FAILED): TaskState.FAILED,  # deadline, queue time limit, no worker left
    (TaskState.QUEUED, Cause.CANCELLED): TaskState.CANCELLED,
    (TaskState.RUNNING, Cause.SUCCEEDED): TaskState.SUCCEEDED,
    (TaskState.RUNNING, Cause.FAILED): TaskState.FAILED,
    (TaskState.RUNNING, Cause.CANCELLED): TaskState.CANCELLED,
    (TaskState.RUNNING, Cause.REQUEUED): TaskState.QUEUED,
    (TaskState.SUCCEEDED, Cause.REOPENED): TaskState.QUEUED,
    (TaskState.FAILED, Cause.REOPENED): TaskState.QUEUED,
    (TaskState.CANCELLED, Cause.REOPENED): TaskState.QUEUED,
}

# Of the infra failures these say that something died while it worked on the task.
DEATHS = frozenset({ErrorClass.AGENT_LOST, ErrorClass.AGENT_RESTARTED, ErrorClass.RUNNER_KILLED})
# These an agent reports at once and would report again at once: a free retry, but not a hot loop.
_BACKED_OFF_INFRA = frozenset({ErrorClass.INPUTS_UNAVAILABLE, ErrorClass.RUNNER_KILLED, ErrorClass.CLI_MISSING})


def allowed(state: TaskState, cause: Cause) -> bool:
    """Whether the table has this move."""
    return (state, cause) in TRANSITIONS


@dataclass(slots=True)
class Task:
    """A live task: its unchanging half and what changes. Only `move` changes the state."""

    spec: NewTask
    state: TaskState = TaskState.QUEUED
    generation: int = 1
    issued: int = 0  # attempts ever; the number of the last one
    transient_failures: int = 0
    infra_failures: int = 0
    deaths: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    not_before_ms: int = 0
    worker_id: str = ""
    error_class: ErrorClass | None = None
    error_cause: ErrorClass | None = None
    error_message: str = ""
    started_ms: int = 0
    finished_ms: int = 0
    result: BodyRef | None = None
    output_offset: int = 0
    output_length: int = 0
    flags: tuple[str, ...] = ()
    metrics: Metrics | None = None
    #: uid of the attempt that runs it; empty unless running
    current: str = ""
    #: uids issued in this generation: a success of any of them counts
    uids: list[str] = field(default_factory=list)
    #: the worker that failed last in a way that may be its fault
    avoid: str = ""
    #: when it was retried last, by the wall clock; 0: never
    opened_ms: int = 0
    #: it waits since then: submitted or retried, whatever attempts it had
    waiting_since_s: float = 0.0
    ready_since_s: float = 0.0
    #: since then it waits for a busy worker although another one was free for it; None: it does not
    hopes_since_s: float | None = None
    #: it waits for the result cache's word, and is not ready before
    asks_cache: bool = False
    #: False: retention removed its prompt and files, it cannot run again
    has_bodies: bool = True
    story: list[str] = field(default_factory=list)

    @property
    def task_id(self) -> int:
        """Its id."""
        return self.spec.task_id

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state.is_terminal

    def move(self, cause: Cause, note: str = "") -> TaskState:
        """Change the state by the table; returns the state before."""
        before = self.state
        after = TRANSITIONS.get((before, cause))
        assert after is not None, f"task {self.task_id}: no move {cause} from {before}; story: {self.story}"
        self.state = after
        self.tell(f"{before} -> {after}: {cause}{f' ({note})' if note else ''}")
        return before

    def tell(self, line: str) -> None:
        """Add to the story, which keeps its last lines."""
        self.story.append(line)
        if len(self.story) > _STORY_LINES:
            del self.story[0]

    def progress(self) -> TaskProgress:
        """The row of the changing half."""
        return TaskProgress(
            task_id=self.task_id,
            state=self.state,
            generation=self.generation,
            attempts=self.issued,
            transient_failures=self.transient_failures,
            infra_failures=self.infra_failures,
            deaths=self.deaths,
            excluded=self.excluded,
            not_before_ms=self.not_before_ms,
            worker_id=self.worker_id,
            error_class=self.error_class,
            error_cause=self.error_cause,
            error_message=self.error_message,
            started_ms=self.started_ms,
            finished_ms=self.finished_ms,
            result=self.result,
            output_offset=self.output_offset,
            output_length=self.output_length,
            flags=self.flags,
            metrics=self.metrics,
            opened_ms=self.opened_ms,
        )

    @classmethod
    def restored(cls, spec: NewTask, row: TaskProgress) -> "Task":
        """The live task behind two stored rows."""
        return cls(
            spec=spec,
            state=row.state,
            generation=row.generation,
            issued=row.attempts,
            transient_failures=row.transient_failures,
            infra_failures=row.infra_failures,
            deaths=row.deaths,
            excluded=row.excluded,
            not_before_ms=row.not_before_ms,
            worker_id=row.worker_id,
            error_class=row.error_class,
            error_cause=row.error_cause,
            error_message=row.error_message,
            started_ms=row.started_ms,
            finished_ms=row.finished_ms,
            result=row.result,
            output_offset=row.output_offset,
            output_length=row.output_length,
            flags=row.flags,
            metrics=row.metrics,
            opened_ms=row.opened_ms,
        )

    def reopened(self) -> "Task":
        """The task's next generation, still in its terminal state: counters begin anew, numbers go on."""
        assert self.is_over, f"task {self.task_id} is {self.state}"
        return Task(
            spec=self.spec,
            state=self.state,
            generation=self.generation + 1,
            issued=self.issued,
            story=[*self.story],
        )


@dataclass(slots=True)
class LiveAttempt:
    """An attempt that may still matter: of a live task, or still held by its agent."""

    record: Attempt
    task: Task
    number: int = 0  # of its Dispatch in the worker's session; 0: of an earlier session
    tokens: int = 0  # answered so far, as its agent says
    expected_end_s: float | None = None  # monotonic; None: dispatched before this start of the broker

    @property
    def uid(self) -> str:
        """Its attempt_uid."""
        return self.record.attempt_uid

    @property
    def is_current(self) -> bool:
        """Whether it is what runs its task."""
        return self.task.current == self.uid

    @property
    def may_succeed(self) -> bool:
        """Whether its success would count: its task is open and has had no outcome from it."""
        open_states = (AttemptState.RUNNING, AttemptState.LOST)
        return not self.task.is_over and self.record.state in open_states


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure means: the task fails with `error_class`, or goes back within `wait_most_s`."""

    error_class: ErrorClass | None
    message: str
    wait_most_s: float = 0.0  # the jitter draws from 0 to this


def charge(task: Task, error_class: ErrorClass, worker_id: str, boot_id: str) -> None:
    """Count a failure of the current attempt against the task's budgets."""
    category = category_of(error_class)
    task.error_cause = error_class
    task.avoid = worker_id if is_avoided_after(error_class) else ""
    if category is Category.TRANSIENT:
        task.transient_failures += 1
    elif category is Category.INFRA:
        task.infra_failures += 1
    elif category is Category.WORKER and worker_id not in task.excluded:
        task.excluded = (*task.excluded, worker_id)
    death = _death(worker_id, boot_id)
    if error_class in DEATHS and death not in task.deaths:
        task.deaths = (*task.deaths, death)


def is_avoided_after(error_class: ErrorClass) -> bool:
    """Whether the next attempt prefers another worker than the one that failed so."""
    return category_of(error_class) is Category.TRANSIENT or error_class in _BACKED_OFF_INFRA


def forgive(task: Task, worker_id: str, boot_id: str) -> None:
    """The agent did not die after all: its attempt was found alive."""
    task.deaths = tuple(death for death in task.deaths if death != _death(worker_id, boot_id))
    task.error_cause = None


def judge(task: Task, error_class: ErrorClass, message: str, settings: CoreSettings, *, another_left: bool) -> Verdict:
    """What happens after a charged failure. `another_left`: some known worker could still run it."""
    category = category_of(error_class)
    said = f"{error_class}: {message}" if message else str(error_class)
    if category in (Category.PERMANENT, Category.ENDED):
        return Verdict(error_class, message)
    if category is Category.WORKER and not another_left:
        return Verdict(error_class, message)
    if len(task.deaths) >= settings.poison_deaths:
        agents = ", ".join(death.partition("/")[0] for death in task.deaths)
        text = f"{len(task.deaths)} agents died while they worked on it ({agents}); the last: {said}"
        return Verdict(ErrorClass.POISON, text)
    most = task.spec.max_attempts or settings.transient_attempts
    if task.transient_failures >= most:
        return Verdict(ErrorClass.ATTEMPTS_EXHAUSTED, f"{_count(task.transient_failures)} failed; the last: {said}")
    if len(task.uids) >= settings.total_attempts:
        return Verdict(ErrorClass.ATTEMPTS_EXHAUSTED, f"{_count(len(task.uids))} failed; the last: {said}")
    if category is Category.TRANSIENT:
        return Verdict(None, message, _backoff_s(task.transient_failures, settings))
    if error_class in _BACKED_OFF_INFRA:
        return Verdict(None, message, _backoff_s(task.infra_failures, settings))
    return Verdict(None, message)


def _backoff_s(failures: int, settings: CoreSettings) -> float:
    # The exponent is bounded before the power: 2**10000 is a number nobody needs.
    doubled = settings.backoff_base_s * 2.0 ** min(failures - 1, 30)
    return min(settings.backoff_cap_s, doubled)


def _death(worker_id: str, boot_id: str) -> str:
    return f"{worker_id}/{boot_id}"


def _count(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"
