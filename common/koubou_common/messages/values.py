"""The values that messages are made of: states, bodies, task specifications, views."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from koubou_common.errors import ErrorClass
from koubou_common.messages.limits import (
    CHUNK_BYTES,
    INLINE_BYTES,
    RESULT_BYTES,
    TASK_FILES,
    Between,
    Chars,
    Count,
    Counter,
    Id,
    Key,
    Log,
    Millis,
    Name,
    Priority,
    Seconds,
    Sentence,
    Sha256,
    Size,
    Uid,
    Word,
)
from koubou_common.reasons import Reason

Scalar = bool | int | float | Annotated[str, Chars(1_000)]


class Role(StrEnum):
    """What a key may do (docs/protocol.md has the table)."""

    WORKER = "worker"
    CLIENT = "client"
    OPERATOR = "operator"
    ENROL = "enrol"  # a one-time key: may only replace itself by its holder's own key
    REMOVED = "removed"  # a removed worker's key: may only be told so


class TaskState(StrEnum):
    """A task's state; waiting for a retry is `queued` with `not_before`."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether only an explicit retry leads out of it."""
        return self not in (TaskState.QUEUED, TaskState.RUNNING)


class AttemptState(StrEnum):
    """How one try of a task on one worker stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"  # taken back: the agent fell silent or came back without it
    ABORTED = "aborted"  # ended by a cancel or by another attempt's success
    LATE = "late"  # its success came when the task was over


class WorkerMode(StrEnum):
    """What an operator asked of a worker."""

    ACTIVE = "active"
    PAUSED = "paused"  # runs on, takes nothing new
    DRAINING = "draining"  # hands back what has not begun, finishes the rest, takes nothing new


class AbortReason(StrEnum):
    """Why an attempt is to stop."""

    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"  # another attempt's result was recorded
    OVER = "over"  # the task ended otherwise: deadline, removal
    UNKNOWN = "unknown"  # the broker does not know the attempt: stop, keep what is spooled


class Disposition(StrEnum):
    """What became of a delivered result; each lets the agent forget it."""

    RECORDED = "recorded"
    LATE = "late"  # the task was over: kept as history only
    PARKED = "parked"  # an unknown attempt (restored database): kept apart, an operator is told


@dataclass(frozen=True, slots=True)
class Body:
    """Some bytes by their sha256; `inline` holds them while the message stays small."""

    sha256: Sha256
    size_bytes: Counter
    inline: Annotated[bytes, Size(INLINE_BYTES)] | None = None


@dataclass(frozen=True, slots=True)
class File:
    """A context file under its relative name."""

    name: Name
    body: Body


@dataclass(frozen=True, slots=True)
class Option:
    """One Ollama option, `temperature` for example."""

    name: Word
    value: Scalar | Annotated[tuple[Name, ...], Count(16)]


@dataclass(frozen=True, slots=True)
class Label:
    """A worker has labels; a task may require them."""

    key: Word
    value: Name


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a person asks for. How urgent it is and what it is called are not part of its digest."""

    prompt: Body
    files: Annotated[tuple[File, ...], Count(TASK_FILES)] = ()
    target: Name = ""
    repo: Name = ""
    model: Name = ""  # empty: the worker's default model
    priority: Priority = 5
    task_type: Word = "general"
    options: Annotated[tuple[Option, ...], Count(64)] = ()
    worker: Word = ""  # empty: any
    labels: Annotated[tuple[Label, ...], Count(32)] = ()
    min_context: Counter = 0  # tokens; 0: what the prompt needs
    timeout_s: Seconds | None = None  # one attempt
    deadline_s: Seconds | None = None  # the task, from its submission
    max_attempts: Annotated[int, Between(1, 20)] | None = None
    strict_output: bool = False
    custom_id: Name = ""
    out_path: Name = ""  # where the client will write the output; the broker only keeps it
    out_digest: Annotated[str, Chars(64)] = ""  # sha256, hex, of the file there at submit; empty: none
    queue_timeout_s: Seconds | None = None  # from the submission until the first attempt begins
    capabilities: Annotated[tuple[Word, ...], Count(16)] = ()  # that its worker must have
    same_digest: bool = False  # all tasks of the submission by one version of the model, chosen when it is accepted
    use_cache: bool = True  # false: a new answer, whatever the result cache holds
    prefix_files: Counter = 0  # of `files`, so many from the first on are the same in other tasks of the batch


