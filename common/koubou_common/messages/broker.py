"""What the broker says to agents and clients; the epoch travels in every envelope."""

from dataclasses import dataclass
from typing import Annotated

from koubou_common.errors import Code
from koubou_common.messages.limits import (
    BATCH_TASKS,
    PAGE_PARKED,
    PAGE_TASKS,
    PART_TASKS,
    TASK_FILES,
    Chars,
    Count,
    Counter,
    Id,
    Key,
    Millis,
    Name,
    RequestId,
    Seconds,
    Sentence,
    Sha256,
    Uid,
    Word,
)
from koubou_common.messages.values import (
    AbortReason,
    AlertView,
    AttemptView,
    Body,
    Candidate,
    Change,
    Chunk,
    Disposition,
    EventView,
    FactorView,
    File,
    KeyView,
    Option,
    ParkedView,
    Plan,
    ReasonCount,
    Role,
    StateCount,
    TaskMark,
    TaskRef,
    TaskView,
    WorkerConfig,
    WorkerMode,
    WorkerStats,
    WorkerView,
)


@dataclass(frozen=True, slots=True)
class Error:
    """Something was refused; the one thing a peer without the right role is told."""

    code: Code
    message: Sentence
    hint: Sentence = ""
    request_id: Annotated[str, Chars(64)] = ""  # empty: about the session
    retry_after_s: Seconds = 0.0


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to AgentHello: who it is and what it may do."""

    proto: Counter
    session: Counter  # 0: none was begun
    worker: WorkerConfig
    mode: WorkerMode
    heartbeat_s: Seconds
    lease_s: Seconds
    software: Name = ""  # the broker's
    now_ms: Millis = 0  # the broker's clock; 0: it does not tell


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run this attempt. `number` counts the dispatches of the session, from 1."""

    number: Counter
    session: Counter
    attempt_uid: Uid
    attempt: Counter
    task_id: Id
    prompt: Body
    files: Annotated[tuple[File, ...], Count(TASK_FILES)]
    target: Name
    repo: Name
    task_type: Word
    model: Name
    options: Annotated[tuple[Option, ...], Count(64)]
    timeout_s: Seconds | None
    strict_output: bool
    bytes_per_token: float  # measured for this model; 0: unknown
    model_options: Annotated[tuple[Option, ...], Count(64)] = ()  # of the worker for this model: over its general ones
    first_token_s: Seconds | None = None  # limits that follow from what was measured; None: the worker's own hold
    total_s: Seconds | None = None


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop this attempt; it is over for the broker."""

    attempt_uid: Uid
    reason: AbortReason


@dataclass(frozen=True, slots=True)
class ResultStored:
    """The outcome is on disk: forget it."""

    attempt_uid: Uid
    disposition: Disposition


UNASKED = 0  # `sent_ms` of a HeartbeatAck that answers no heartbeat


@dataclass(frozen=True, slots=True)
class HeartbeatAck:
    """The broker lives too; `mode` is what the operator wants of the worker. Unasked when that changes."""

    sent_ms: Millis
    mode: WorkerMode


@dataclass(frozen=True, slots=True)
class Removed:
    """This worker was removed: wipe the caches, keep the spool, stop."""


@dataclass(frozen=True, slots=True)
class ClientWelcome:
    """Answer to ClientHello."""

    proto: Counter
    session: Counter
    principal: Word
    role: Role
    prompt_bytes: Counter  # the broker's limits, so that a client refuses before it uploads
    file_bytes: Counter
    task_bytes: Counter
    task_files: Counter
    # Where the database was restored from a backup: ids from the first up to the end may be of tasks that are gone.
    restored_ms: Millis = 0  # 0: never
    lost_first_id: Counter = 0
    lost_end_id: Counter = 0


@dataclass(frozen=True, slots=True)
class Submitted:
    """The tasks are durable. batch_id 0: none."""

    request_id: RequestId
    batch_id: Counter
    tasks: Annotated[tuple[TaskRef, ...], Count(BATCH_TASKS)]


@dataclass(frozen=True, slots=True)
class PartStaged:
    """A part of a submission is held in memory; nothing is accepted yet."""

    request_id: RequestId
    part: Counter


@dataclass(frozen=True, slots=True)
class Preview:
    """What a submission would do."""

    request_id: RequestId
    plans: Annotated[tuple[Plan, ...], Count(PART_TASKS)]


@dataclass(frozen=True, slots=True)
class Tasks:
    """A page of tasks, newest first; next_before 0: no more."""

    request_id: RequestId
    tasks: Annotated[tuple[TaskView, ...], Count(PAGE_TASKS)]
    next_before: Counter
    missing: Annotated[tuple[Id, ...], Count(200)] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """A task, its attempts and its events."""

    request_id: RequestId
    task: TaskView
    attempts: Annotated[tuple[AttemptView, ...], Count(100)]
    events: Annotated[tuple[EventView, ...], Count(1_000)]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A task's output, or why there is none (see task.state, task.error_class)."""

    request_id: RequestId
    task: TaskView
    body: Body | None  # raw text; the output is [offset, offset + length) of it
    output_offset: Counter
    output_length: Counter
    out_digest: Annotated[str, Chars(64)]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a task went where it did (its attempts), and where it would go now, while it waits."""

    request_id: RequestId
    task: TaskView
    attempts: Annotated[tuple[AttemptView, ...], Count(100)]
    rule: Sentence
    candidates: Annotated[tuple[Candidate, ...], Count(100)] = ()  # who would get it first; of a task that waits
    reasons: Annotated[tuple[ReasonCount, ...], Count(32)] = ()  # over all workers
    effective_priority: float = 0.0  # raised by waiting; 0: it does not wait
    ahead: Counter = 0  # tasks that go before it
    starts_in_s: Seconds | None = None  # estimated; None: nobody can tell
    starts_basis: Sentence = ""  # what that rests on
    strategy: Word = ""  # that chooses now


@dataclass(frozen=True, slots=True)
class Stats:
    """What each worker did in the last `hours`; workers without an attempt are left out."""

    request_id: RequestId
    hours: Counter
    workers: Annotated[tuple[WorkerStats, ...], Count(500)]
    factors: Annotated[tuple[FactorView, ...], Count(500)] = ()  # how they went in that time, newest first


@dataclass(frozen=True, slots=True)
class Watching:
    """The states now of all that is watched."""

    request_id: RequestId
    tasks: Annotated[tuple[TaskMark, ...], Count(BATCH_TASKS)]
    missing: Annotated[tuple[Id, ...], Count(BATCH_TASKS)] = ()


@dataclass(frozen=True, slots=True)
class TaskChanged:
    """A watched task changed."""

    request_id: RequestId
    task: TaskMark


@dataclass(frozen=True, slots=True)
class Changes:
    """What a cancel or a retry did."""

    request_id: RequestId
    changes: Annotated[tuple[Change, ...], Count(BATCH_TASKS)]
    missing: Annotated[tuple[Id, ...], Count(BATCH_TASKS)] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """The workshop at a glance: a client sees its own tasks counted, an operator all."""

    request_id: RequestId
    version: Name
    principal: Word
    role: Role
    started_ms: Millis
    now_ms: Millis
    counts: Annotated[tuple[StateCount, ...], Count(5)]
    oldest_queued_ms: Millis  # 0: nothing waits
    workers: Annotated[tuple[WorkerView, ...], Count(500)]
    alerts: Annotated[tuple[AlertView, ...], Count(100)]


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers asked for."""

    request_id: RequestId
    workers: Annotated[tuple[WorkerView, ...], Count(500)]


