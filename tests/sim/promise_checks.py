"""Law 1 as a check on every message that leaves the broker: what it states is committed."""

from koubou_common.messages import Changes, Dispatch, Enrolled, Invited, Message, Removed, ResultStored, Submitted
from koubou_common.messages.values import Disposition, Role, TaskState
from support.shelf import Shelf


class LawBrokenError(AssertionError):
    """The broker has said what is not so."""


def check_promise(disk: Shelf, message: Message) -> None:
    """LawBrokenError if the message says what is not stored."""
    try:
        _check(disk, message)
    except (AssertionError, KeyError) as error:
        raise LawBrokenError(str(error)) from error


def _check(disk: Shelf, message: Message) -> None:
    match message:
        case Submitted(tasks=tasks):
            for task in tasks:
                assert task.task_id in disk.tasks, f"task {task.task_id} is acknowledged and not on disk"
        case Dispatch(attempt_uid=uid):
            assert uid in disk.attempts, f"attempt {uid} is dispatched and not on disk"
        case ResultStored(uid, Disposition.PARKED):
            assert uid in disk.parked or disk.quarantined, f"attempt {uid} is said to be parked and is not"
        case ResultStored(uid, _):
            assert uid in disk.attempts, f"attempt {uid} is unknown, its result said to be stored"
        case Changes(changes=changes):
            for change in changes:
                recorded = disk.progress[change.task_id]
                if change.changed and change.state is TaskState.CANCELLED:
                    assert recorded.state.is_terminal or recorded.generation > 1, f"{change} is not on disk"
        case Enrolled(public_key=key):
            assert key in disk.principals, f"key {key} is enrolled and not on disk"
        case Invited(name=name):
            invited = (one.name for one in disk.principals.values() if one.enrol_role is not None)
            assert name in invited, f"{name} is invited, and its key not on disk"
        case Removed():
            roles = {one.role for one in disk.principals.values()}
            assert Role.REMOVED in roles, "a worker is told that it is removed, and none is"
        case _:
            pass