@dataclass(frozen=True, slots=True)
class AttemptProgress:
    """A running attempt as its agent sees it."""

    uid: Uid
    phase: Word = ""  # fetching, loading, reading, answering
    tokens: Counter = 0  # answered so far


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What an agent holds; in every message that ends an attempt, so that one transaction serves."""

    running: Annotated[tuple[AttemptProgress, ...], Count(256)] = ()
    spooled: Annotated[tuple[Uid, ...], Count(10_000)] = ()
    free_slots: Counter = 0
    last_dispatch: Counter = 0  # number of the last Dispatch received in this session
    releasing: Counter = 0  # slots that are not free although no attempt has them: Ollama is not done with a call
    sequence: Counter = 0  # grows with every status of the session: an overtaken one is told by it; 0: not told


@dataclass(frozen=True, slots=True)
class ModelSeen:
    """A model that an Ollama has."""

    name: Name
    digest: Name = ""
    size_bytes: Counter = 0
    family: Word = ""
    context_length: Counter = 0  # trained length, tokens; 0 unknown
    loaded: bool = False
    loaded_num_ctx: Counter = 0
    vram_bytes: Counter = 0


@dataclass(frozen=True, slots=True)
class AgentHealth:
    """What an agent's probe saw of its Ollama."""

    ollama_ok: bool = False
    ollama_version: Word = ""
    models: Annotated[tuple[ModelSeen, ...], Count(500)] = ()
    issue: Sentence = ""  # in a person's words; empty: nothing is wrong
    can_work: bool = True  # false: gemini-repo-cli or Ollama is missing, no dispatch please


@dataclass(frozen=True, slots=True)
class Metrics:
    """Counts and times of an attempt, from Ollama's own numbers as the gateway saw them."""

    prompt_tokens: Counter = 0
    thinking_tokens: Counter = 0
    output_tokens: Counter = 0
    load_ms: Millis = 0
    first_token_ms: Millis = 0
    prompt_ms: Millis = 0
    eval_ms: Millis = 0
    total_ms: Millis = 0  # dispatch received to outcome ready
    overhead_ms: Millis = 0  # total without Ollama
    num_ctx: Counter = 0
    num_predict: Counter = 0
    slot_wait_ms: Millis = 0  # dispatch received until its slot was free


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How long an agent waits for what (design, section 8)."""

    connect_s: Seconds = 3.0
    load_s: Seconds = 600.0
    first_token_s: Seconds = 300.0
    idle_s: Seconds = 300.0
    total_s: Seconds = 3600.0
    output_bytes: Counter = RESULT_BYTES


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What workers.yaml says of a worker; reaches its agent in Welcome."""

    worker_id: Word
    default_model: Name
    models: Annotated[tuple[Name, ...], Count(500)]  # ("*",): all its Ollama has
    slots: Counter
    location: Word = "local"
    options: Annotated[tuple[Option, ...], Count(64)] = ()
    thinking_allowance: Counter = 2048
    limits: WorkerLimits = WorkerLimits()
    default_model_options: Annotated[tuple[Option, ...], Count(64)] = ()  # of that model: over the general ones


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task as people and scripts see it (design, section 11)."""

    task_id: Id
    batch_id: Counter  # 0: none
    batch_index: Counter
    custom_id: Name
    principal: Name
    state: TaskState
    priority: Priority
    task_type: Word
    model: Name
    target: Name
    out_path: Name
    worker_id: Word  # of the running or the last attempt
    attempts: Counter
    error_class: ErrorClass | None
    error_message: Sentence
    submitted_ms: Millis
    started_ms: Millis  # 0: not yet; of the last attempt
    finished_ms: Millis  # 0: not yet
    not_before_ms: Millis  # 0: at once
    prompt_tokens: Counter
    thinking_tokens: Counter
    output_tokens: Counter  # while running: so far
    flags: Annotated[tuple[Word, ...], Count(16)]
    waiting_for: Sentence  # why it is not running yet; empty: nothing special
    output_bytes: Counter
    error_cause: ErrorClass | None = None  # of the last failed attempt, where the broker ended the task
    queue_timeout_s: Seconds | None = None  # as submitted; None: it may wait for ever


@dataclass(frozen=True, slots=True)
class ScorePart:
    """One term of a worker's standing for a task, in points."""

    name: Word  # factor, idle, busy, success, capability make the score; residency, prefix and others come beside it
    points: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker weighed for a task: its score, or why not."""

    worker_id: Word
    eligible: bool
    available: bool
    score: float  # the sum that the policy names: factor, idle or busy, success, capability
    reason: Sentence  # empty when available
    code: Reason | None = None  # the reason in one word
    parts: Annotated[tuple[ScorePart, ...], Count(16)] = ()
    group: Counter = 0  # which of the rule's preferred groups it is in, from 0
    finish_s: float = 0.0  # expected, from now; 0: not known


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """How many workers were out for this reason."""

    reason: Reason
    count: Counter


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a worker got an attempt: the winner and the next, and how many were out for which reason."""

    strategy: Word
    rule: Sentence
    candidates: Annotated[tuple[Candidate, ...], Count(8)]  # the winner first
    reasons: Annotated[tuple[ReasonCount, ...], Count(32)] = ()
    note: Sentence = ""  # what else spoke: it had waited long, went on with a loaded model; empty: nothing


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One try of a task, for `show` and `logs`."""

    number: Counter
    uid: Uid
    worker_id: Word
    state: AttemptState
    started_ms: Millis
    ended_ms: Millis
    error_class: ErrorClass | None
    message: Sentence
    metrics: Metrics
    log: Log
    placement: Sentence  # why this worker, in one line
    decision: Decision | None = None  # the same in full, in explanations; None: elsewhere, or it is not kept


@dataclass(frozen=True, slots=True)
class EventView:
    """One change of a task: who, from, to, why."""

    seq: Counter
    at_ms: Millis
    actor: Name
    before: Word
    after: Word
    attempt: Counter  # 0: none
    reason: Sentence


@dataclass(frozen=True, slots=True)
class ModelWindow:
    """What a worker gives one model, and how fast it was measured with it."""

    model: Name
    num_ctx: Counter  # tokens
    digest: Name = ""  # as its Ollama last said; empty: not known
    prompt_tokens_per_s: float = 0.0  # 0: not measured
    output_tokens_per_s: float = 0.0
    first_token_limit_s: Seconds = 0.0  # that counts now; 0: what the worker's settings say
    total_limit_s: Seconds = 0.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as `workers list` shows it."""

    worker_id: Word
    location: Word
    connected: bool
    mode: WorkerMode
    slots: Counter
    running: Counter
    default_model: Name
    models: Annotated[tuple[Name, ...], Count(500)]
    loaded: Annotated[tuple[Name, ...], Count(64)]
    performance_factor: float
    success_rate: float  # 0..1 over recent attempts; 1.0 where there are none
    succeeded: Counter
    failed: Counter
    last_seen_ms: Millis  # 0: never
    latency_ms: Counter
    cooling_down: bool
    ollama_version: Word
    issue: Sentence
    address: Name
    agent: Name  # software and platform
    can_work: bool = True  # as its agent last said; the issue tells why not
    configured_factor: float = 0.0  # of workers.yaml; performance_factor is what counts now
    factor_samples: Counter = 0  # successful runs behind the measured factor; 0: the configured one counts
    foreign: Sentence = ""  # who else seems to use its Ollama; empty: nobody
    windows: Annotated[tuple[ModelWindow, ...], Count(64)] = ()


