"""What the core wants done, and what it asks of the store: the seam between deciding and doing.

Order is meaning: the server carries effects out in the order given, and a Send, Allow or Revoke only
when every Save before it - of any batch - is durable (law 1).
"""

from dataclasses import dataclass

from koubou_broker.records import (
    Attempt,
    Decided,
    Event,
    FactorChange,
    NewTask,
    Parked,
    Principal,
    Record,
    Submission,
    TaskProgress,
    Worker,
)
from koubou_broker.routing.speeds import Speed
from koubou_common.messages import EndBackup, FromBroker, GetBackupPart, MakeBackup
from koubou_common.messages.values import Role, TaskState, WorkerStats


@dataclass(frozen=True, slots=True)
class Now:
    """One instant by two clocks: durations by `mono_s`, what is stored by `wall_ms`."""

    mono_s: float
    wall_ms: int


@dataclass(frozen=True, slots=True)
class Peer:
    """Who speaks: the principal behind the authenticated key of this very message."""

    public_key: str
    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Save:
    """Write these rows; all Saves of one batch share a transaction."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a session; bodies it names are attached by the server where they are small."""

    session: int
    message: FromBroker


@dataclass(frozen=True, slots=True)
class Lookup:
    """Read what the core does not hold; answered by `Core.found(token, rows, now)`."""

    token: int
    query: "Query"


@dataclass(frozen=True, slots=True)
class Alert:
    """Something a person should know; the same code again replaces the text, an empty text ends it."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Close:
    """Forget this session; what it sends next is answered with hello_required."""

    session: int


@dataclass(frozen=True, slots=True)
class Allow:
    """Put a key on the allow-list."""

    public_key: str
    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Revoke:
    """Take a key off the allow-list."""

    public_key: str


@dataclass(frozen=True, slots=True)
class AskBackup:
    """An operator's word about a backup: the server has the file. Answered by it, BackupMade by way of the core."""

    session: int
    principal: str
    message: MakeBackup | GetBackupPart | EndBackup


@dataclass(frozen=True, slots=True)
class Erased:
    """What came of an Erase: of which tasks something was removed, what, and why not all of it."""

    task_ids: tuple[int, ...]
    texts: int = 0  # bodies gone from the database
    size_bytes: int = 0  # theirs
    shared: int = 0  # bodies that stay: others use them too
    is_log_empty: bool = True  # the write-ahead log holds none of them either
    error: str = ""  # the disk took no more; empty: all is done


@dataclass(frozen=True, slots=True)
class Erase:
    """Remove the bodies of ended tasks from the disk, or all that is known of them; then `Core.erased`."""

    token: int
    task_ids: tuple[int, ...]
    history: bool


Effect = Save | Send | Lookup | Alert | Close | Allow | Revoke | AskBackup | Erase


@dataclass(frozen=True, slots=True)
class FindTasks:
    """Tasks by id, batch or filter, newest first; `principal` empty: of anyone."""

    principal: str
    task_ids: tuple[int, ...] = ()
    batch_id: int = 0
    states: tuple[TaskState, ...] = ()
    before_id: int = 0
    most: int = 200


@dataclass(frozen=True, slots=True)
class FindMarks:
    """Ids, owners, states, workers and attempts of many tasks: for watches, cancels, retries of batches."""

    task_ids: tuple[int, ...] = ()
    batch_id: int = 0


@dataclass(frozen=True, slots=True)
class FindStory:
    """A task with all attempts and events, or with its attempts and the decisions behind them."""

    task_id: int
    with_decisions: bool = False


@dataclass(frozen=True, slots=True)
class FindSubmission:
    """An earlier submission under this key, with the states of its tasks."""

    principal: str
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class FindAttempt:
    """An attempt that no live task knows, with its task."""

    attempt_uid: str


@dataclass(frozen=True, slots=True)
class CountStates:
    """How many tasks are in each state; `principal` empty: of anyone."""

    principal: str


@dataclass(frozen=True, slots=True)
class FindParked:
    """Parked outcomes, newest first, from the `skip`th on; or the one with this uid."""

    attempt_uid: str = ""
    skip: int = 0


@dataclass(frozen=True, slots=True)
class FindSpeeds:
    """How fast each worker ran each model since then, successes alone."""

    since_ms: int


@dataclass(frozen=True, slots=True)
class FindStats:
    """What the attempts of each worker came to since then, and the newest of its factors; empty: of all workers."""

    since_ms: int
    worker_id: str = ""


@dataclass(frozen=True, slots=True)
class FindCached:
    """Answers kept under these keys, recorded since then and not replaced, whose text is still there."""

    keys: tuple[bytes, ...]
    since_ms: int


Query = (
    FindTasks
    | FindMarks
    | FindStory
    | FindSubmission
    | FindAttempt
    | CountStates
    | FindParked
    | FindSpeeds
    | FindStats
    | FindCached
)


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task whole, as read back."""

    task: NewTask
    progress: TaskProgress
    has_bodies: bool = True  # its prompt and files are still kept; looked at by FindMarks alone
    has_output: bool = True  # its result is still kept; looked at by FindTasks with ids


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """A task that succeeded, found in the result cache."""

    key: bytes
    stored: StoredTask


@dataclass(frozen=True, slots=True)
class Found:
    """What a Lookup brought; only the fields that belong to its query are filled."""

    tasks: tuple[StoredTask, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    events: tuple[Event, ...] = ()
    decisions: tuple[Decided, ...] = ()
    submission: Submission | None = None
    counts: tuple[tuple[TaskState, int], ...] = ()
    parked: tuple[Parked, ...] = ()
    parked_total: int = 0
    speeds: tuple[Speed, ...] = ()
    stats: tuple[WorkerStats, ...] = ()
    factors: tuple[FactorChange, ...] = ()  # newest first
    cached: tuple[CachedAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class Loss:
    """A restoration of an older database: ids from the first up to the end may be of tasks that are gone."""

    restored_ms: int = 0  # 0: never
    first_task_id: int = 0
    end_task_id: int = 0


@dataclass(frozen=True, slots=True)
class Upload:
    """A stored body that belongs to no task, and who sent it."""

    principal: str
    sha256: bytes
    size_bytes: int
    stored_ms: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All the core needs to go on after a start."""

    epoch: int
    next_task_id: int
    next_batch_id: int
    next_event_seq: int
    tasks: tuple[StoredTask, ...] = ()  # live ones
    attempts: tuple[Attempt, ...] = ()  # of live tasks, this generation
    workers: tuple[Worker, ...] = ()
    principals: tuple[Principal, ...] = ()
    submission_hashes: frozenset[int] = frozenset()  # 64-bit hashes of (principal, idempotency key)
    worker_scores: tuple[tuple[str, int, int], ...] = ()  # worker_id, succeeded, failed in the last 24 h
    bytes_per_token: tuple[tuple[str, float], ...] = ()  # measured, by model
    loss: Loss = Loss()
