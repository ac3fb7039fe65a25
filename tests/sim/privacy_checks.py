"""I9 as a check on every message that leaves the broker: whose tasks, attempts and bodies it names."""

from dataclasses import dataclass

from koubou_broker.records import NewTask
from koubou_common.messages import (
    Abort,
    BackupEnded,
    BackupMade,
    BackupPart,
    BlobChunk,
    Changes,
    Dispatch,
    Explanation,
    Invited,
    Keys,
    Message,
    ParkedWork,
    Purged,
    ResultStored,
    Story,
    Submitted,
    TaskChanged,
    TaskResult,
    Tasks,
    Watching,
)
from koubou_common.messages.values import Role
from sim.checker import BrokenPromiseError
from sim.facts import Invariant, Violation
from support.shelf import Shelf


@dataclass(frozen=True, slots=True)
class Named:
    """What a message tells of. What only repeats the peer's own question (`missing`) tells nothing."""

    task_ids: tuple[int, ...] = ()
    uids: tuple[str, ...] = ()
    hashes: tuple[bytes, ...] = ()


_NOTHING = Named()
_FOR_OPERATORS = (BackupEnded, BackupMade, BackupPart, Invited, Keys, ParkedWork)


def named_in(message: Message) -> Named:
    """The tag of a message: everything in it that belongs to somebody."""
    match message:
        case Dispatch():
            hashes = (message.prompt.sha256, *(file.body.sha256 for file in message.files))
            return Named((message.task_id,), (message.attempt_uid,), hashes)
        case Abort(attempt_uid=uid) | ResultStored(attempt_uid=uid):
            return Named(uids=(uid,))
        case Submitted(tasks=refs):
            return Named(tuple(ref.task_id for ref in refs))
        case Tasks(tasks=views):
            return Named(tuple(view.task_id for view in views))
        case Story(task=view, attempts=attempts) | Explanation(task=view, attempts=attempts):
            return Named((view.task_id,), tuple(attempt.uid for attempt in attempts))
        case TaskResult(task=view, body=body):
            return Named((view.task_id,), hashes=(body.sha256,) if body is not None else ())
        case Watching(tasks=marks):
            return Named(tuple(mark.task_id for mark in marks))
        case TaskChanged(task=mark):
            return Named((mark.task_id,))
        case Changes(changes=changes) | Purged(refused=changes):
            return Named(tuple(change.task_id for change in changes))
        case BlobChunk(sha256=sha256):
            return Named(hashes=(sha256,))
        case _:
            return _NOTHING


def check_privacy(disk: Shelf, name: str, role: Role, message: Message) -> None:
    """BrokenPromiseError if the message tells `name` of what is somebody else's."""
    if role is Role.OPERATOR:
        return
    if isinstance(message, _FOR_OPERATORS):
        _broken(0, f"{name}, a {role}, is sent {type(message).__name__}, which is for operators")
    named = named_in(message)
    if named is _NOTHING:
        return
    if role in (Role.WORKER, Role.REMOVED):
        _check_worker(disk, name, named)
    else:
        _check_client(disk, name, named)


def _check_client(disk: Shelf, name: str, named: Named) -> None:
    for task_id in named.task_ids:
        task = disk.tasks.get(task_id)
        if task is not None and task.principal != name:
            _broken(task_id, f"{name} is told of a task of {task.principal}")
    for uid in named.uids:
        attempt = disk.attempts.get(uid)
        if attempt is not None and disk.tasks[attempt.task_id].principal != name:
            _broken(attempt.task_id, f"{name} is told of attempt {uid} of somebody else's task")
    for sha256 in named.hashes:
        if not any(task.principal == name and sha256 in _bodies_of(disk, task) for task in disk.tasks.values()):
            _broken(0, f"{name} is sent a body that is in none of its tasks: {sha256.hex()}")


def _check_worker(disk: Shelf, name: str, named: Named) -> None:
    for uid in named.uids:
        attempt = disk.attempts.get(uid)
        if attempt is not None and attempt.worker_id != name:
            _broken(attempt.task_id, f"{name} is told of attempt {uid} of {attempt.worker_id}")
    if not named.task_ids and not named.hashes:
        return
    issued = {one.task_id for one in disk.attempts.values() if one.worker_id == name}
    for task_id in named.task_ids:
        if task_id in disk.tasks and task_id not in issued:
            _broken(task_id, f"{name} is told of a task that was never given to it")
    for sha256 in named.hashes:
        if not any(sha256 in _bodies_of(disk, disk.tasks[task_id]) for task_id in issued):
            _broken(0, f"{name} is sent a body that is in none of its attempts: {sha256.hex()}")


def _bodies_of(disk: Shelf, task: NewTask) -> set[bytes]:
    return disk.refs.get(task.task_id, set())


def _broken(task_id: int, text: str) -> None:
    raise BrokenPromiseError(Violation(Invariant.I9, task_id, text))
