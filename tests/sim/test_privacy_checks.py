"""What every message tells of whom, and that a message which tells a stranger is noticed."""

from dataclasses import replace
from typing import get_args

import pytest

from koubou_broker.records import Attempt
from koubou_common.messages import (
    Abort,
    BackupEnded,
    BackupMade,
    BackupPart,
    BlobChunk,
    Changes,
    Dispatch,
    Explanation,
    FromBroker,
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
from koubou_common.messages.values import AbortReason, Disposition, Role
from sim.checker import BrokenPromiseError
from sim.facts import Invariant
from sim.privacy_checks import check_privacy, named_in
from support.core_play import Play, a_client, a_spec, a_worker, an_agent, some_settings
from support.shelf import Shelf

MIKA, RIN, W1, W2 = a_client("mika"), a_client("rin"), an_agent("w1"), an_agent("w2")

FOR_OPERATORS = (BackupEnded, BackupMade, BackupPart, Invited, Keys, ParkedWork)
# Of these nothing belongs to a single client or worker.
TELL_NOTHING = {
    "Welcome",
    "HeartbeatAck",
    "Removed",
    "Error",
    "ClientWelcome",
    "PartStaged",
    "Preview",
    "Status",
    "Workers",
    "Stats",
    "Enrolled",
    "BlobGet",
    "BlobMissing",
}


@pytest.fixture
def shelf() -> Shelf:
    """Task 1 of mika with attempt `uid_of(shelf)` on w1, task 2 of rin that waits."""
    play = Play(some_settings(a_worker("w1"), a_worker("w2")), MIKA, RIN, W1, W2)
    play.join(W1)
    play.submit(a_spec("mika's prompt"), who=MIKA)
    play.submit(a_spec("rin's prompt"), who=RIN)
    return play.shelf


def uid_of(shelf: Shelf) -> str:
    """The only attempt."""
    return next(iter(shelf.attempts))


def _says(kind: type[Message], **fields: object) -> Message:
    """A message of which only these fields matter."""
    names = kind.__dataclass_fields__
    return kind(**{name: fields.get(name) for name in names})  # type: ignore[arg-type]  # the rest is not looked at


class _View:
    """A task, as a view or a mark names it."""

    def __init__(self, task_id: int) -> None:
        self.task_id = task_id


def _messages_about(task_id: int) -> list[Message]:
    view = _View(task_id)
    return [
        _says(Submitted, tasks=(view,)),
        _says(Tasks, tasks=(view,)),
        _says(Story, task=view, attempts=()),
        _says(Explanation, task=view, attempts=()),
        _says(TaskResult, task=view),
        _says(Watching, tasks=(view,)),
        _says(TaskChanged, task=view),
        _says(Changes, changes=(view,)),
        _says(Purged, refused=(view,)),
    ]


@pytest.mark.parametrize("nth", range(9))
def test_a_client_may_be_told_of_its_own_tasks_and_of_no_others(shelf: Shelf, nth: int) -> None:
    check_privacy(shelf, "mika", Role.CLIENT, _messages_about(1)[nth])
    check_privacy(shelf, "boss", Role.OPERATOR, _messages_about(1)[nth])
    with pytest.raises(BrokenPromiseError) as broken:
        check_privacy(shelf, "rin", Role.CLIENT, _messages_about(1)[nth])
    assert broken.value.violation.invariant is Invariant.I9
    assert broken.value.violation.task_id == 1


def test_a_worker_may_be_told_of_its_own_attempts_and_of_no_others(shelf: Shelf) -> None:
    uid = uid_of(shelf)
    for message in (Abort(uid, AbortReason.OVER), ResultStored(uid, Disposition.RECORDED)):
        check_privacy(shelf, "w1", Role.WORKER, message)
        with pytest.raises(BrokenPromiseError, match="w2 is told of attempt"):
            check_privacy(shelf, "w2", Role.WORKER, message)


def test_a_worker_is_sent_the_inputs_of_its_attempts_and_no_others(shelf: Shelf) -> None:
    hers, his = (shelf.tasks[task_id].prompt.sha256 for task_id in (1, 2))
    check_privacy(shelf, "w1", Role.WORKER, BlobChunk(hers, 0, b""))
    for name, sha256 in (("w1", his), ("w2", hers)):
        with pytest.raises(BrokenPromiseError, match="a body that is in none of its attempts"):
            check_privacy(shelf, name, Role.WORKER, BlobChunk(sha256, 0, b""))


def test_a_client_is_sent_bodies_of_its_tasks_and_no_others(shelf: Shelf) -> None:
    hers = shelf.tasks[1].prompt.sha256
    check_privacy(shelf, "mika", Role.CLIENT, BlobChunk(hers, 0, b""))
    with pytest.raises(BrokenPromiseError, match="a body that is in none of its tasks"):
        check_privacy(shelf, "rin", Role.CLIENT, BlobChunk(hers, 0, b""))


def test_a_dispatch_of_a_task_that_was_never_given_to_the_worker_is_noticed(shelf: Shelf) -> None:
    attempt = shelf.attempts[uid_of(shelf)]
    elsewhere: Attempt = replace(attempt, attempt_uid="0" * 32, worker_id="w2", task_id=2)
    shelf.put(elsewhere)
    prompt = shelf.tasks[1].prompt
    dispatch = _says(Dispatch, task_id=1, attempt_uid="0" * 32, prompt=prompt, files=())
    with pytest.raises(BrokenPromiseError, match="was never given to it"):
        check_privacy(shelf, "w2", Role.WORKER, dispatch)


@pytest.mark.parametrize("kind", FOR_OPERATORS, ids=lambda kind: kind.__name__)
def test_what_is_for_operators_is_sent_to_operators_alone(shelf: Shelf, kind: type[Message]) -> None:
    check_privacy(shelf, "boss", Role.OPERATOR, _says(kind))
    with pytest.raises(BrokenPromiseError, match="which is for operators"):
        check_privacy(shelf, "mika", Role.CLIENT, _says(kind))


def test_every_message_of_the_broker_is_either_tagged_or_known_to_tell_nothing() -> None:
    tagged = {type(message).__name__ for message in _messages_about(1)}
    tagged |= {"Dispatch", "Abort", "ResultStored", "BlobChunk"}
    known = tagged | TELL_NOTHING | {kind.__name__ for kind in FOR_OPERATORS}
    kinds = {kind.__name__ for kind in get_args(FromBroker)}
    assert kinds <= known, f"say whose data these tell: {sorted(kinds - known)}"
    assert named_in(_messages_about(7)[0]).task_ids == (7,)