@dataclass(frozen=True, slots=True)
class KeyView:
    """A principal's key."""

    name: Word
    role: Role
    public_key: Key
    created_ms: Millis
    expires_ms: Millis  # 0: never
    revoked: bool
    last_seen_ms: Millis


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """How many attempts ended with this class of failure."""

    error_type: Word
    count: Counter


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What a worker did in the last hours (get_worker_stats of the requirements)."""

    worker_id: Word
    total: Counter  # attempts that ended
    successful: Counter
    avg_ms: float  # of the successful ones, dispatch received to outcome ready
    min_ms: Millis
    max_ms: Millis
    success_rate: float  # 0..1; 1.0 where there are none
    prompt_tokens: Counter = 0
    output_tokens: Counter = 0  # thinking included
    prompt_tokens_per_s: float = 0.0  # 0: not measured
    output_tokens_per_s: float = 0.0
    first_token_ms: Millis = 0  # mean
    load_ms: Millis = 0  # mean of those that loaded a model
    loads: Counter = 0  # how many did
    slot_wait_ms: Millis = 0  # mean
    errors: Annotated[tuple[ErrorCount, ...], Count(64)] = ()


@dataclass(frozen=True, slots=True)
class FactorView:
    """A worker's performance factor became another one."""

    worker_id: Word
    at_ms: Millis
    factor: float
    samples: Counter  # successful runs it rests on; 0: the configured one counts again
    baseline: Sentence  # whom it is measured against


@dataclass(frozen=True, slots=True)
class AlertView:
    """Something that needs a person."""

    code: Word
    message: Sentence
    since_ms: Millis


@dataclass(frozen=True, slots=True)
class StateCount:
    """How many tasks are in a state."""

    state: TaskState
    count: Counter


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a task would go now (`--dry-run`)."""

    model: Name
    prompt_tokens: Counter  # estimated
    rule: Sentence
    candidates: Annotated[tuple[Candidate, ...], Count(500)]
    refusal: Sentence  # empty: it would be accepted
    token_error: float = 0.0  # mean relative error of that estimate so far; 0: nothing was measured yet
    reasons: Annotated[tuple[ReasonCount, ...], Count(32)] = ()  # of workers that would not get it now
    starts_in_s: Seconds | None = None  # estimated; None: nobody can tell
    starts_basis: Sentence = ""  # what that rests on
    digest: Name = ""  # the version of the model that `same_digest` would choose


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A task right after its submission."""

    task_id: Id
    state: TaskState
    existing: bool  # the same idempotency key and body had come before


@dataclass(frozen=True, slots=True)
class TaskMark:
    """A task's state in a watch."""

    task_id: Id
    state: TaskState
    worker_id: Word
    attempts: Counter


@dataclass(frozen=True, slots=True)
class Change:
    """What a cancel or a retry did to one task."""

    task_id: Id
    state: TaskState  # now recorded
    changed: bool
    message: Sentence


@dataclass(frozen=True, slots=True)
class ParkedView:
    """A delivered outcome of an attempt that the database does not know."""

    uid: Uid
    worker_id: Word
    at_ms: Millis
    body: Body | None  # all the model said; None: it failed, or the text is no longer kept
    detail: Sentence


Chunk = Annotated[bytes, Size(CHUNK_BYTES)]
