"""What a connection still owes its callers: answers, and news of watched tasks."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from koubou_common.errors import KoubouError
from koubou_common.messages import Watch
from koubou_common.messages.values import TaskMark

PATIENCE_S = 600.0  # with a queue or a disk that is full: a program that fills them has to wait, not to end

Answered = Callable[[Any], None]  # gets the reply, or a KoubouError
# Gets tasks as they are and ids that are not there; True: it wants to hear no more.
Marks = Callable[[Sequence[TaskMark], Sequence[int]], bool]
Failed = Callable[[KoubouError], None]
Waits = Callable[[KoubouError, float], None]  # gets why a request has to wait, and for how many seconds


@dataclass(slots=True)
class Pending:
    """A request without an answer."""

    message: Any
    on_answer: Answered
    bodies: dict[bytes, bytes]
    session: int | None = None  # valid in this session only
    patience_s: float = 0.0  # how long refusals that tell when to come again are obeyed
    on_wait: Waits | None = None
    refused_at_s: float | None = None  # for the first time
    not_before_s: float = 0.0
    sent_at_s: float | None = None


@dataclass(slots=True)
class Watched:
    """Tasks somebody wants to hear about."""

    message: Watch
    on_marks: Marks
    on_error: Failed
    answered: bool = False
    not_before_s: float = 0.0
    sent_at_s: float | None = None


def settle(future: "Future[Any]") -> Answered:
    """A callback that settles `future` with a reply, or with the error."""

    def answered(answer: Any) -> None:
        if not future.set_running_or_notify_cancel():
            return
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    return answered