@dataclass(frozen=True, slots=True)
class Invited:
    """The enrolment key is on the allow-list."""

    request_id: RequestId
    name: Word
    role: Role
    expires_ms: Millis
    addresses: Annotated[tuple[Name, ...], Count(8)]


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The new key is durable and allowed."""

    request_id: RequestId
    name: Word
    role: Role
    public_key: Key


@dataclass(frozen=True, slots=True)
class Keys:
    """All principals' keys."""

    request_id: RequestId
    keys: Annotated[tuple[KeyView, ...], Count(10_000)]


@dataclass(frozen=True, slots=True)
class BackupMade:
    """The copy is whole, checked, and can be had in pieces of CHUNK_BYTES."""

    request_id: RequestId
    size_bytes: Counter
    sha256: Sha256
    tasks: Counter
    term_epoch: Counter  # the broker's term that is in it; the envelope has an `epoch` of its own
    took_ms: Millis


@dataclass(frozen=True, slots=True)
class BackupPart:
    """Piece `index` of a backup; every piece but the last has CHUNK_BYTES."""

    request_id: RequestId
    index: Counter
    data: Chunk


@dataclass(frozen=True, slots=True)
class BackupEnded:
    """The broker does not keep the copy any more."""

    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Purged:
    """What was removed, durably; `refused` are the tasks that were left as they are, and why."""

    request_id: RequestId
    tasks: Counter  # of which something was removed
    texts: Counter  # prompts, files, outputs that are gone from the database
    size_bytes: Counter  # of these texts
    shared: Counter  # texts that stay: other tasks or submissions under way use them too
    is_log_empty: bool  # false: a reader held the write-ahead log, which holds the texts until it is written anew
    refused: Annotated[tuple[Change, ...], Count(BATCH_TASKS)] = ()
    missing: Annotated[tuple[Id, ...], Count(BATCH_TASKS)] = ()


@dataclass(frozen=True, slots=True)
class ParkedWork:
    """Outcomes kept apart, newest first; `total` of all there are."""

    request_id: RequestId
    outcomes: Annotated[tuple[ParkedView, ...], Count(PAGE_PARKED)]
    total: Counter
