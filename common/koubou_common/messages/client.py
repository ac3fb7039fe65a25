"""What clients and operators say to the broker; each request is answered under its request_id."""

from dataclasses import dataclass
from typing import Annotated

from koubou_common.messages.limits import (
    BATCH_TASKS,
    PART_TASKS,
    Between,
    Chars,
    Count,
    Counter,
    Id,
    Key,
    Name,
    RequestId,
    Seconds,
    Sentence,
    Word,
)
from koubou_common.messages.values import Role, TaskSpec, TaskState, WorkerMode


@dataclass(frozen=True, slots=True)
class ClientHello:
    """First message of a session."""

    proto_min: Counter
    proto_max: Counter
    software: Name


@dataclass(frozen=True, slots=True)
class Submit:
    """Tasks to be accepted all or none, under one idempotency key.

    More than PART_TASKS travel in `parts` messages with the same key; the last one answered decides.
    """

    request_id: RequestId
    idempotency_key: Annotated[str, Chars(128, 1)]
    tasks: Annotated[tuple[TaskSpec, ...], Count(PART_TASKS)]
    as_batch: bool = False
    part: Counter = 0
    parts: Counter = 1
    dry_run: bool = False  # answered with Preview, nothing is stored


@dataclass(frozen=True, slots=True)
class GetTasks:
    """Tasks by id or batch, or a page of all that match; answered with Tasks."""

    request_id: RequestId
    task_ids: Annotated[tuple[Id, ...], Count(200)] = ()
    batch_id: Counter = 0
    states: Annotated[tuple[TaskState, ...], Count(5)] = ()
    before_id: Counter = 0  # 0: from the newest; else ids below: the next page
    most: Counter = 200


@dataclass(frozen=True, slots=True)
class GetStory:
    """A task with its attempts and events; answered with Story."""

    request_id: RequestId
    task_id: Id


@dataclass(frozen=True, slots=True)
class GetResult:
    """A task's output; answered with TaskResult."""

    request_id: RequestId
    task_id: Id
    raw: bool = False  # all the model said


@dataclass(frozen=True, slots=True)
class Watch:
    """Answered with Watching, then a TaskChanged for every change until all have ended."""

    request_id: RequestId
    task_ids: Annotated[tuple[Id, ...], Count(BATCH_TASKS)] = ()
    batch_id: Counter = 0


@dataclass(frozen=True, slots=True)
class Cancel:
    """Answered with Changes."""

    request_id: RequestId
    task_ids: Annotated[tuple[Id, ...], Count(BATCH_TASKS)] = ()
    batch_id: Counter = 0
    reason: Sentence = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Open ended tasks again (a batch: its failed and cancelled ones); answered with Changes."""

    request_id: RequestId
    task_ids: Annotated[tuple[Id, ...], Count(BATCH_TASKS)] = ()
    batch_id: Counter = 0


@dataclass(frozen=True, slots=True)
class GetStatus:
    """The workshop at a glance; answered with Status."""

    request_id: RequestId


@dataclass(frozen=True, slots=True)
class GetStats:
    """What the workers did in the last hours; answered with Stats; an empty worker_id means all."""

    request_id: RequestId
    hours: Annotated[int, Between(1, 8_760)] = 24
    worker_id: Word = ""


@dataclass(frozen=True, slots=True)
class Explain:
    """Why a task went where it did, or what it waits for; answered with Explanation."""

    request_id: RequestId
    task_id: Id


@dataclass(frozen=True, slots=True)
class GetWorkers:
    """Answered with Workers; an empty worker_id means all."""

    request_id: RequestId
    worker_id: Word = ""


@dataclass(frozen=True, slots=True)
class SetWorkerMode:
    """Operator: pause, resume, drain; answered with Workers."""

    request_id: RequestId
    worker_id: Word
    mode: WorkerMode


@dataclass(frozen=True, slots=True)
class RemoveWorker:
    """Operator: its key may only be told so, its work goes elsewhere; answered with Workers."""

    request_id: RequestId
    worker_id: Word


@dataclass(frozen=True, slots=True)
class Invite:
    """Operator: put a one-time enrolment key on the allow-list; answered with Invited.

    The inviter makes the key pair, so that its secret half never crosses the wire.
    """

    request_id: RequestId
    name: Word  # worker_id or the person's name
    role: Role  # worker, client or operator
    enrol_key: Key
    ttl_s: Seconds


@dataclass(frozen=True, slots=True)
class Enrol:
    """The one thing an enrolment key may say: put my own key in its place; answered with Enrolled."""

    request_id: RequestId
    public_key: Key


@dataclass(frozen=True, slots=True)
class GetKeys:
    """Operator; answered with Keys."""

    request_id: RequestId


@dataclass(frozen=True, slots=True)
class RevokeKey:
    """Operator: every key under that name is refused from now on; answered with Keys."""

    request_id: RequestId
    name: Word


@dataclass(frozen=True, slots=True)
class MakeBackup:
    """Operator: copy the database beside itself; answered with BackupMade, repeated as often as it is asked."""

    request_id: RequestId


@dataclass(frozen=True, slots=True)
class GetBackupPart:
    """Operator: one piece of the copy that MakeBackup `backup` made; answered with BackupPart."""

    request_id: RequestId
    backup: RequestId
    index: Counter


@dataclass(frozen=True, slots=True)
class EndBackup:
    """Operator: the copy is not needed any more; answered with BackupEnded."""

    request_id: RequestId
    backup: RequestId


@dataclass(frozen=True, slots=True)
class Purge:
    """Remove ended tasks' inputs and outputs for good, or all that is known of them; answered with Purged."""

    request_id: RequestId
    task_ids: Annotated[tuple[Id, ...], Count(BATCH_TASKS)] = ()
    batch_id: Counter = 0
    history: bool = False  # the record too, not only prompt, files and output


@dataclass(frozen=True, slots=True)
class GetParked:
    """Operator: outcomes of attempts that the database does not know; answered with ParkedWork."""

    request_id: RequestId
    attempt_uid: Annotated[str, Chars(32)] = ""  # empty: all, a page at a time
    skip: Counter = 0
