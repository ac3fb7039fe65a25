"""What the core saves and the store keeps: one frozen record a row, one class a table.

Records are facts about to be durable, not live objects: the core makes them, the store writes them, a
snapshot brings them back. Times are wall-clock milliseconds; 0 means "not yet" or "none".
"""

from dataclasses import dataclass

from koubou_common.errors import ErrorClass
from koubou_common.messages.values import (
    AttemptState,
    Decision,
    File,
    Label,
    Metrics,
    Option,
    Role,
    TaskState,
    WorkerMode,
)


@dataclass(frozen=True, slots=True)
class BodyRef:
    """Bytes kept as a blob."""

    sha256: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task's unchanging half: inserted once. `files` hold bodies without inline bytes."""

    task_id: int
    batch_id: int
    batch_index: int
    principal: str
    custom_id: str
    idempotency_key: str  # empty for all but the first task of a submission: the submission holds it
    prompt: BodyRef
    files: tuple[File, ...]
    target: str
    repo: str
    model: str
    priority: int
    task_type: str
    options: tuple[Option, ...]
    worker: str
    labels: tuple[Label, ...]
    min_context: int
    timeout_s: float | None
    deadline_ms: int
    max_attempts: int
    strict_output: bool
    out_path: str
    out_digest: str
    submitted_ms: int
    queue_timeout_s: float | None = None  # from submitted_ms until the first attempt begins
    capabilities: tuple[str, ...] = ()  # that its worker must have
    digest: str = ""  # the version of the model that its worker must have; empty: any
    use_cache: bool = True
    prefix_files: int = 0  # of `files`, so many from the first on are the same in other tasks of the batch


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """A task's changing half: written whole at each change; the first one together with its NewTask."""

    task_id: int
    state: TaskState
    generation: int  # raised by retry; a terminal row changes only together with it
    attempts: int  # issued so far, never restarts
    transient_failures: int  # of this generation
    infra_failures: int
    deaths: tuple[str, ...]  # "worker_id/boot_id" that died on it, of this generation
    excluded: tuple[str, ...]  # worker_ids that cannot run it, of this generation
    not_before_ms: int
    worker_id: str
    error_class: ErrorClass | None
    error_message: str
    started_ms: int
    finished_ms: int
    result: BodyRef | None
    output_offset: int
    output_length: int
    flags: tuple[str, ...]
    metrics: Metrics | None
    error_cause: ErrorClass | None = None  # of the last failed attempt of this generation
    opened_ms: int = 0  # when it was retried last; 0: never


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted Submit: what makes its repetition harmless. Kept as long as its tasks."""

    principal: str
    idempotency_key: str
    digest: bytes  # over what the tasks ask for; another digest under the same key is refused
    batch_id: int  # 0: a single task
    first_task_id: int
    count: int
    submitted_ms: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a task on one worker: written at dispatch and again at its end."""

    attempt_uid: str
    task_id: int
    number: int
    generation: int
    worker_id: str
    boot_id: str
    state: AttemptState
    started_ms: int
    ended_ms: int
    error_class: ErrorClass | None
    message: str
    metrics: Metrics
    log: str
    placement: str


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a task, appended in the transaction of the change."""

    seq: int
    task_id: int
    at_ms: int
    actor: str  # principal's name, or "broker"
    before: str  # a TaskState, or "" for the submission
    after: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as last seen."""

    worker_id: str
    location: str
    performance_factor: float
    endpoint_url: str
    network_latency_ms: int
    last_health_check_ms: int
    mode: WorkerMode
    boot_id: str
    software: str
    models: tuple[str, ...]  # tags last reported


@dataclass(frozen=True, slots=True)
class WorkerMetric:
    """One finished attempt in numbers (the worker_metrics of the requirements)."""

    worker_id: str
    task_id: int
    execution_time_ms: int
    tokens_processed: int
    prompt_length: int  # bytes the model read: prompt and files in their frame
    output_length: int  # bytes
    success: bool
    error_type: str
    measured_ms: int
    model: str
    prompt_tokens: int
    output_tokens: int
    eval_ms: int
    thinking_tokens: int = 0
    prompt_ms: int = 0
    load_ms: int = 0
    first_token_ms: int = 0
    slot_wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class FactorChange:
    """A worker's measured performance factor became another one: the history of factors."""

    worker_id: str
    at_ms: int
    factor: float
    samples: int  # successful runs it rests on
    baseline: str  # whom it is measured against, in words


@dataclass(frozen=True, slots=True)
class Decided:
    """Why an attempt went to its worker; written once, with the dispatch."""

    attempt_uid: str
    task_id: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class CachedResult:
    """A success that answers the same question again; `key` is a sha256 over all that makes the answer."""

    key: bytes
    task_id: int
    stored_ms: int


@dataclass(frozen=True, slots=True)
class Principal:
    """A key and what it may do; `public_key` is the primary key."""

    public_key: str
    name: str
    role: Role
    enrol_role: Role | None  # what an enrolment key's holder will be
    created_ms: int
    expires_ms: int
    revoked_ms: int
    replaced_by: str  # the key that an enrolment key was exchanged for


@dataclass(frozen=True, slots=True)
class Audit:
    """A key, worker or operator action."""

    at_ms: int
    actor: str
    action: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class Parked:
    """A delivered outcome of an attempt we do not know (after a restore, say): kept apart for a person."""

    attempt_uid: str
    worker_id: str
    at_ms: int
    raw: BodyRef | None
    detail: str


Record = (
    NewTask
    | TaskProgress
    | Submission
    | Attempt
    | Event
    | Worker
    | WorkerMetric
    | FactorChange
    | Decided
    | CachedResult
    | Principal
    | Audit
    | Parked
)
