"""What is known of a run - simulated, or of real processes -, as plain facts for the checker; pure.

Who fills these in: the simulation from its nodes (`history.py`), process chaos from what clients journalled, the
database read back, and the spools. Times do not occur: where order matters, the tuples are in that order.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from koubou_common.messages.values import AttemptState, TaskState


class Invariant(Enum):
    """The ten promises, by name."""

    I1 = "what was acknowledged ends"
    I2 = "one task a key"
    I3 = "one outcome, which never changes"
    I4 = "the outcome is of this task and of an attempt that was issued"
    I5 = "an acknowledged cancel stays"
    I6 = "a spool lets go only of what is recorded or parked"
    I7 = "a finished result counts, unless the task had ended before"
    I8 = "no worker runs more than its slots"
    I9 = "nobody sees what belongs to somebody else"
    I10 = "the events tell the same story as the rows"

    def __str__(self) -> str:
        return f"{self.name} ({self.value})"


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise; `task_id` 0 where no single task is concerned."""

    invariant: Invariant
    task_id: int
    text: str

    def __str__(self) -> str:
        about = f", task {self.task_id}" if self.task_id else ""
        return f"{self.invariant}{about}: {self.text}"


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as it is recorded."""

    task_id: int
    principal: str  # whose it is
    state: TaskState
    generation: int = 1
    result: bytes | None = None  # sha256 of the recorded output
    is_cached: bool = False  # the recorded output is an earlier answer; no attempt of its own made it


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """An attempt as it is recorded."""

    uid: str
    task_id: int
    number: int
    worker_id: str
    state: AttemptState
    generation: int = 1


@dataclass(frozen=True, slots=True)
class EventRow:
    """A recorded change of a task."""

    seq: int
    task_id: int
    before: str  # a TaskState, or "" for the submission
    after: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A client was told: these are the tasks of your key."""

    principal: str
    key: str
    task_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """A client was told how its task ended."""

    principal: str
    task_id: int
    state: TaskState


@dataclass(frozen=True, slots=True)
class Load:
    """The most attempts that really ran at once on a worker, and the most that it was given at once."""

    worker_id: str
    slots: int
    running: int
    #: dispatched and not ended, superseded ones too, and calls given up that its Ollama is still busy with; but not
    #: what arrived after a later dispatch: the broker was told that this had never come
    given: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the checker looks at. What is not known stays empty, and is not checked."""

    # The record, read back.
    tasks: tuple[TaskRow, ...] = ()
    attempts: tuple[AttemptRow, ...] = ()
    events: tuple[EventRow, ...] = ()  # in the order of `seq`
    parked: frozenset[str] = frozenset()  # uids
    #: every row that was committed, in that order; empty where nobody looked on
    written: tuple[TaskRow | AttemptRow, ...] = ()

    # What clients were told; repeats are welcome.
    wanted: frozenset[tuple[str, str]] = frozenset()  # (principal, key) of what must have been accepted by the end
    accepted: tuple[Accepted, ...] = ()
    told: tuple[Told, ...] = ()  # ends only, in the order they were told, at any time
    asked: tuple[Told, ...] = ()  # ends told upon a question asked when everything had ended
    cancels: frozenset[tuple[str, int]] = frozenset()  # (principal, task): the broker said "cancelled"
    reopened: frozenset[int] = frozenset()  # a retry was asked for; told ends are of any generation
    #: what a restore took back: nobody has these tasks any more, but no id may get a second meaning
    voided: tuple[Accepted, ...] = ()

    # What was asked.
    questions: Mapping[int, Hashable] = field(default_factory=dict)  # task -> equal where the same was asked
    wants_new: frozenset[int] = frozenset()  # tasks that are not to be given an earlier answer
    version_of: Mapping[int, str] = field(default_factory=dict)  # task -> the version that alone may answer it
    alike: frozenset[frozenset[int]] = frozenset()  # tasks that are all to be answered by one version

    # What agents did.
    issued: Mapping[str, int] = field(default_factory=dict)  # uid -> task: the dispatches that left the broker
    outputs: Mapping[str, bytes] = field(default_factory=dict)  # uid -> sha256 of the success it made
    right: Mapping[int, bytes] = field(default_factory=dict)  # task -> sha256 of the only right output
    versions: Mapping[str, str] = field(default_factory=dict)  # uid -> the version of the model that really answered
    spooled: frozenset[str] = frozenset()  # uids whose outcome was durable in a spool at some time
    let_go: frozenset[str] = frozenset()  # of these: the spool has it no longer
    loads: tuple[Load, ...] = ()

    # What left the broker, to whom.
    seen_tasks: frozenset[tuple[str, int]] = frozenset()  # (client, task)
    seen_attempts: frozenset[tuple[str, str]] = frozenset()  # (worker, uid)
    operators: frozenset[str] = frozenset()  # these may see everything

    #: False while things are still going on: then only what must hold at every instant is checked
    is_over: bool = True
